"""Who works here, and the tokens of the person who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from labeler import tokens, users
from labeler.api.access import Body, Caller, Cursor, Id, InPerson, Lead, Limit, Name, Page, Space, page, refused
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
