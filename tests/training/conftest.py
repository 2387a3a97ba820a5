"""A tiny base, a little data, and the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m training ...` as users do; returns the finished process."""

    def run(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "training", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that ends a command's output."""
    return json.loads(done.stdout.splitlines()[-1])
