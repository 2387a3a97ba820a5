"""Projects: which question is asked about which tasks, with what guidelines, how often, and who may answer.

Every workspace begins with one project. A task belongs to a project, or to none when it was done as it was made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler.store import Row, Store, one, rows
from labeler.users import User

FIRST = 1
"""The project that every workspace begins with."""

QUESTIONS = {
    "ranking": "put 2 to 9 completions in order",
    "pairwise": "say which of two is better, and by how much",
    "ratings": "give each completion 1 to 5",
}
ORDERS = {
    "queue": "as they were added",
    "random": "each annotator in an order of their own",
    "active": "first where the reward model is least sure",
}
LEADS = ("lead", "owner")
"""Roles that make and change projects, and work in all of them."""

DEFAULT_TAGS = ("helpful", "truthful", "harmless", "fails the instruction", "repetitive")
_COLUMNS = (
    "name", "question", "overlap", "task_order", "gold_rate", "repeat_rate", "qualification", "pass_mark", "tags",
    "for_everybody",
)  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A project as it stands. `guidelines_version` is 0 and `guidelines` empty until somebody writes some."""

    id: int
    name: str
    question: str
    overlap: int
    task_order: str
    gold_rate: float
    repeat_rate: float
    qualification: int
    pass_mark: float
    tags: tuple[str, ...]
    for_everybody: bool
    archived: bool
    guidelines: str
    guidelines_version: int


def get_project(db: Database, project_id: int) -> Project:
    """Raises InputError where there is none."""
    found = _projects(db, "p.id = ?", [project_id])
    if not found:
        raise InputError(f"there is no project {project_id}")
    return found[0]


def all_projects(db: Database) -> list[Project]:
    """Every project, the archived ones last."""
    return _projects(db, "1", [])


def projects_of(db: Database, user: User) -> list[Project]:
    """Those in which this person may work, in the order in which they were made."""
    return _projects(db, *_open_to(user))


def check_member(db: Database, user: User, project_id: int) -> Project:
    """The project, if this person may work in it. Raises InputError otherwise."""
    where, params = _open_to(user)
    found = _projects(db, f"{where} AND p.id = ?", [*params, project_id])
    if not found:
        raise InputError("this project is closed or not open to you; choose another one or ask its lead")
    return found[0]


def _open_to(user: User) -> tuple[str, list[Any]]:
    """The condition for a project `p` in which this person may work, and its parameters."""
    if user.role in LEADS:
        return "p.archived_at IS NULL", []
    member = "EXISTS (SELECT 1 FROM members AS m WHERE m.project_id = p.id AND m.user_id = ?)"
    return f"p.archived_at IS NULL AND (p.for_everybody OR {member})", [user.id]


def create_project(store: Store, user: User, name: str, **settings: Any) -> Project:
    """A new project; `settings` as the columns of `Project`. Raises InputError where one is wrong."""
    check_lead(user)
    values = _check({"name": name, "tags": DEFAULT_TAGS, **settings})
    _check_rates(values.get("gold_rate", 0.0), values.get("repeat_rate", 0.0))
    with store.write() as db:
        _check_name(db, values["name"], besides=0)
        names = [*values, "created_by"]
        cursor = db.execute(
            f"INSERT INTO projects ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [*values.values(), user.id],
        )
        return get_project(db, int(cursor.lastrowid or 0))


def change_project(store: Store, user: User, project_id: int, **changes: Any) -> Project:
    """Change some settings. The overlap is that of tasks added from now on."""
    check_lead(user)
    values = _check(changes)
    with store.write() as db:
        project = get_project(db, project_id)
        _check_rates(values.get("gold_rate", project.gold_rate), values.get("repeat_rate", project.repeat_rate))
        if "name" in values:
            _check_name(db, values["name"], besides=project_id)
        for name, value in values.items():
            db.execute(f"UPDATE projects SET {name} = ? WHERE id = ?", [value, project_id])
        return get_project(db, project_id)


def archive_project(store: Store, user: User, project_id: int, archived: bool = True) -> None:
    """Close a project to annotators, or open it again. Nothing is lost."""
    check_lead(user)
    with store.write() as db:
        get_project(db, project_id)
        db.execute(
            "UPDATE projects SET archived_at = CASE WHEN ? THEN (julianday('now') - 2440587.5) * 86400.0 END"
            " WHERE id = ?",
            [archived, project_id],
        )


def write_guidelines(store: Store, user: User, project_id: int, text: str) -> int:
    """A new version of the guidelines; its number. The same text again is no new version."""
    check_lead(user)
    with store.write() as db:
        project = get_project(db, project_id)
        if text.strip() == project.guidelines:
            return project.guidelines_version
        version = project.guidelines_version + 1
        db.execute(
            "INSERT INTO guidelines (project_id, version, text, created_by) VALUES (?, ?, ?, ?)",
            [project_id, version, text.strip(), user.id],
        )
        return version


def set_members(store: Store, user: User, project_id: int, user_ids: list[int]) -> None:
    """Who may work in a project that is not for everybody."""
    check_lead(user)
    with store.write() as db:
        get_project(db, project_id)
        db.execute("DELETE FROM members WHERE project_id = ?", [project_id])
        for user_id in sorted(set(user_ids)):
            if one(db, "SELECT 1 FROM users WHERE id = ?", [user_id]) is None:
                raise InputError(f"there is no user {user_id}")
            db.execute("INSERT INTO members (project_id, user_id) VALUES (?, ?)", [project_id, user_id])


def members(db: Database, project_id: int) -> list[Row]:
    """The members: id, name, role."""
    sql = "SELECT u.id, u.name, u.role FROM members AS m JOIN users AS u ON u.id = m.user_id WHERE m.project_id = ?"
    return rows(db, f"{sql} ORDER BY u.name", [project_id])


def counts(db: Database) -> dict[int, Row]:
    """Of each project: num_tasks, num_open (ask for more annotators), num_gold, labels (submitted), annotators."""
    found = rows(
        db,
        """SELECT p.id, p.num_tasks, p.num_open, p.num_gold, coalesce(sum(s.done), 0) AS labels,
               count(CASE WHEN s.done > 0 THEN 1 END) AS annotators
           FROM projects AS p LEFT JOIN standings AS s ON s.project_id = p.id GROUP BY p.id""",
    )
    return {row["id"]: row for row in found}


def guidelines_versions(db: Database, project_id: int) -> list[Row]:
    """Every version of the guidelines, the newest first: version, text, created_at, name (of who wrote it)."""
    sql = """SELECT g.version, g.text, g.created_at, u.name FROM guidelines AS g
        LEFT JOIN users AS u ON u.id = g.created_by WHERE g.project_id = ? ORDER BY g.version DESC"""
    return rows(db, sql, [project_id])


def _projects(db: Database, where: str, params: list[Any]) -> list[Project]:
    found = rows(
        db,
        f"""SELECT p.id, {", ".join(f"p.{name}" for name in _COLUMNS)}, p.archived_at IS NOT NULL AS archived,
                coalesce(g.text, '') AS guidelines, coalesce(g.version, 0) AS guidelines_version
            FROM projects AS p LEFT JOIN guidelines AS g ON g.project_id = p.id
                AND g.version = (SELECT max(version) FROM guidelines WHERE project_id = p.id)
            WHERE {where} ORDER BY p.archived_at IS NOT NULL, p.id""",
        params,
    )
    return [
        Project(
            **row
            | {
                "tags": tuple(json.loads(row["tags"])),
                "for_everybody": bool(row["for_everybody"]),
                "archived": bool(row["archived"]),
            }
        )
        for row in found
    ]


def check_lead(user: User) -> None:
    """Raises InputError where this person may not change projects."""
    if user.role not in LEADS:
        raise InputError(f"{user.name} may not change projects; ask a lead")


def _check_rates(gold: float, repeat: float) -> None:
    if gold + repeat > 0.9:
        raise InputError("known answers and repeats together may be at most 0.9 of the tasks; lower one of the rates")


def _check_name(db: Database, name: str, besides: int) -> None:
    if one(db, "SELECT 1 FROM projects WHERE name = ? AND id != ?", [name, besides]):
        raise InputError(f"there is a project called {name!r} already; choose another name")


def _check(settings: dict[str, Any]) -> dict[str, Any]:
    """Values as the table takes them."""
    unknown = sorted(set(settings) - set(_COLUMNS))
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)}; use {', '.join(_COLUMNS)}")
    checked: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "name":
            value = str(value).strip()
            if not 1 <= len(value) <= 100:
                raise InputError("a project's name needs 1 to 100 characters")
        elif name == "question" and value not in QUESTIONS:
            raise InputError(f"unknown question {value!r}; use {', '.join(QUESTIONS)}")
        elif name == "task_order" and value not in ORDERS:
            raise InputError(f"unknown order {value!r}; use {', '.join(ORDERS)}")
        elif name in ("overlap", "qualification"):
            least = 1 if name == "overlap" else 0
            if isinstance(value, bool) or int(value) != value or not least <= value <= 1000:
                raise InputError(f"{name} must be a whole number from {least} to 1000, not {value!r}")
            value = int(value)
        elif name in ("gold_rate", "repeat_rate", "pass_mark"):
            value = float(value)
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be from 0 to 1, not {value}")
        elif name == "tags":
            tags = list(dict.fromkeys(str(tag).strip() for tag in value if str(tag).strip()))
            if len(tags) > 30 or any(len(tag) > 60 for tag in tags):
                raise InputError("at most 30 tags of at most 60 characters")
            value = json.dumps(tags, ensure_ascii=False)
        elif name == "for_everybody":
            value = int(bool(value))
        checked[name] = value
    return checked
