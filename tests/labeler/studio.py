"""What the tests of jobs, worker, chat and compare share: a small workspace with rankings, and bounded patience."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from labeler.rankings import record_comparison
from labeler.users import local_owner
from labeler.workspace import Workspace, open_workspace

T = TypeVar("T")

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")


def small_workspace(folder: Path, base_model: str = "no-model", rankings: int = 4) -> Workspace:
    """A workspace without seed prompts in which somebody ranked two answers to each of a few prompts."""
    workspace = open_workspace(folder, base_model, seed_file=None)
    rank(workspace, rankings)
    return workspace


def rank(workspace: Workspace, count: int) -> None:
    """Add that many rankings of two answers, the first one preferred."""
    for number in range(count):
        record_comparison(
            workspace.store,
            local_owner(workspace.store),
            [{"role": "user", "content": f"Name the number {number}."}],
            [(f"It is {number}.", workspace.base_checkpoint_id, {}), ("Who knows?", workspace.base_checkpoint_id, {})],
            [1, 2],
            event_id=str(uuid.uuid4()),
        )


def wait_for(what: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true value of `what`; fails when there is none within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain; the last value was {value!r}")
        time.sleep(0.05)
