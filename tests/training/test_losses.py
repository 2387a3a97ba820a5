"""Every loss against brute force in float64, and its gradient against finite differences."""

import math

import pytest
import torch

from training import losses

D = torch.tensor([-3.0, -0.2, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.bradley_terry, lambda d: -math.log(sigmoid(d))),
        (lambda d: losses.bradley_terry(d, 0.4), lambda d: -math.log(sigmoid(d - 0.4))),
        (losses.half_win, lambda d: -0.5 * math.log(sigmoid(d)) - 0.5 * math.log(sigmoid(-d))),
        (lambda d: losses.rao_kupper_win(d, 0.3), lambda d: -math.log(math.exp(d) / (math.exp(d) + math.exp(0.3)))),
        (lambda d: losses.dpo(d, 0.1), lambda d: -math.log(sigmoid(0.1 * d))),
        (
            lambda d: losses.dpo(d, 0.5, 0.1),
            lambda d: -0.9 * math.log(sigmoid(0.5 * d)) - 0.1 * math.log(sigmoid(-0.5 * d)),
        ),
    ],
)
def test_pair_losses(loss, expected):
    found = loss(D)
    torch.testing.assert_close(found, torch.tensor([expected(float(d)) for d in D.detach()], dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, (D,), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tau", [0.01, 0.5, 2.0])
def test_rao_kupper_outcomes_sum_to_one(tau):
    win, lose, tie = losses.rao_kupper_win(D, tau), losses.rao_kupper_win(-D, tau), losses.rao_kupper_tie(D, tau)
    torch.testing.assert_close((-win).exp() + (-lose).exp() + (-tie).exp(), torch.ones_like(D))


def test_rao_kupper_without_threshold_is_bradley_terry():
    torch.testing.assert_close(losses.rao_kupper_win(D, 0.0), losses.bradley_terry(D))


def test_calibration_error_of_a_known_case():
    # four comparisons at P = σ(ln 9) = 0.9, three of them right: |0.9 - 0.75|
    difference = torch.tensor([1.0, 1.0, 1.0, -1.0]) * math.log(9)
    assert losses.calibration_error(difference) == pytest.approx(0.15, abs=1e-6)
