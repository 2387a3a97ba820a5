"""Known answers before real work: who has shown that they read the guidelines.

A project with `qualification` = n gives each new annotator n tasks with known answers first. The share of pairs that
they ordered as known (a tie is an order of its own) must reach the pass mark. Who passed stays so, whatever the lead
changes later; who fell short asks the lead, who lets them in or lets them try again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sqlite_utils import Database

from data.records import InputError
from labeler.projects import LEADS, Project, check_lead, get_project
from labeler.store import Row, Store, one, rows, scalar
from labeler.users import User

Ranks = Sequence[int | None]


@dataclass(frozen=True)
class Status:
    """How far somebody is: `done` of `needed` tasks, `agreement` (0 to 1, None before the first) over `pairs` pairs."""

    needed: int
    done: int
    agreement: float | None
    passed: bool
    pairs: int = 0

    @property
    def failed(self) -> bool:
        """All answered, and too many otherwise than known."""
        return not self.passed and self.done >= self.needed


def agreed_pairs(known: Ranks, given: Ranks) -> tuple[int, int]:
    """(pairs ordered as known, pairs that the known answer orders or ties). A pair left unranked is not as known."""
    agreed = pairs = 0
    for i, j in combinations(range(len(known)), 2):
        sign = _sign(known[i], known[j])
        if sign is not None:
            pairs += 1
            agreed += sign == _sign(given[i], given[j])
    return agreed, pairs


def _sign(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else (first > second) - (first < second)


def status(db: Database, user: User, project: Project) -> Status:
    """Where this person stands; leads never need to qualify."""
    if not project.qualification or user.role in LEADS:
        return Status(project.qualification, 0, None, True)
    sql = "SELECT passed, after_assignment FROM qualifications WHERE user_id = ? AND project_id = ?"
    decided = one(db, sql, [user.id, project.id])
    answers = rows(
        db,
        """SELECT t.gold_ranks, r.ranks FROM tasks AS t INDEXED BY tasks_gold
            CROSS JOIN assignments AS a ON a.task_id = t.id AND a.user_id = :user AND a.purpose = 'label'
            LEFT JOIN latest_rankings AS r ON r.assignment_id = a.id
           WHERE t.project_id = :project AND t.gold_ranks IS NOT NULL AND a.state IN ('submitted', 'skipped')
                AND a.id > :after ORDER BY a.id LIMIT :needed""",
        {
            "user": user.id,
            "project": project.id,
            "after": decided["after_assignment"] if decided else 0,
            "needed": project.qualification,
        },
    )
    agreed = pairs = 0
    for row in answers:
        known = json.loads(row["gold_ranks"])
        counted = agreed_pairs(known, json.loads(row["ranks"]) if row["ranks"] else [None] * len(known))
        agreed, pairs = agreed + counted[0], pairs + counted[1]
    agreement = agreed / pairs if pairs else None
    reached = len(answers) >= project.qualification and (agreement or 0.0) >= project.pass_mark
    passed = bool(decided and decided["passed"]) or reached
    return Status(project.qualification, len(answers), agreement, passed, pairs)


def may_work(db: Database, user: User, project: Project) -> bool:
    """True for real work, False while known answers come first. Remembers who passed. Call inside `write`.

    Raises InputError where somebody fell short.
    """
    if not project.qualification or user.role in LEADS:
        return True
    sql = "SELECT passed FROM qualifications WHERE user_id = ? AND project_id = ?"
    if scalar(db, sql, [user.id, project.id]):
        return True
    found = status(db, user, project)
    if found.failed:
        raise InputError(
            f"You ordered {found.agreement or 0:.0%} of {found.pairs} pairs as the known answers of {project.name!r} "
            f"do; {project.pass_mark:.0%} are asked for. Read the guidelines again and ask the project's lead, "
            "who can let you try again or let you in."
        )
    if found.passed:
        db.execute(
            "INSERT INTO qualifications (user_id, project_id, passed) VALUES (?, ?, 1)"
            " ON CONFLICT DO UPDATE SET passed = 1, decided_by = NULL",
            [user.id, project.id],
        )
    return found.passed


def let_in(store: Store, lead: User, user_id: int, project_id: int) -> None:
    """This person may work in the project whatever they answered."""
    _decide(store, lead, user_id, project_id, passed=True)


def reset(store: Store, lead: User, user_id: int, project_id: int) -> None:
    """This person qualifies anew, with known answers that they have not seen.

    Raises InputError where too few are left.
    """
    check_lead(lead)
    project = get_project(store.db, project_id)
    fresh = scalar(
        store.db,
        """SELECT count(*) FROM tasks AS t WHERE t.project_id = ? AND t.gold_ranks IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM assignments WHERE task_id = t.id AND user_id = ? AND purpose = 'label')""",
        [project_id, user_id],
    )
    if fresh < project.qualification:
        raise InputError(
            f"they have not seen {fresh} of the known answers, and {project.qualification} are needed; "
            "mark more tasks as known answers, or let them in"
        )
    _decide(store, lead, user_id, project_id, passed=False)


def _decide(store: Store, lead: User, user_id: int, project_id: int, passed: bool) -> None:
    check_lead(lead)
    with store.write() as db:
        get_project(db, project_id)
        if one(db, "SELECT 1 FROM users WHERE id = ?", [user_id]) is None:
            raise InputError(f"there is no user {user_id}")
        db.execute(
            """INSERT INTO qualifications (user_id, project_id, passed, after_assignment, decided_by)
               VALUES (:user, :project, :passed, (SELECT coalesce(max(id), 0) FROM assignments), :lead)
               ON CONFLICT DO UPDATE SET passed = excluded.passed, after_assignment = excluded.after_assignment,
                   decided_by = excluded.decided_by, decided_at = excluded.decided_at""",
            {"user": user_id, "project": project_id, "passed": int(passed), "lead": lead.id},
        )


def everybody(db: Database, project: Project) -> list[tuple[Row, Status]]:
    """Annotators who were given known answers of this project or decided upon, and where they stand."""
    people = rows(
        db,
        """SELECT id, name, role FROM users WHERE id IN (SELECT a.user_id FROM tasks AS t INDEXED BY tasks_gold
                CROSS JOIN assignments AS a ON a.task_id = t.id
                WHERE t.project_id = :project AND t.gold_ranks IS NOT NULL)
            OR id IN (SELECT user_id FROM qualifications WHERE project_id = :project) ORDER BY name""",
        {"project": project.id},
    )
    return [(person, status(db, User(**person), project)) for person in people if person["role"] not in LEADS]
