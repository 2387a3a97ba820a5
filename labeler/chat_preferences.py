"""Two versions of an answer in Chat, one of them better: a ranking like any other, with where it came from."""

from __future__ import annotations

import json
import uuid
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler import conversations, rankings
from labeler.conversations import Conversation, Turn
from labeler.store import Store, one, rows, scalar
from labeler.users import User


def prefer(store: Store, user: User, better_id: int, other_id: int, tie: bool = False) -> int:
    """Store that one version of an answer is better than another, or that they tie; the task's id.

    Saying the same again adds nothing; saying something else of the same pair replaces what was said. Raises
    InputError where the two are not whole answers to the same prompt.
    """
    first_id, second_id = sorted((better_id, other_id))
    ranks: list[int | None] = [1, 1] if tie else [1, 2] if better_id == first_id else [2, 1]
    with store.write() as db:
        found, first = conversations.of_turn(db, user, first_id)
        second = found.turns.get(second_id)
        _check(first, second)
        assert second is not None
        pair = [first_id, second_id]
        task_id = scalar(db, "SELECT task_id FROM turn_preferences WHERE first_id = ? AND second_id = ?", pair)
        if task_id is not None:
            said = one(db, "SELECT ranks FROM latest_rankings WHERE task_id = ? AND user_id = ?", [task_id, user.id])
            if said is None or json.loads(said["ranks"]) != ranks:
                rankings.record_ranking(db, user, task_id, ranks, source="chat", event_id=str(uuid.uuid4()))
            return int(task_id)
        task_id = rankings.record_comparison(
            store,
            user,
            found.prompt(found.turns[first.parent_id or 0], first.settings.get("system_prompt", "")),
            [(turn.text, turn.checkpoint_id, _provenance(turn)) for turn in (first, second)],
            ranks,
            source="chat",
            event_id=str(uuid.uuid4()),
        )
        db.execute("INSERT INTO turn_preferences VALUES (?, ?, ?)", [*pair, task_id])
        return task_id


def _check(first: Turn, second: Turn | None) -> None:
    if second is None or first.id == second.id or first.role != "assistant" or first.parent_id != second.parent_id:
        raise InputError("choose two versions of the same answer")
    if not all(turn.finish_reason in conversations.WHOLE for turn in (first, second)):
        raise InputError("one of them was not written to its end: regenerate it, then say which is better")
    if first.text == second.text:
        raise InputError("the two say the same, so neither is better; regenerate one with another seed or checkpoint")
    if first.settings.get("system_prompt") != second.settings.get("system_prompt"):
        raise InputError("the two were given different system prompts; regenerate one with the other's prompt")


def _provenance(turn: Turn) -> dict[str, Any]:
    sampling = {key: value for key, value in turn.settings.items() if key not in ("system_prompt", "checkpoint")}
    whole = {"num_tokens": turn.num_tokens, "finish_reason": turn.finish_reason}
    return {**sampling, **whole, "blind": False, "conversation": turn.conversation_id, "turn": turn.id}


def said(db: Database, user: User, found: Conversation) -> dict[int, list[tuple[int, str]]]:
    """For each turn what this person said of it and another version, while that is in force: (the other's id, "better",
    "worse" or "tie")."""
    told: dict[int, list[tuple[int, str]]] = {}
    for row in rows(
        db,
        """SELECT p.first_id, p.second_id, l.ranks FROM turn_preferences AS p JOIN turns AS t ON t.id = p.first_id
            JOIN latest_rankings AS l ON l.task_id = p.task_id AND l.user_id = ? WHERE t.conversation_id = ?""",
        [user.id, found.id],
    ):
        first, second = json.loads(row["ranks"])
        words = ("tie", "tie") if first == second else ("better", "worse") if first < second else ("worse", "better")
        told.setdefault(row["first_id"], []).append((row["second_id"], words[0]))
        told.setdefault(row["second_id"], []).append((row["first_id"], words[1]))
    return told
