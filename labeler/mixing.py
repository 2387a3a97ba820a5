"""Tasks mixed in to see how well people work: known answers (gold), and tasks that they did before (repeats).

Which of somebody's tasks is one is decided by their position in the project: every STRATUM tasks hold the same number
of each, at places drawn for this person. So a rate is met closely, nobody can count on a place, and how many tasks lie
ahead can be said without telling which of them are real.
"""

from __future__ import annotations

import random

from sqlite_utils import Database

from labeler.projects import Project
from labeler.store import scalar

STRATUM = 200
REPEAT_GAP = 20
"""A repeat shows a task that was at least this many tasks ago,"""
REPEAT_WINDOW = 500
"""and at most this many more."""


def kinds(project: Project, user_id: int, stratum: int) -> list[str]:
    """What the tasks of this stratum are for this person: "label", "gold" or "repeat" each."""
    gold = round(STRATUM * project.gold_rate)
    repeat = round(STRATUM * project.repeat_rate)
    found = ["gold"] * gold + ["repeat"] * repeat
    found += ["label"] * (STRATUM - len(found))
    random.Random(f"{project.id}/{user_id}/{stratum}").shuffle(found)
    return found


def kind_at(project: Project, user_id: int, position: int) -> str:
    """What the task at this position (from 0) is."""
    if not project.gold_rate and not project.repeat_rate:  # a draw would take longer than finding the task
        return "label"
    return kinds(project, user_id, position // STRATUM)[position % STRATUM]


def positions_ahead(project: Project, user_id: int, position: int, real: int, extras: set[str]) -> int:
    """How many tasks, from this position on, until `real` real ones are done. `extras`: kinds there is a supply of."""
    start, per_stratum = position, sum(kind not in extras for kind in kinds(project, user_id, 0))
    if not extras or not per_stratum:
        return real
    while real:
        if position % STRATUM == 0 and real > per_stratum:
            whole = (real - 1) // per_stratum
            position, real = position + whole * STRATUM, real - whole * per_stratum
        for kind in kinds(project, user_id, position // STRATUM)[position % STRATUM :]:
            if not real:
                break
            position, real = position + 1, real - (kind not in extras)
    return position - start


def gold_task(db: Database, user_id: int, project_id: int) -> int | None:
    """A task with a known answer that this person was never given, in an order of their own."""
    factor = random.Random(f"gold/{project_id}/{user_id}").randrange(1, 2**31 - 1)
    found = scalar(
        db,
        """SELECT t.id FROM tasks AS t INDEXED BY tasks_gold WHERE t.project_id = ? AND t.gold_ranks IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM assignments AS mine WHERE mine.task_id = t.id AND mine.user_id = ?
                AND mine.purpose = 'label' AND mine.state != 'released')
           ORDER BY (t.shuffle * ?) % 2147483647, t.id LIMIT 1""",
        [project_id, user_id, factor],
    )
    return None if found is None else int(found)


def repeat_task(db: Database, user_id: int, project_id: int, position: int) -> int | None:
    """A task that this person submitted some while ago and was not asked again."""
    back = random.Random(f"repeat/{project_id}/{user_id}/{position}").randrange(REPEAT_WINDOW)
    earlier = """SELECT a.task_id, row_number() OVER (ORDER BY a.opened_at DESC) AS ago
        FROM (SELECT task_id, opened_at FROM assignments
            WHERE user_id = :user AND state = 'submitted' AND purpose = 'label'
            ORDER BY opened_at DESC LIMIT :window) AS a JOIN tasks AS t ON t.id = a.task_id
        WHERE t.project_id = :project AND t.gold_ranks IS NULL"""
    found = scalar(
        db,
        f"""SELECT task_id FROM ({earlier}) AS e WHERE ago > :gap
            AND NOT EXISTS (SELECT 1 FROM assignments AS again WHERE again.task_id = e.task_id
                AND again.user_id = :user AND again.purpose = 'repeat')
            ORDER BY abs(ago - :gap - 1 - :back), ago LIMIT 1""",
        {
            "user": user_id,
            "project": project_id,
            "gap": REPEAT_GAP,
            "window": REPEAT_GAP + REPEAT_WINDOW,
            # within what there is, so that a short past is not always asked for its oldest task
            "back": back % max(1, min(position - REPEAT_GAP, REPEAT_WINDOW)),
        },
    )
    return None if found is None else int(found)
