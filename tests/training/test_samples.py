"""Answers on the way: the same prompts and random numbers at each step, and no trace of them in the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from labeler.alarm import points_of_run
from tests.training.conftest import last_json
from training.run_folder import checkpoints, read_metrics

STEPS = ("--max-steps", 4, "--save-every", 2, "--eval-every", 2, "--sample-every", 2, "--sample-max-new-tokens", 12)


def samples(run: Path) -> list[dict[str, Any]]:
    path = run / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_training_goes_the_same_way_with_and_without(method, command, arguments, tmp_path):
    more = ("--lora-dropout", 0.2) if method != "ppo" else ()
    for name, prompts in (("with", 2), ("without", 0)):
        command(*arguments(method, name, *STEPS, *more, "--sample-prompts", prompts))
    runs = [tmp_path / "with", tmp_path / "without"]
    rows = [[{k: v for k, v in row.items() if k != "time"} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    ends = [load_file(checkpoints(run)[-1] / "adapter_model.safetensors") for run in runs]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert samples(runs[1]) == []

    found = samples(runs[0])
    assert [(row["step"], row["number"]) for row in found] == [(s, n) for s in (0, 2, 4) for n in (0, 1)]
    for number in (0, 1):
        told = [row for row in found if row["number"] == number]
        assert len({json.dumps(row["prompt"]) for row in told}) == 1
        assert {row["seed"] for row in told} == {0}
        assert len({row["completion"] for row in told}) > 1, "a learning rate of 1e-2 changes a tiny model"
    assert all(("score" in row) == (method == "ppo") for row in found)


def test_a_policy_that_does_not_change_says_the_same_at_every_step(command, arguments, tmp_path):
    command(*arguments("dpo", "run", *STEPS, "--learning-rate", 0, "--sample-prompts", 3))
    said = {step: [r["completion"] for r in samples(tmp_path / "run") if r["step"] == step] for step in (0, 2, 4)}
    assert len(said[0]) == 3
    assert said[0] == said[2] == said[4]


def test_a_resumed_run_tells_each_step_once(command, arguments, tmp_path):
    command(*arguments("sft", "run", *STEPS, "--sample-prompts", 2, "--max-steps", 2))
    command(*arguments("sft", "run", *STEPS, "--sample-prompts", 2, "--resume"))
    found = [(row["step"], row["number"]) for row in samples(tmp_path / "run")]
    assert found == [(s, n) for s in (0, 2, 4) for n in (0, 1)]


def test_a_reward_model_held_out_of_training_scores_the_texts(command, arguments, tmp_path):
    judge = last_json(command(*arguments("reward", "judge", "--max-steps", 3)))["checkpoint"]
    asked = ("--max-steps", 2, "--sample-max-new-tokens", 8, "--judge-model", judge)
    command(*arguments("ppo", "run", *asked, "--sample-prompts", 10))
    found = samples(tmp_path / "run")
    assert [row["step"] for row in found] == [0] * 10 + [1] * 10 + [2] * 10
    assert len({row["judge_score"] for row in found}) > 4
    points = points_of_run(read_metrics(tmp_path / "run"), found, [])
    assert [(point.step, point.held_out.n) for point in points if point.held_out] == [(0, 10), (1, 10), (2, 10)]
    refused = command(*arguments("ppo", "no", *asked), check=False)
    assert "set sample_prompts to 10 or more" in refused.stderr.splitlines()[-1]
