"""Prompts and their completions."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from data.formats import parse_prompt
from data.records import InputError
from labeler import prompts
from labeler.api.access import (
    Body,
    Cursor,
    Id,
    Identifier,
    Keeper,
    Limit,
    Line,
    Name,
    Page,
    Space,
    Text,
    Turn,
    Turns,
    conversation,
    page,
)
from labeler.store import Row, one, rows

router = APIRouter(tags=["prompts"])

MAX_ROWS = 1000
"""Rows of one request; import a file for more."""


class NewPrompt(Body):
    """A prompt: a text, or a conversation that ends with the user. `id` is your own name for it."""

    prompt: Text | Turns
    category: Line = ""
    id: Name | None = None


class NewPrompts(Body):
    """All of them are stored, or none."""

    prompts: list[NewPrompt] = Field(min_length=1, max_length=MAX_ROWS)


class Ids(BaseModel):
    """What is stored now, in the order sent; a prompt that was there already keeps its id."""

    ids: list[int]


class StoredPrompt(BaseModel):
    """A prompt; `external_id` is your own name for it."""

    id: int
    external_id: str | None
    messages: list[Turn]
    category: str
    source: str
    created_at: float


class NewCompletion(Body):
    """One answer. `finish_reason`: stop, length (it was cut) or null (unknown). `num_tokens` counts it in tokens."""

    text: Text
    checkpoint_id: Identifier | None = None
    num_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    finish_reason: Annotated[str, Field(pattern="^(stop|length)$")] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None
    model: Line | None = None


class NewCompletions(Body):
    """All of them are stored, or none. The same text again is another completion."""

    completions: list[NewCompletion] = Field(min_length=1, max_length=MAX_ROWS)


class StoredCompletion(BaseModel):
    """A completion and where it came from."""

    id: int
    prompt_id: int
    text: str
    checkpoint_id: int | None
    sampling: dict[str, Any]
    num_tokens: int | None
    finish_reason: str | None
    source: str
    created_at: float


_PROMPT = "id, external_id, messages, category, source, created_at"


@router.get("/prompts")
def list_prompts(space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50) -> Page[StoredPrompt]:
    """Every prompt, in the order in which they were added."""
    sql = f"SELECT {_PROMPT} FROM prompts WHERE id > ? ORDER BY id LIMIT ?"
    found = rows(space.store.db, sql, [cursor, limit + 1])
    return page([_prompt(row) for row in found], limit, lambda prompt: prompt.id)


@router.post("/prompts", status_code=201)
def create_prompts(new: NewPrompts, space: Space, user: Keeper) -> Ids:
    """Store prompts. Sending them twice stores them once."""
    ids = []
    with space.store.write() as db:
        for number, row in enumerate(new.prompts):
            try:
                prompt = row.prompt if isinstance(row.prompt, str) else conversation(row.prompt)
                messages = parse_prompt(prompt).messages
                ids.append(prompts.add_prompt(db, messages, row.category, "api", row.id))
            except InputError as error:
                raise InputError(f"prompts.{number}: {error}; nothing was stored") from None
    return Ids(ids=ids)


@router.get("/prompts/{prompt_id}")
def get_prompt(prompt_id: Id, space: Space, user: Keeper) -> StoredPrompt:
    """One prompt."""
    row = one(space.store.db, f"SELECT {_PROMPT} FROM prompts WHERE id = ?", [prompt_id])
    if row is None:
        raise _no_prompt(prompt_id)
    return _prompt(row)


@router.get("/prompts/{prompt_id}/completions")
def list_completions(
    prompt_id: Id, space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50
) -> Page[StoredCompletion]:
    """The prompt's completions, in the order in which they were added."""
    get_prompt(prompt_id, space, user)
    names = ", ".join(StoredCompletion.model_fields)
    sql = f"SELECT {names} FROM completions WHERE prompt_id = ? AND id > ? ORDER BY id LIMIT ?"
    found = rows(space.store.db, sql, [prompt_id, cursor, limit + 1])
    made = [StoredCompletion(**row | {"sampling": json.loads(row["sampling"])}) for row in found]
    return page(made, limit, lambda completion: completion.id)


@router.post("/prompts/{prompt_id}/completions", status_code=201)
def create_completions(prompt_id: Id, new: NewCompletions, space: Space, user: Keeper) -> Ids:
    """Store completions of a prompt; make a task of them to have them ranked."""
    ids = []
    with space.store.write() as db:
        if one(db, "SELECT 1 FROM prompts WHERE id = ?", [prompt_id]) is None:
            raise _no_prompt(prompt_id)
        for number, row in enumerate(new.completions):
            if not row.text.strip():
                raise HTTPException(422, f"completions.{number}: the text is empty; nothing was stored")
            known = "SELECT 1 FROM checkpoints WHERE id = ?"
            if row.checkpoint_id and one(db, known, [row.checkpoint_id]) is None:
                raise HTTPException(422, f"completions.{number}: there is no checkpoint {row.checkpoint_id}")
            sampling = row.model_dump(include={"temperature", "seed", "model"}, exclude_none=True)
            ids.append(
                prompts.add_completion(
                    db, prompt_id, row.text, row.checkpoint_id, sampling, row.num_tokens, row.finish_reason, "api"
                )
            )
    return Ids(ids=ids)


def _prompt(row: Row) -> StoredPrompt:
    return StoredPrompt(**row | {"messages": json.loads(row["messages"])})


def _no_prompt(prompt_id: int) -> HTTPException:
    return HTTPException(404, f"there is no prompt {prompt_id}")
