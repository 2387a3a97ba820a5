"""The learning rate's course and the clipping of gradients."""

import math

import pytest
import torch

from training.config import SFTConfig
from training.loop import Optimizer


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", lambda done: 1.0),
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_then_follows_the_schedule(schedule, at):
    optimizer = Optimizer(SFTConfig(warmup_ratio=0.2, schedule=schedule), [([torch.zeros(1)], 1.0)], total=10)
    assert [optimizer.factor(step) for step in (1, 2)] == [0.5, 1.0]
    assert [optimizer.factor(step) for step in range(3, 11)] == pytest.approx([at(i / 8) for i in range(8)])


@pytest.mark.parametrize(("limit", "length"), [(1.0, 1.0), (0.0, 5.0), (9.0, 5.0)])
def test_gradients_are_clipped_to_the_norm_of_all(limit, length):
    weights = [torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimizer = Optimizer(SFTConfig(max_grad_norm=limit), [(weights, 0.1)], total=1)
    seen: list[float] = []
    optimizer.adam.step = lambda: seen.append(float(torch.cat([w.grad for w in weights]).norm()))
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    assert optimizer.step(1)["grad_norm"] == pytest.approx(5.0)
    assert seen == pytest.approx([length], rel=1e-5)


def test_every_group_of_weights_has_its_own_rate():
    first, second = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = Optimizer(SFTConfig(warmup_ratio=0), [([first], 0.1), ([second], 0.01)], total=4)
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    optimizer.step(1)
    assert (float(first), float(second)) == pytest.approx((-0.1, -0.01), rel=1e-4)
