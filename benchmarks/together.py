"""Chat beside a training run: what each gets of two cores, alone and together.

    python -m benchmarks.together [--model M] [--seconds 30]

Trainer and chat are processes of their own, as in the app: one reads packs forward and backward with compiled layers,
the other streams answers. Each is measured alone with two threads and with one, then both at once as the app lets them
share the cores (`training/cores.py`). Prints a table and one JSON line; exits with 1 where one of them, together, gets
less than half of what it gets from one core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import training
from data.records import Message
from training import cores
from training.config import DEFAULT_MODEL, DPOConfig
from training.models import load_base
from training.packs import Group, packs
from training.processes import set_threads
from training.rollout import Token, stream

QUESTION: list[Message] = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and a whale."}]


def train(model: str, seconds: float) -> float:
    """Tokens a second read forward and backward, four pairs of 256 tokens at a time."""
    base = load_base(model)
    base.new_adapter("policy", DPOConfig())
    base.compile("policy", lambda text: print(text, file=sys.stderr))
    groups = [Group(list(range(100 + i, 164 + i)), [list(range(200, 296)), list(range(300, 396))]) for i in range(4)]

    def step() -> int:
        with base.using("policy"):
            for pack in packs(groups, 1024, base.device):
                base.backward(base.read(pack)[pack.last].float().sum())
        for parameter in base.adapter_parameters("policy"):
            parameter.grad = None
        return sum(group.length for group in groups)

    step()
    ready()
    return rate(step, seconds)


def chat(model: str, seconds: float) -> float:
    """Tokens a second of streamed answers."""
    base = load_base(model)
    lock = os.environ.get(training.CHAT_LOCK)

    def answer(seed: int) -> Iterator[Token]:
        tokens = stream(base, QUESTION, adapter=None, seed=seed)
        return cores.answering(tokens, Path(lock), training=True) if lock else tokens

    answers = iter(token for seed in range(10**6) for token in answer(seed))

    def step() -> int:
        next(answers)
        return 1

    step()
    ready()
    return rate(step, seconds)


def ready() -> None:
    """Say so, and wait for the word to begin."""
    print("ready", flush=True)
    sys.stdin.readline()


def rate(step: Callable[[], int], seconds: float) -> float:
    """What `step` returns, summed over `seconds`, a second."""
    started, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - started < seconds:
        done += step()
    return done / (now - started)


def measure(roles: dict[str, int], model: str, seconds: float, lock: str = "") -> dict[str, float]:
    """Tokens a second of each role, all at once; `roles`: name to number of threads (0: one a core).

    `lock`: the file by which the app and its runs share the cores.
    """
    environment = {**os.environ, training.CHAT_LOCK: lock}
    words = [sys.executable, "-m", "benchmarks.together", "--model", model, "--seconds", str(seconds)]
    running = {
        role: subprocess.Popen(
            [*words, "--role", role, "--threads", str(threads)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )
        for role, threads in roles.items()
    }  # fmt: skip
    for process in running.values():
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("error: a process did not get ready; its own error is above")
    for process in running.values():
        assert process.stdin is not None
        process.stdin.write("begin\n")
        process.stdin.flush()
    return {role: float(process.communicate()[0]) for role, process in running.items()}


def main() -> int:
    """Measure and print, or be one of the two; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--role", choices=["train", "chat"], help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        set_threads(options.threads)
        print({"train": train, "chat": chat}[options.role](options.model, options.seconds))
        return 0
    found = {
        f"{role}, {threads} thread{'s' * (threads > 1)}": measure({role: threads}, options.model, options.seconds)[role]
        for role in ("train", "chat")
        for threads in (2, 1)
    }
    with tempfile.NamedTemporaryFile() as lock:
        both = measure({"train": 0, "chat": 0}, options.model, options.seconds, lock.name)
    found |= {f"{role}, together": speed for role, speed in both.items()}
    share = {role: speed / found[f"{role}, 1 thread"] for role, speed in both.items()}
    print("| what | tokens/s |\n| --- | --- |")
    for name, speed in found.items():
        print(f"| {name} | {speed:.1f} |")
    print(json.dumps({"tokens_per_s": found, "share_of_one_core": share}))
    return 0 if min(share.values()) >= 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
