"""Known answers: tasks that test annotators. They are mixed in (mixing.py), qualify (qualification.py), and are never
learned from."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlite_utils import Database

from data.records import InputError
from labeler import tasks
from labeler.events import check_ranks
from labeler.projects import check_lead
from labeler.store import Row, Store, one, rows
from labeler.users import User


def set_gold(store: Store, user: User, task_id: int, ranks: Sequence[int | None] | None) -> None:
    """Make a task one with a known answer, or (None) an ordinary one again.

    `ranks` stand in the task's own order (task_completions.position), and must say something of a pair. What was said
    of the task before tests people from now on, and is learned from no more. Raises InputError.
    """
    check_lead(user)
    with store.write() as db:
        count = len(tasks.completion_ids(db, task_id))
        if not count or one(db, "SELECT 1 FROM tasks WHERE id = ? AND project_id IS NOT NULL", [task_id]) is None:
            raise InputError(f"there is no task {task_id} in any project; look its number up in the Data tab")
        known = None if ranks is None else json.dumps(check_ranks(ranks, count, all_bad=False))
        db.execute("UPDATE tasks SET gold_ranks = ? WHERE id = ?", [known, task_id])


def set_gold_as_ranked(store: Store, user: User, task_id: int) -> list[int | None]:
    """Make the adjudicated ranking of a task, or else this lead's own, its known answer; the ranks."""
    check_lead(user)
    with store.write() as db:
        row = one(
            db,
            """SELECT ranks, all_bad FROM latest_rankings
               WHERE task_id = ? AND (purpose = 'adjudicate' OR (user_id = ? AND purpose = 'label'))
               ORDER BY purpose = 'adjudicate' DESC, event_id DESC LIMIT 1""",
            [task_id, user.id],
        )
        if row is None or row["all_bad"]:
            raise InputError(
                "nobody adjudicated this task and you have not ranked it; rank it first, or type the ranks"
            )
        ranks: list[int | None] = json.loads(row["ranks"])
        set_gold(store, user, task_id, ranks)
        return ranks


def gold_tasks(db: Database, project_id: int) -> list[Row]:
    """The tasks with known answers: id, gold_ranks (JSON), messages (JSON), answers (how many people submitted one)."""
    return rows(
        db,
        """SELECT t.id, t.gold_ranks, p.messages, (SELECT count(*) FROM assignments AS a
               WHERE a.task_id = t.id AND a.state = 'submitted' AND a.purpose = 'label') AS answers
           FROM tasks AS t INDEXED BY tasks_gold JOIN prompts AS p ON p.id = t.prompt_id
           WHERE t.project_id = ? AND t.gold_ranks IS NOT NULL ORDER BY t.id""",
        [project_id],
    )


def candidates(db: Database, user: User, project_id: int, limit: int = 50) -> list[Row]:
    """Tasks of this project whose ranking could become a known answer: adjudicated ones and this lead's own latest."""
    return rows(
        db,
        """SELECT t.id, p.messages, max(r.event_id) AS event_id, max(r.purpose = 'adjudicate') AS adjudicated
           FROM (SELECT * FROM (SELECT id, task_id FROM assignments
                       WHERE user_id = :user AND state = 'submitted' ORDER BY opened_at DESC LIMIT 500)
                   UNION SELECT * FROM (SELECT id, task_id FROM assignments
                       WHERE purpose = 'adjudicate' AND state = 'submitted' ORDER BY opened_at DESC LIMIT 500)) AS a
           JOIN tasks AS t ON t.id = a.task_id JOIN prompts AS p ON p.id = t.prompt_id
           JOIN latest_rankings AS r ON r.assignment_id = a.id
           WHERE t.project_id = :project AND t.gold_ranks IS NULL AND NOT r.all_bad
           GROUP BY t.id ORDER BY max(r.event_id) DESC LIMIT :limit""",
        {"user": user.id, "project": project_id, "limit": limit},
    )
