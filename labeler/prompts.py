"""Prompts, and the completions sampled or written for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message, Prompt
from labeler.store import one, scalar


def add_prompt(
    db: Database, messages: Sequence[Message], category: str, source: str, external_id: str | None = None
) -> int:
    """Store a prompt and return its id; the id of the stored one where the same conversation is there already.

    `source` says where it came from: seed, import, compare, chat. Raises InputError for an invalid conversation.
    """
    text, content_hash = stored_form(Prompt(tuple(messages)))
    found = scalar(db, "SELECT id FROM prompts WHERE content_hash = ?", [content_hash])
    if found is not None:
        return int(found)
    if external_id is not None and scalar(db, "SELECT 1 FROM prompts WHERE external_id = ?", [external_id]):
        raise InputError(f"the prompt id {external_id!r} is taken by another conversation; give it a new id")
    cursor = db.execute(
        "INSERT INTO prompts (external_id, messages, content_hash, category, source) VALUES (?, ?, ?, ?, ?)",
        [external_id, text, content_hash, category, source],
    )
    return int(cursor.lastrowid or 0)


def stored_form(prompt: Prompt) -> tuple[str, str]:
    """The conversation as JSON text, and the hash by which it is found again."""
    text = json.dumps([{"role": m["role"], "content": m["content"]} for m in prompt.messages], ensure_ascii=False)
    return text, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def add_completion(
    db: Database,
    prompt_id: int,
    text: str,
    checkpoint_id: int | None,
    sampling: dict[str, Any],
    num_tokens: int | None,
    finish_reason: str | None,
    source: str,
) -> int:
    """Store one completion and return its id.

    `sampling` holds the settings it was drawn with (temperature, top_p, seed, max_new_tokens, ...);
    `finish_reason` is "stop", "length" (cut) or None (unknown).
    """
    cursor = db.execute(
        "INSERT INTO completions (prompt_id, text, checkpoint_id, sampling, num_tokens, finish_reason, source)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [prompt_id, text, checkpoint_id, json.dumps(sampling), num_tokens, finish_reason, source],
    )
    return int(cursor.lastrowid or 0)


def get_messages(db: Database, prompt_id: int) -> list[Message]:
    """The conversation of a stored prompt."""
    row = one(db, "SELECT messages FROM prompts WHERE id = ?", [prompt_id])
    if row is None:
        raise InputError(f"there is no prompt {prompt_id}")
    return json.loads(row["messages"])
