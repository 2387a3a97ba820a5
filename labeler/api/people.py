"""Who works here, the tokens of the person who asks, and a person's data deleted on request."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from labeler import erasure, tokens, users
from labeler.api.access import (
    Body,
    Caller,
    Cursor,
    Eraser,
    Id,
    InPerson,
    Keeper,
    Lead,
    Limit,
    Name,
    Page,
    Space,
    page,
    refused,
)
from labeler.store import rows, scalar
from labeler.tokens import Token

router = APIRouter(tags=["people"])


class Person(BaseModel):
    """Somebody who may work here."""

    id: int
    name: str
    role: str


class Worker(Person):
    """Somebody who works here, and how many of their rankings are in force."""

    can_log_in: bool
    rankings: int


class NewToken(Body):
    """A token for the program `name`; without `days` it lasts until it is revoked."""

    name: Name
    days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] | None = None


class NamedToken(BaseModel):
    """A new token. `secret` is shown this once."""

    secret: str
    token: Token


class Erase(Body):
    """Whose data: their `name` once more, and what becomes of the `files` of snapshots that held it."""

    name: Name
    files: Literal["delete", "keep"]


class Erased(BaseModel):
    """What was deleted. `clean`: false while deleted bytes may lie in the file; run `python -m labeler clean`."""

    id: int
    counts: dict[str, int]
    clean: bool


class PastErasure(BaseModel):
    """A record that a person's data was deleted, by the user `erased_by`. `cleaned_at` is null until it is clean."""

    id: int
    user_id: int
    erased_by: int | None
    counts: dict[str, int]
    created_at: float
    cleaned_at: float | None


@router.get("/me")
def me(user: Caller) -> Person:
    """Who you are."""
    return Person(id=user.id, name=user.name, role=user.role)


@router.get("/users")
def list_users(space: Space, user: Lead, cursor: Cursor = 0, limit: Limit = 50) -> Page[Worker]:
    """Everybody."""
    names = Worker.model_fields
    found = [Worker(**{name: row[name] for name in names}) for row in users.list_users(space.store)]
    return page([worker for worker in found if worker.id > cursor], limit, lambda worker: worker.id)


@router.get("/tokens")
def list_tokens(space: Space, user: InPerson, cursor: Cursor = 0, limit: Limit = 50) -> Page[Token]:
    """Your tokens, the newest first. Needs a session."""
    found = [token for token in tokens.list_tokens(space.store, user) if not cursor or token.id < cursor]
    return page(found, limit, lambda token: token.id)


@router.post("/tokens", status_code=201)
def create_token(new: NewToken, space: Space, user: InPerson) -> NamedToken:
    """Make a token. Needs a session."""
    secret, token = tokens.create_token(space.store, user, new.name, new.days)
    return NamedToken(secret=secret, token=token)


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(token_id: Id, space: Space, user: Caller) -> None:
    """Make one of your tokens worthless, from the next request on."""
    with refused(404):
        tokens.revoke_token(space.store, user, token_id)


@router.post("/users/{user_id}/erase")
def erase(user_id: Id, what: Erase, space: Space, user: Eraser) -> Erased:
    """Delete what this person said for good: rankings, comments, drafts, written answers, name, login and tokens.

    Everybody waits meanwhile, about a minute for a million rankings. Backups and trained checkpoints are not reached.
    """
    name = scalar(space.store.db, "SELECT name FROM users WHERE id = ?", [user_id])
    if name is None:
        raise HTTPException(404, f"there is no user {user_id}")
    if what.name != name:
        raise HTTPException(422, f"name: user {user_id} has another name; nothing was deleted")
    with refused(409):
        made = erasure.erase(space.store, user, user_id, what.files)
    return Erased(id=made.id, counts=made.counts, clean=made.clean)


@router.get("/erasures")
def list_erasures(space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50) -> Page[PastErasure]:
    """What was deleted, in the order in which it was."""
    names = ", ".join(PastErasure.model_fields)
    sql = f"SELECT {names} FROM erasures WHERE id > ? ORDER BY id LIMIT ?"
    found = rows(space.store.db, sql, [cursor, limit + 1])
    made = [PastErasure(**row | {"counts": json.loads(row["counts"])}) for row in found]
    return page(made, limit, lambda erased: erased.id)
