"""What more labels would buy: the curve climbs where there is something to learn, and stays at a half where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.formats import write_rows
from data.preferences import Comparison
from data.records import InputError
from tests.training.conftest import last_json
from training.learning_curve import SEEDS, SUBSETS, fit_curve
from training.packs import Group


def simulated(prompts: int, width: int, sharpness: float) -> tuple[torch.Tensor, list[Group], np.ndarray]:
    """(ends, groups, prompt of each group): two pairs a prompt, won by Bradley-Terry in a random direction."""
    random = torch.Generator().manual_seed(0)
    truth = sharpness * torch.randn(width, generator=random)
    ends = torch.randn(4 * prompts, width, generator=random)
    ends[:, 0] *= 100  # features have scales of their own
    truth[0] /= 100
    score = (ends @ truth).view(-1, 2)
    wins = torch.rand(len(score), generator=random) < torch.sigmoid(score[:, 0] - score[:, 1])
    groups = [Group([1], [[1], [2]], comparisons=[Comparison(*((0, 1) if w else (1, 0)), False, 0.0)]) for w in wins]
    return ends, groups, np.repeat(np.arange(prompts), 2)


def test_the_curve_climbs_with_the_labels() -> None:
    found = fit_curve(*simulated(prompts=250, width=24, sharpness=2.0))
    assert found["prompts"] == [40, 80, 120, 160, 200]
    assert found["comparisons"] == [80, 160, 240, 320, 400]
    assert found["n"] == 100
    assert [len(of_seeds) for of_seeds in found["accuracy"]] == [SEEDS] * SUBSETS
    mean = np.mean(found["accuracy"], axis=1)
    assert mean[-1] > mean[0] + 0.05
    assert mean[-1] > 0.8


def test_nothing_is_learned_from_noise() -> None:
    found = fit_curve(*simulated(prompts=400, width=8, sharpness=0.0))
    assert abs(np.mean(found["accuracy"]) - 0.5) < 0.05


def test_a_prompt_is_on_one_side_of_a_split_only() -> None:
    """Where every prompt has a direction of its own, nothing carries over to held-out ones."""
    width = prompts = 100
    ends = torch.zeros(4 * prompts, width)
    ends[torch.arange(0, 4 * prompts, 2), torch.arange(prompts).repeat_interleave(2)] = 1.0
    groups = [Group([1], [[1], [2]], comparisons=[Comparison(0, 1, False, 0.0)]) for _ in range(2 * prompts)]
    found = fit_curve(ends, groups, np.repeat(np.arange(prompts), 2))
    assert np.unique(found["accuracy"]).tolist() == [0.5]


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(InputError, match=r"rankings of 5 prompts .* collect at least 20"):
        fit_curve(*simulated(prompts=5, width=4, sharpness=1.0))


def test_the_command(command: Any, arguments: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {n}?", "completions": ["Yes.", "No, never.", "Perhaps."], "ranks": [1, 2, 2]}
        for n in range(25)
    ]
    write_rows(tmp_path / "many.jsonl", rows)
    base = arguments("reward", "unused")
    model = base[base.index("--base-model") + 1]
    words = ["curve", "--base-model", model, "--dtype", "fp32", "--num-threads", 1]
    found = last_json(command(*words, "--data", "many.jsonl", "--most", 24))
    assert (found["rankings"], found["read"], found["n"]) == (25, 24, 10)
    write_rows(tmp_path / "few.jsonl", rows[:4])
    refused = command(*words, "--data", "few.jsonl", check=False)
    assert refused.returncode == 2
    assert "collect at least 20" in refused.stderr
