"""The committee beside a reward model's head: what people said binds it, and where they said nothing it differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.formats import write_rows
from data.preferences import Comparison
from tests.training.conftest import last_json
from training.ensemble import PRIOR_SPREAD, fit_heads
from training.packs import Group
from training.reward import Pairs


def simulated(count: int, width: int, known: int, seed: int = 0) -> tuple[Tensor, Pairs, Tensor]:
    """(ends, pairs, prompts) of `count` pairs that differ in the first `known` of `width` directions only."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(width, generator=random)
    ends = torch.randn(2 * count, width, generator=random)
    ends[:, known:] = 0
    score = (ends @ truth).view(count, 2)
    wins = torch.rand(count, generator=random) < torch.sigmoid(score[:, 0] - score[:, 1])
    groups = [Group([1], [[1], [2]], comparisons=[Comparison(*((0, 1) if w else (1, 0)), False, 0.0)]) for w in wins]
    return ends, Pairs(groups), torch.arange(count)


def spread(heads: Tensor, difference: Tensor) -> float:
    """Mean over differences (n, d) of the heads' standard deviation of P(first wins)."""
    return float(torch.sigmoid(difference @ heads.T).std(1, correction=0).mean())


def test_heads_agree_where_people_spoke_and_differ_elsewhere() -> None:
    ends, pairs, prompt = simulated(count=400, width=16, known=8)
    heads = fit_heads(ends, pairs, prompt, torch.zeros(16), count=8)
    random = torch.Generator().manual_seed(1)
    near, far = torch.randn(2, 200, 16, generator=random)
    near[:, 8:], far[:, :8] = 0, 0
    assert spread(heads, near) < 0.6 * spread(heads, far)
    assert len(torch.unique(heads, dim=0)) == 8


def test_more_answers_make_the_heads_agree() -> None:
    few, many = (simulated(count, width=8, known=8) for count in (20, 500))
    probe = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    by_few, by_many = (spread(fit_heads(*given, torch.zeros(8), count=8), probe) for given in (few, many))
    assert by_many < 0.5 * by_few


def test_without_information_a_head_is_a_draw_from_the_prior() -> None:
    """Pairs of weight zero say nothing: differences of typical size spread by PRIOR_SPREAD around the own head's."""
    ends, pairs, prompt = simulated(count=50, width=16, known=16)
    pairs.weight.zero_()
    own = torch.randn(16, generator=torch.Generator().manual_seed(2))
    heads = fit_heads(ends, pairs, prompt, own, count=800)
    differences = (ends[pairs.winner] - ends[pairs.loser]) @ heads.T
    assert float(differences.std(1).square().mean().sqrt()) == pytest.approx(PRIOR_SPREAD, rel=0.1)
    of_own = (ends[pairs.winner] - ends[pairs.loser]) @ own
    assert float((differences.mean(1) - of_own).abs().max()) < 0.3


def test_a_fitted_head_is_at_the_minimum() -> None:
    """With every prompt drawn once and the centre known, the gradient of the penalised likelihood is zero."""
    from training import ensemble
    from training.config import RewardConfig

    ends, pairs, _ = simulated(count=30, width=5, known=5)
    differences = (ends[pairs.winner] - ends[pairs.loser]).double()
    centre, scale = torch.full((5,), 0.3, dtype=torch.float64), 0.7
    head = ensemble.fit_head(differences, pairs, pairs.weight, centre, scale, RewardConfig())
    pull = (torch.sigmoid(-differences @ head)[:, None] * differences).sum(0)
    assert torch.allclose(pull, (head - centre) / scale**2, atol=1e-4)


@pytest.fixture
def checkpoint(command: Any, arguments: Any) -> str:
    done = command(*arguments("reward", "run", "--max-steps", 3, "--validation-fraction", 0))
    return str(last_json(done)["checkpoint"])


def test_score_adds_the_scores_of_the_heads(command: Any, checkpoint: str, rankings_file: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "completions": ["Because of the rain.", "No.", ""], "task": 7},
        {"prompt": "Why?", "completion": "No."},
        {"prompt": "Why?", "completions": [""], "finish_reasons": ["length"]},
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    words = ["score", "--checkpoint", checkpoint, "--data", "in.jsonl", "--output", tmp_path / "out.jsonl"]
    words += ["--dtype", "fp32", "--num-threads", 1, "--heads", 5, "--head-data", rankings_file]
    refused = command(*words, check=False)
    assert refused.returncode == 2
    assert "in.jsonl:3: an unfinished completion is empty" in refused.stderr
    done = command(*words, "--skip-errors")
    assert last_json(done) == {"output": str(tmp_path / "out.jsonl"), "n": 4, "skipped": 1}
    assert "in.jsonl:3: an unfinished completion is empty" in done.stderr
    first, second, third = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["task"] == 7
    assert [len(scores) for scores in first["ensemble_scores"]] == [5, 5, 5]
    assert second["ensemble_scores"] == pytest.approx(first["ensemble_scores"][1], abs=1e-4)
    assert len(set(second["ensemble_scores"])) == 5
    assert "error" in third
    assert "scores" not in third
    write_rows(tmp_path / "in.jsonl", rows[:2])
    command(*words[:7], "--dtype", "fp32", "--num-threads", 1)
    alone = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert alone[0]["scores"] == pytest.approx(first["scores"], abs=1e-5), "scores stay the model's own"
    assert "ensemble_scores" not in alone[0]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--heads", "5"], "--heads and --head-data go together"),
        (["--heads", "2", "--head-data", "x"], "--heads must be 0 or at least 3"),
    ],
)
def test_a_committee_needs_members_and_something_to_learn_from(command: Any, more: list[str], told: str) -> None:
    done = command("score", "--checkpoint", "x", "--data", "y", "--output", "z", *more, check=False)
    assert done.returncode == 2
    assert told in done.stderr
