"""A tiny base, a little data, and the real command."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest

from data.formats import write_rows
from training.base import Base
from training.models import load_base

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tiny_model: Path) -> Base:
    """The tiny model in fp32, fresh for each test."""
    return load_base(str(tiny_model), "fp32", "cpu")


@pytest.fixture
def rankings_file(tmp_path: Path) -> Path:
    """Twelve rankings of three completions; one tie, one unranked, one multi-turn prompt."""
    rows: list[dict[str, Any]] = []
    for i in range(12):
        prompt: Any = f"Question number {i}: what do you think of the number {i * 7}?"
        if i == 3:
            prompt = [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi, what is it?"},
                {"role": "user", "content": "Tell me a number."},
            ]
        completions = [f"It is a fine number, {i}.", f"I like {i} a lot, and here is why: because.", "No."]
        ranks = {1: [1, 1, 2], 2: [2, None, 1]}.get(i, [1, 2, 3])
        rows.append({"prompt": prompt, "completions": completions, "ranks": ranks})
    path = tmp_path / "rankings.jsonl"
    write_rows(path, rows)
    return path


Command = Callable[..., "subprocess.CompletedProcess[str]"]


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"training.{name}" for name in ("__main__", "sft", "reward", "dpo", "ppo", "evaluate", "merge")]
)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m training ...` in a process of its own; returns the finished process.

    It is forked from one that has imported torch and transformers already, which takes five seconds each time.
    """

    def run(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
        given = [str(argument) for argument in arguments]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = FORKS.Process(target=_main, args=(given, tmp_path, DupFd(out.fileno()), DupFd(err.fileno())))
            process.start()
            process.join()
            out.seek(0), err.seek(0)
            done = subprocess.CompletedProcess(given, process.exitcode or 0, out.read(), err.read())
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def _main(arguments: list[str], folder: Path, out: Any, err: Any) -> None:
    """What `python -m training` does, with its output sent into two files."""
    os.dup2(out.detach(), 1)
    os.dup2(err.detach(), 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    from training.__main__ import main

    status = main(arguments)
    sys.stdout.flush()
    sys.exit(status)


@pytest.fixture
def arguments(tiny_model: Path, rankings_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a method on the tiny model; PPO is rewarded for the letter e."""
    (tmp_path / "my_reward.py").write_text(
        "def letters(prompts, completions):\n    return [text.count('e') / (len(text) + 1) for text in completions]\n"
    )

    def make(method: str, output: str, *more: Any) -> list[str]:
        common = ["--base-model", tiny_model, "--dtype", "fp32", "--data", rankings_file, "--output", tmp_path / output]
        knobs = ["--num-threads", 1, "--lora-rank", 4, "--batch-size", 4, "--learning-rate", "1e-2"]
        if method == "ppo":
            knobs += ["--reward-function", "my_reward:letters", "--max-new-tokens", 8]
        return list(map(str, [method, *common, *knobs, *more]))

    return make


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that ends a command's output."""
    return json.loads(done.stdout.splitlines()[-1])
