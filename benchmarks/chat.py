"""Chat on two cores: how soon an answer begins and how fast it grows, alone, for three people at once, beside a run.

    python -m benchmarks.chat [--model M] [--tokens 64] [--repeats 2]

Through the app's own code: answers are written by `labeler.answers` into a real workspace, three checkpoints (random
adapters, rank 16) answer three people at once on one base, and a real DPO run is started by the worker. First token:
from the question to the first token, in seconds (the slowest of all). Tokens a second: of each answer, from its first
token to its last. Prints one JSON line; exits with 1 where, alone, the first token takes over 1 s or fewer than 15
tokens/s come.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from labeler import checkpoints, conversations, jobs, new_jobs
from labeler.answers import Answers, Choices
from labeler.chat import Chat, Sampling
from labeler.conversations import Turn
from labeler.rankings import record_comparison
from labeler.users import User, ensure_user, local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from training import run_folder
from training.base import Base
from training.config import DEFAULT_MODEL, DPOConfig

QUESTION = "Tell me a long story about a lighthouse keeper and a whale."
PEOPLE = ("ann", "bob", "cid")
FIRST_TOKEN_SECONDS, TOKENS_PER_SECOND = 1.0, 15.0
"""What one person alone is promised."""


def add_checkpoints(workspace: Workspace, base: Base) -> list[int]:
    """Three policy checkpoints that differ a little from the base and from one another."""
    for number in range(1, 4):
        run_id = f"{number:04d}-dpo"
        path = workspace.runs_folder / run_id / "checkpoints" / "step-000001"
        path.mkdir(parents=True)
        base.new_adapter(run_id, DPOConfig(seed=number))
        for name, parameter in base.model.named_parameters():
            if f".{run_id}." in name and "lora_B" in name:
                parameter.data.normal_(std=0.002)
        base.save_adapter(run_id, path)
        manifest = {"kind": "policy", "step": 1, "base_model": {"name": workspace.base_model}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        checkpoints.register_run(workspace, run_id, workspace.base_checkpoint_id)
    return [found.id for found in checkpoints.list_checkpoints(workspace, ["policy"])]


def add_rankings(workspace: Workspace, user: User, count: int) -> None:
    """What the run learns from: pairs of answers of about 100 tokens."""
    for number in range(count):
        answers = [f"{start} {'and then we walked on, ' * 18}{number}." for start in ("First", "Well")]
        record_comparison(
            workspace.store, user, [{"role": "user", "content": f"Tell story {number}."}],
            [(text, None, {}) for text in answers], [1, 2], event_id=str(uuid.uuid4()),
        )  # fmt: skip


def measure(answers: Answers, asked: Sequence[tuple[User, int]], tokens: int, seed: int) -> list[Turn]:
    """Let each of the people ask the checkpoint beside them, all at once; the answers."""
    sampling = Sampling(max_new_tokens=tokens, seed=seed, temperature=1.0)
    numbers = [answers.ask(user, QUESTION, None, Choices(checkpoint, sampling=sampling)) for user, checkpoint in asked]
    found = []
    for (user, _), number in zip(asked, numbers, strict=True):
        while answers.find(number) is not None:
            time.sleep(0.01)
        end = conversations.get(answers.store.db, user, number)
        found.append(end.turns[end.leaf_id or 0])
    return found


def figures(turns: Sequence[Turn]) -> dict[str, Any]:
    """The slowest first token, and the range of the speeds."""
    speeds = [(turn.num_tokens - 1) / turn.seconds for turn in turns if turn.num_tokens and turn.seconds]
    return {
        "answers": len(speeds),
        "first_token_seconds": round(max(turn.first_token_seconds or 0 for turn in turns), 2),
        "tokens_per_second": [round(min(speeds), 1), round(max(speeds), 1)],
    }


def beside_a_run(workspace: Workspace, owner: User, ask: Any) -> dict[str, Any]:
    """What `ask` measures while a DPO run learns, and the run's steps a minute meanwhile."""
    worker = Worker(workspace)
    worker.start()
    try:
        job_id = new_jobs.create(
            workspace, owner, "dpo", {"max_steps": 10_000, "eval_every": 5_000, "save_every": 5_000}
        )
        folder = workspace.runs_folder / job_id
        while _steps(folder) < 2:
            if jobs.get(workspace.store, job_id).state not in jobs.OPEN_STATES:
                raise SystemExit(f"error: the run ended; see {folder / 'log.txt'}")
            time.sleep(0.5)
        before, started = _steps(folder), time.monotonic()
        found = ask()
        minutes = (time.monotonic() - started) / 60
        found |= {"steps_per_minute": round((_steps(folder) - before) / minutes, 1)}
        pid = jobs.get(workspace.store, job_id).pid
    finally:
        worker.stop()
    if pid:
        psutil.Process(pid).kill()
    return found


def _steps(folder: Path) -> int:
    try:
        return len(run_folder.read_metrics(folder))
    except OSError:
        return 0


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workspace = open_workspace(Path(folder) / "workspace", options.model, seed_file=None)
        owner = local_owner(workspace.store)
        add_rankings(workspace, owner, 40)
        with workspace.store.write() as db:
            people = [ensure_user(db, name) for name in PEOPLE]
        chat, started = Chat(workspace), time.monotonic()
        base = chat.base()
        found: dict[str, Any] = {
            "model": Path(options.model).name,
            "load_seconds": round(time.monotonic() - started, 1),
        }
        policies = add_checkpoints(workspace, base)
        answers = Answers(chat)
        one, three = [(people[0], policies[0])], list(zip(people, policies, strict=True))

        def asked(who: Sequence[tuple[User, int]]) -> dict[str, Any]:
            return figures([turn for n in range(options.repeats) for turn in measure(answers, who, options.tokens, n)])

        found["alone"] = asked(one)
        found["three_at_once"] = asked(three)
        found["beside_a_run"] = beside_a_run(workspace, owner, lambda: {"alone": asked(one), "three": asked(three)})
        found["memory_mb"] = round(psutil.Process().memory_info().rss / 2**20)
        workspace.store.close()
    print(json.dumps(found))
    alone = found["alone"]
    return int(alone["first_token_seconds"] > FIRST_TOKEN_SECONDS or alone["tokens_per_second"][0] < TOKENS_PER_SECOND)


if __name__ == "__main__":
    sys.exit(main())
