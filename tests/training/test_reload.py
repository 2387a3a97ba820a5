"""Checkpoints of every kind, and merged models, load with transformers and peft alone and say what they say here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.formats import write_rows
from training.__main__ import main
from training.chat_template import encode_prompt, encode_response
from training.config import DEFAULT_MODEL
from training.default_model import default_model_folder
from training.models import load_base

MESSAGES = [{"role": "user", "content": "Which of the two is larger, three or five?"}]
RESPONSES = ["Five is larger than three, by two.", "Three."]
RANKINGS = [
    {"prompt": f"Question {i}?", "completions": [f"It is {i}, I think.", "No idea at all."], "ranks": [1, 2]}
    for i in range(4)
]


def lengths(prompts: list, completions: list[str]) -> list[float]:
    """What PPO is rewarded with."""
    return [float(len(text)) for text in completions]


def train(folder: Path, model: str, method: str, *more: object) -> Path:
    """The checkpoint of two steps that move the model far."""
    write_rows(folder / "data.jsonl", RANKINGS)
    given = ["--base-model", model, "--data", folder / "data.jsonl", "--output", folder / method, *more,
             "--dtype", "fp32", "--learning-rate", 0.02, "--max-steps", 2, "--batch-size", 2,
             "--save-every", 2, "--validation-fraction", 0]  # fmt: skip
    if method == "ppo":
        given += ["--reward-function", "tests.training.test_reload:lengths", "--max-new-tokens", 6]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main([method, *map(str, given)]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return folder / method / "checkpoints" / "step-000002"


def plainly(folder: Path, jobs: list[dict]) -> list[dict]:
    """What a process that knows nothing of this project makes of the jobs."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", Path(__file__).with_name("plain.py"), json.dumps(jobs)],
        capture_output=True, text=True, cwd=folder, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def here(model: str, job: dict, rows: list[list[int]]) -> torch.Tensor:
    """The same numbers by this project, one sequence at a time."""
    base = load_base(model, "fp32", "cpu")
    prompt = encode_prompt(base, MESSAGES)
    assert rows == [prompt + encode_response(base, text) for text in RESPONSES], "the saved tokenizer is the base's"

    def logits(adapter: str | None) -> list[torch.Tensor]:
        with torch.no_grad(), base.using(adapter):
            return [base.logits(base.hidden(torch.tensor([row])))[0] for row in rows]

    ours = logits(base.attach(job["checkpoint"]))
    assert (ours[0] - logits(None)[0]).abs().max() > 0.05, "the training moved it: equal numbers mean something"
    likeliest = torch.log_softmax(torch.cat(ours), -1).max(-1).values
    return torch.cat([likeliest, ours[0][-1, :100], ours[0][len(prompt), -100:]])


def scores(folder: Path, checkpoint: Path) -> torch.Tensor:
    """What `score` writes for the responses."""
    write_rows(folder / "in.jsonl", [{"prompt": MESSAGES, "completions": RESPONSES}])
    given = ["--checkpoint", checkpoint, "--data", folder / "in.jsonl", "--output", folder / "out.jsonl"]
    assert main(["score", *map(str, given), "--dtype", "fp32"]) == 0
    return torch.tensor(json.loads((folder / "out.jsonl").read_text())["scores"])


def check(folder: Path, model: str, base: Path, methods: tuple[str, ...], *more: object) -> None:
    """Train by each method, merge one policy and the reward model, and compare both worlds."""
    jobs = []
    for method in methods:
        checkpoint = train(folder, model, method, *more)
        job = {"kind": "reward" if method == "reward" else "policy", "checkpoint": str(checkpoint),
               "messages": MESSAGES, "responses": RESPONSES}  # fmt: skip
        jobs.append(job | {"folder": str(checkpoint), "base": str(base)})
        if method in ("dpo", "reward"):
            merged = folder / f"merged-{method}"
            given = ["--checkpoint", checkpoint, "--output", merged, "--dtype", "fp32"]
            assert main(["merge", *map(str, given)]) == 0
            jobs.append(job | {"folder": str(merged), "base": None})
    for job, answer in zip(jobs, plainly(folder, jobs), strict=True):
        theirs = torch.tensor(answer["found"])
        ours = scores(folder, job["checkpoint"]) if job["kind"] == "reward" else here(model, job, answer["rows"])
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4, msg=lambda text, job=job: f"{job}: {text}")
        if job["kind"] == "reward":
            assert abs(float(ours[0] - ours[1])) > 1e-2


def test_every_kind_on_a_tiny_model(tiny_model, tmp_path):
    check(tmp_path, str(tiny_model), tiny_model, ("sft", "dpo", "ppo", "reward"), "--lora-rank", 4)


@pytest.mark.real_model
def test_a_policy_and_a_reward_model_on_the_default_model(tmp_path):
    check(tmp_path, DEFAULT_MODEL, default_model_folder(), ("sft", "reward"), "--lora-layers", 2)
