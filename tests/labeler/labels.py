"""What the tests of labeling share: a small seeded workspace, and rankings as the Rank tab would record them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from labeler import tasks
from labeler.events import Event
from labeler.rankings import record_event
from labeler.users import User, local_owner
from labeler.workspace import Workspace, open_workspace

MODEL = "tiny-model"


def seed_row(number: int) -> dict:
    return {
        "id": f"row-{number}",
        "category": "advice" if number % 2 else "writing",
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "completions": [f"answer {letter} to {number}" for letter in "abcd"],
        "completion_info": [
            {"temperature": 0.7, "seed": seed, "num_tokens": 5, "finish_reason": "stop"} for seed in (1, 2, 3, 4)
        ],
        "model": MODEL,
    }


def make_workspace(folder: Path, count: int) -> Workspace:
    """A workspace seeded with that many tasks of four completions: a, b, c, d."""
    seed = folder / "seed.jsonl"
    seed.write_text("".join(json.dumps(seed_row(number)) + "\n" for number in range(1, count + 1)), encoding="utf-8")
    return open_workspace(folder / "workspace", MODEL, seed)


def new_id() -> str:
    return str(uuid.uuid4())


def rank(
    workspace: Workspace,
    ranks: Sequence[int | None],
    user: User | None = None,
    all_bad: bool = False,
    comment: str = "",
) -> tasks.Assignment:
    """Rank this person's next task; `ranks` are those of completions a, b, c, d, wherever they were shown."""
    user = user or local_owner(workspace.store)
    assignment = tasks.next_assignment(workspace.store, user)
    assert assignment is not None
    by_letter = dict(zip("abcd", ranks, strict=True))
    shown = [by_letter[completion.text.split()[1]] for completion in assignment.completions]
    event = Event(new_id(), assignment.id, "submit", shown, all_bad=all_bad, comment=comment)
    assert record_event(workspace.store, user, event)
    return assignment
