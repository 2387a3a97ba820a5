"""The work that is measured, the same for us and for the peer, and the JSON line that says what it took.

Imports nothing of ours but `data`: what `training` sets for itself (OpenMP's waiting) is no part of the peer.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.formats import read_rows
from data.records import InputError

Row = dict[str, Any]
Result = dict[str, Any]
LEARNING_RATE, PPO_LEARNING_RATE = 1e-4, 1e-5
TEMPERATURE, EPOCHS = 0.7, 4
ROUNDS = 3
"""How often a batch is sampled, after once that is not counted."""
DEFAULTS: dict[str, dict[str, int]] = {
    "reward": {"steps": 12, "batch": 4, "warm": 2},
    "dpo": {"steps": 12, "batch": 4, "warm": 2},
    "ppo": {"steps": 3, "batch": 16, "warm": 1, "response": 48},
    "rollout": {"batch": 32, "response": 64},
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, model: str | None = None
) -> argparse.Namespace:
    """The options that say what the work is; `model` is the default, without which one must be named.

    What has no part in the method is refused.
    """
    add = parser.add_argument
    add("method", choices=list(DEFAULTS))
    add("--model", default=model, required=model is None, help="Base model")
    add("--data", required=True, help="Pairs or rankings for reward and dpo, prompts for ppo and rollout")
    add("--steps", type=int, help="Optimiser steps; PPO: updates (default 12; PPO: 3)")
    add("--batch", type=int, help="Rows a step (default 4; PPO: 16 episodes; rollout: 32)")
    add("--warm", type=int, help="Steps before the timed ones (default 2; PPO: 1)")
    add("--max-length", type=int, default=512, help="Longest prompt plus answer, in tokens (default 512)")
    add("--response", type=int, help="Tokens of a sampled answer (default 48; rollout: 64)")
    add("--precompute", action="store_true", help="DPO: the reference's log-probabilities before the training")
    add("--dtype", choices=list(DTYPES), default="bf16", help="Precision of the base (default bf16)")
    add("--threads", type=int, default=2, help="Processor threads (default 2)")
    options = parser.parse_args(arguments)
    defaults = DEFAULTS[options.method]
    for name in ("steps", "batch", "warm", "response"):
        if getattr(options, name) is None:
            setattr(options, name, defaults.get(name))
        elif name not in defaults:
            parser.error(f"--{name} has no part in {options.method}")
    if options.precompute and options.method != "dpo":
        parser.error(f"--precompute has no part in {options.method}")
    if options.method != "rollout" and not 0 <= options.warm < options.steps:
        parser.error(f"--warm {options.warm} leaves none of {options.steps} steps to be timed")
    return options


def first_rows(path: Path | str, count: int) -> list[Row]:
    """The first rows of a file. Raises InputError where it holds fewer."""
    return _exactly(count, path, [row for _, row in islice(read_rows(path), count)])


def short_prompts(path: Path | str, count: int) -> list[Row]:
    """The first rows whose prompt is a text of fewer than 200 characters. Raises InputError where there are fewer."""
    short = (row for _, row in read_rows(path) if isinstance(row["prompt"], str) and len(row["prompt"]) < 200)
    return _exactly(count, path, list(islice(short, count)))


def _exactly(count: int, path: Path | str, rows: list[Row]) -> list[Row]:
    if len(rows) < count:
        raise InputError(f"{path}: {len(rows)} rows fit, but {count} are needed; take another file or less work")
    return rows


def memory() -> dict[str, int]:
    """Peak memory in MiB: resident, of this process and of the largest of its children (compilers); of the GPU."""
    peak = {
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "children_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    if torch.cuda.is_available():
        peak["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def report(options: argparse.Namespace, measure: Callable[[argparse.Namespace, Path], Result], **side: object) -> int:
    """Measure in a folder that is gone afterwards, and print the JSON line; returns the exit status."""
    try:
        with tempfile.TemporaryDirectory() as name:
            found = measure(options, Path(name))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    named = {key: getattr(options, key) for key in ("method", "dtype", "precompute")}
    print(json.dumps({**side, **named, **found}))
    return 0
