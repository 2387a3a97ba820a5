"""Conversations as they are kept: trees of turns. A version of an answer and a branch are both another child.

A conversation belongs to its user: whoever else asks is told that there is none. The shown branch is the way from the
first turn to `leaf_id`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler.chat import conversation as with_system_prompt
from labeler.store import Row, Store, one, rows
from labeler.users import User

MAX_TITLE = 100
MAX_TEXT = 100_000
WHOLE = ("stop", "length")
"""How an answer ends that came to its end; "stopped" and "interrupted" ones did not."""


@dataclass(frozen=True)
class Turn:
    """One message. `settings` of an answer: system_prompt, checkpoint (its name), and how it was sampled.

    `finish_reason` is None for questions, and for an answer that is being written.
    """

    id: int
    conversation_id: int
    parent_id: int | None
    role: str
    text: str
    checkpoint_id: int | None
    settings: dict[str, Any]
    num_tokens: int | None
    first_token_seconds: float | None
    seconds: float | None
    finish_reason: str | None
    created_at: float


@dataclass(frozen=True)
class Conversation:
    """A whole conversation. `settings` are what the person chose last."""

    id: int
    title: str
    settings: dict[str, Any]
    leaf_id: int | None
    created_at: float
    turns: dict[int, Turn]

    def branch(self, leaf_id: int | None) -> list[Turn]:
        """The turns from the first one to this one."""
        found = []
        while leaf_id is not None:
            found.append(self.turns[leaf_id])
            leaf_id = found[-1].parent_id
        return found[::-1]

    def versions(self, turn: Turn) -> list[Turn]:
        """The turn and those that stand in its place in other branches, oldest first."""
        return [each for each in self.turns.values() if each.parent_id == turn.parent_id]

    def end(self, turn_id: int) -> int:
        """The newest turn that came of this one; nothing follows it."""
        within = {turn_id}
        for each in self.turns.values():
            if each.parent_id in within:
                within.add(each.id)
        return max(within)

    def prompt(self, turn: Turn, system_prompt: str) -> list[Message]:
        """What the model is given to answer `turn`."""
        said = [Message(role=each.role, content=each.text) for each in self.branch(turn.id)]
        return with_system_prompt(said, system_prompt)


def list_conversations(store: Store, user: User) -> list[tuple[int, str]]:
    """(id, title), the last opened first."""
    sql = "SELECT id, title FROM conversations WHERE user_id = ? ORDER BY opened_at DESC, id DESC"
    return [(row["id"], row["title"]) for row in rows(store.db, sql, [user.id])]


def get(db: Database, user: User, conversation_id: int) -> Conversation:
    """Raises InputError where this person has no such conversation."""
    row = one(db, "SELECT * FROM conversations WHERE id = ? AND user_id = ?", [conversation_id, user.id])
    if row is None:
        raise InputError("this conversation is gone or is not yours; choose another one")
    turns = rows(db, "SELECT * FROM turns WHERE conversation_id = ? ORDER BY id", [conversation_id])
    return Conversation(
        row["id"],
        row["title"],
        json.loads(row["settings"]),
        row["leaf_id"],
        row["created_at"],
        {turn["id"]: Turn(**{**turn, "settings": json.loads(turn["settings"])}) for turn in turns},
    )


def of_turn(db: Database, user: User, turn_id: int) -> tuple[Conversation, Turn]:
    """A turn and its conversation. Raises InputError where this person has no such turn."""
    row = one(db, "SELECT conversation_id FROM turns WHERE id = ?", [turn_id])
    if row is None:
        raise InputError("this turn is gone; reload the page")
    found = get(db, user, row["conversation_id"])
    return found, found.turns[turn_id]


def open_conversation(store: Store, user: User, conversation_id: int) -> None:
    """Note that this is the conversation somebody looks at: it is the one a reload shows."""
    with store.write() as db:
        get(db, user, conversation_id)
        db.execute("UPDATE conversations SET opened_at = ? WHERE id = ?", [time.time(), conversation_id])


def ask(db: Database, user: User, text: str, conversation_id: int | None, replaces: Turn | None = None) -> int:
    """Add a question at the end of the shown branch, or another version of the question `replaces`; its turn's id.

    Without a conversation a new one begins. A question that has no answer yet is replaced by the next one.
    """
    text = text.strip()
    if not 1 <= len(text) <= MAX_TEXT:
        raise InputError("Write a message first." if not text else f"keep a message under {MAX_TEXT:,} characters")
    if conversation_id is None:
        title = " ".join(text.split())[:60]
        conversation_id = _insert(db, "conversations", {"user_id": user.id, "title": title})
    found = get(db, user, conversation_id)
    last = None if found.leaf_id is None else found.turns[found.leaf_id]
    if replaces is None and last is not None and last.role == "user":
        replaces = last
    parent_id = replaces.parent_id if replaces else found.leaf_id
    return _add_turn(db, {"conversation_id": found.id, "parent_id": parent_id, "role": "user", "text": text})


def begin_answer(
    db: Database, question: Turn, checkpoint_id: int, settings: dict[str, Any], choices: dict[str, Any]
) -> int:
    """Add an empty answer to `question`; its turn's id. `choices` are kept for the next answer."""
    now = json.dumps(choices, ensure_ascii=False)
    db.execute(
        "UPDATE conversations SET settings = ?, opened_at = ? WHERE id = ?",
        [now, time.time(), question.conversation_id],
    )
    return _add_turn(
        db,
        {
            "conversation_id": question.conversation_id,
            "parent_id": question.id,
            "role": "assistant",
            "text": "",
            "checkpoint_id": checkpoint_id,
            "settings": json.dumps(settings, ensure_ascii=False),
        },
    )


def _add_turn(db: Database, values: Row) -> int:
    turn_id = _insert(db, "turns", values)
    db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", [turn_id, values["conversation_id"]])
    return turn_id


def _insert(db: Database, table: str, values: Row) -> int:
    marks = ", ".join("?" for _ in values)
    cursor = db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))
    return int(cursor.lastrowid or 0)


def save_answer(
    store: Store,
    turn_id: int,
    text: str,
    num_tokens: int,
    first_token_seconds: float | None,
    seconds: float | None,
    finish_reason: str | None,
) -> None:
    """Keep an answer as far as it has come."""
    with store.write() as db:
        db.execute(
            "UPDATE turns SET text = ?, num_tokens = ?, first_token_seconds = ?, seconds = ?, finish_reason = ?"
            " WHERE id = ?",
            [text, num_tokens, first_token_seconds, seconds, finish_reason, turn_id],
        )


def drop_answer(store: Store, turn_id: int) -> None:
    """Forget an answer of which nothing came; its question is the end of the branch again."""
    with store.write() as db:
        db.execute(
            "UPDATE conversations SET leaf_id = (SELECT parent_id FROM turns WHERE id = :turn) WHERE leaf_id = :turn",
            {"turn": turn_id},
        )
        db.execute("DELETE FROM turns WHERE id = ?", [turn_id])


def close_interrupted(store: Store) -> None:
    """Mark the answers that nobody writes any more, since the app ended, and forget those of which nothing came; for
    its next start."""
    sql = "SELECT id FROM turns WHERE role = 'assistant' AND finish_reason IS NULL AND text = ''"
    for row in rows(store.db, sql):
        drop_answer(store, row["id"])
    with store.write() as db:
        db.execute("UPDATE turns SET finish_reason = 'interrupted' WHERE role = 'assistant' AND finish_reason IS NULL")


def save_score(store: Store, turn_id: int, checkpoint_id: int, score: float) -> None:
    """Keep a reward model's score of an answer, where the answer was not deleted meanwhile."""
    with store.write() as db:
        db.execute(
            "INSERT INTO turn_scores SELECT id, ?, ? FROM turns WHERE id = ?"
            " ON CONFLICT DO UPDATE SET score = excluded.score",
            [checkpoint_id, score, turn_id],
        )


def scores(db: Database, conversation_id: int) -> dict[int, dict[int, float]]:
    """Scores by turn and by reward model."""
    found: dict[int, dict[int, float]] = {}
    for row in rows(
        db, "SELECT s.* FROM turn_scores AS s JOIN turns AS t ON t.id = s.turn_id WHERE conversation_id = ?",
        [conversation_id],
    ):  # fmt: skip
        found.setdefault(row["turn_id"], {})[row["checkpoint_id"]] = row["score"]
    return found


def choose(store: Store, user: User, turn_id: int) -> int:
    """Show the newest branch through this turn; the conversation's id."""
    with store.write() as db:
        found, _ = of_turn(db, user, turn_id)
        db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", [found.end(turn_id), found.id])
    return found.id


def rename(store: Store, user: User, conversation_id: int, title: str) -> None:
    """Give it another title."""
    title = " ".join(title.split())
    if not 1 <= len(title) <= MAX_TITLE:
        raise InputError(f"a title has 1 to {MAX_TITLE} characters")
    with store.write() as db:
        get(db, user, conversation_id)
        db.execute("UPDATE conversations SET title = ? WHERE id = ?", [title, conversation_id])


def delete(store: Store, user: User, conversation_id: int) -> None:
    """Delete it with all branches. What was sent as a preference stays one."""
    with store.write() as db:
        get(db, user, conversation_id)
        db.execute("DELETE FROM conversations WHERE id = ?", [conversation_id])


def export(store: Store, user: User, conversation_id: int) -> dict[str, Any]:
    """The conversation as JSON: `messages` is the shown branch as chat messages, `turns` is everything."""
    found, scored = get(store.db, user, conversation_id), scores(store.db, conversation_id)
    names = {row["id"]: row["name"] for row in rows(store.db, "SELECT id, name FROM checkpoints WHERE kind = 'reward'")}
    shown = found.branch(found.leaf_id)
    system = shown[-1].settings.get("system_prompt", "") if shown else ""
    turns: Sequence[dict[str, Any]] = [
        {
            **{key: value for key, value in vars(turn).items() if key not in ("conversation_id", "checkpoint_id")},
            "scores": {names[reward]: score for reward, score in scored.get(turn.id, {}).items()},
        }
        for turn in found.turns.values()
    ]
    return {
        "title": found.title,
        "created_at": found.created_at,
        "messages": found.prompt(shown[-1], system) if shown else [],
        "turns": list(turns),
    }


def presets(store: Store, user: User) -> dict[str, str]:
    """This person's system prompts by name."""
    sql = "SELECT name, text FROM system_prompts WHERE user_id = ? ORDER BY name"
    return {row["name"]: row["text"] for row in rows(store.db, sql, [user.id])}


def save_preset(store: Store, user: User, name: str, text: str) -> None:
    """Keep a system prompt under a name; an empty text takes it away."""
    name, text = " ".join(name.split()), text.strip()
    if not 1 <= len(name) <= MAX_TITLE or len(text) > MAX_TEXT:
        raise InputError(f"give the system prompt a name of 1 to {MAX_TITLE} characters")
    with store.write() as db:
        db.execute("DELETE FROM system_prompts WHERE user_id = ? AND name = ?", [user.id, name])
        if text:
            db.execute("INSERT INTO system_prompts (user_id, name, text) VALUES (?, ?, ?)", [user.id, name, text])
