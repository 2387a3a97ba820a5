"""A sampling's process: python -m labeler.sampling_run --output WORKSPACE/runs/0008-sample

One base in memory, an adapter for each checkpoint. Some prompts at a time are answered by all checkpoints and become
tasks in one transaction, so the store itself says what is done: killed anywhere and started again, it goes on with the
prompts that have no task yet. The random numbers of a sample depend on the seed, the checkpoint, the prompt and its
number alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.formats import read_rows
from data.records import InputError
from labeler import jobs, sampling
from labeler.local_run import Status, main
from labeler.sampling import Answer
from labeler.store import Row, Store
from labeler.workspace import DATABASE_NAME

if TYPE_CHECKING:
    from training.base import Base

BATCH = 32
"""Completions that are sampled at once."""


def run(folder: Path, status: Status) -> dict[str, Any]:
    """Sample what is still missing; what the project holds then."""
    from training.models import load_base
    from training.processes import set_threads

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    store = Store(folder.parent.parent / DATABASE_NAME)
    set_threads(0)
    base = load_base(config["base_model"])
    adapters = {each["id"]: base.attach(each["path"]) if each["path"] else None for each in config["checkpoints"]}
    project_id = sampling.make_project(store, folder.name, config["project"], config["overlap"])
    there = sampling.done(store, project_id)
    every = [row for _, row in read_rows(config["data"])]
    left = [row for row in every if row["id"] not in there]
    if there:
        print(f"going on: {len(there)} of {len(every)} prompts are done", file=sys.stderr)
    readable, started, asked = list(_encoded(base, left, config["max_new_tokens"])), time.monotonic(), 0
    too_long = len(left) - len(readable)
    progress = {"total_steps": len(every), "message": "prompts answered by each checkpoint"}
    status.write("running", step=len(there), **progress)
    size = max(1, BATCH // config["completions_per_checkpoint"])
    for first in range(0, len(readable), size):
        some = readable[first : first + size]
        answers: dict[int, list[Answer]] = {row["id"]: [] for row, _ in some}
        for checkpoint_id, adapter in adapters.items():
            _answer(base, adapter, checkpoint_id, some, config, answers)
        sampling.add_tasks(store, folder.name, project_id, list(answers.items()))
        asked += len(some)
        eta = (time.monotonic() - started) / asked * (len(readable) - asked)
        step = len(there) + asked
        status.write("running", step=step, eta_seconds=eta, **progress)
        print(f"prompts answered: {step} of {len(every)}, {eta:.0f} s left", file=sys.stderr, flush=True)
    made = len(sampling.done(store, project_id))
    if not made:
        raise InputError("no prompt got two different answers; choose others, or sample at a higher temperature")
    number = len(adapters) * config["completions_per_checkpoint"]
    return {
        "tasks": made,
        "completions": made * number,
        "too_long": too_long,
        "all_the_same": len(every) - too_long - made,
    }


def _encoded(base: Base, found: Sequence[Row], max_new_tokens: int) -> Iterator[tuple[Row, list[int]]]:
    """The prompts that the model can read, with their tokens; the others are named in the log."""
    from training.chat_template import encode_prompt

    for row in found:
        try:
            ids = encode_prompt(base, row["prompt"])
            if len(ids) + max_new_tokens > base.context_length:
                raise InputError(f"with its answer it is longer than the model's context of {base.context_length}")
            yield row, ids
        except InputError as error:
            print(f"left out prompt {row['id']}: {error}", file=sys.stderr)


def _answer(
    base: Base,
    adapter: str | None,
    checkpoint_id: int,
    some: Sequence[tuple[Row, list[int]]],
    config: dict[str, Any],
    answers: dict[int, list[Answer]],
) -> None:
    """Add one checkpoint's completions of some prompts to `answers`."""
    from training.chat_template import decode
    from training.generate import sample_all

    settings = {name: config[name] for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    found = sample_all(
        base,
        [ids for _, ids in some],
        adapter=adapter,
        num_completions=config["completions_per_checkpoint"],
        batch_size=BATCH,
        # the checkpoint is in the key: two that hardly differ would say the same from the same numbers
        keys=[(checkpoint_id, row["id"]) for row, _ in some],
        **settings,
    )
    for (row, _), samples in zip(some, found, strict=True):
        answers[row["id"]] += [
            Answer(checkpoint_id, decode(base, s.ids), len(s.ids), s.finish_reason, settings | {"sample": number})
            for number, s in enumerate(samples)
        ]


if __name__ == "__main__":
    sys.exit(main(jobs.SAMPLE, __doc__, run))
