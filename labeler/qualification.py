"""Known answers first: how far somebody has come with the tasks that let them into a project."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from labeler.projects import Project
from labeler.store import scalar
from labeler.users import User


@dataclass(frozen=True)
class Status:
    """`needed` and `done` are numbers of tasks, `agreement` a share (None before the first)."""

    needed: int
    done: int
    agreement: float | None
    passed: bool


def status(db: Database, user: User, project: Project) -> Status:
    """Where this person stands. A stand-in: it counts, and does not judge."""
    done = scalar(
        db,
        """SELECT count(*) FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
            WHERE a.user_id = ? AND a.state = 'submitted' AND t.project_id = ? AND t.gold_ranks IS NOT NULL""",
        [user.id, project.id],
    )
    return Status(project.qualification, min(done, project.qualification), None, done >= project.qualification)
