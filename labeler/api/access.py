"""Who asks, what they may do, and what the operations share: texts, numbers, pages and refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, HTTPException, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from data.records import InputError, Message
from labeler import auth, tokens
from labeler.erasure import ERASERS
from labeler.projects import LEADS
from labeler.store import Store
from labeler.ui.data import KEEPERS
from labeler.ui.page import TRAINERS
from labeler.ui.quality import READERS
from labeler.users import User
from labeler.workspace import Workspace

LARGEST = 2**63 - 1
"""The largest number that the database holds."""

T = TypeVar("T")


class Body(BaseModel):
    """What is sent: a field that is not known, or of another type, is a mistake and said to be one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """What was wrong and what to do, in one sentence."""

    detail: str


class Turn(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str


class Page(BaseModel, Generic[T]):
    """A part of a list; send `next_cursor` back as `cursor` for what follows. It is null at the end."""

    items: list[T]
    next_cursor: int | None


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request is not readable.",
        401: "No valid token and no session.",
        403: "You may not do this.",
        404: "There is no such thing, or it is not yours.",
        409: "It is not in a state in which this can be done.",
        413: "Too large.",
        421: "Asked under a foreign name where no login is set up.",
        422: "What was sent cannot be meant.",
        503: "The database cannot be used now.",
    }.items()
}

# SQLite ends a text at NUL in places, and nobody types one
NO_NUL = r"^[^\x00]*$"
Text = Annotated[str, Field(max_length=1_000_000, pattern=NO_NUL)]
Line = Annotated[str, Field(max_length=1_000, pattern=NO_NUL)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)]
Identifier = Annotated[int, Field(ge=1, le=LARGEST)]
Id = Annotated[int, Path(ge=1, le=LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Cursor = Annotated[int, Query(ge=0, le=LARGEST, description="next_cursor of the page before")]
Limit = Annotated[int, Query(ge=1, le=200)]


class NewTurn(Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


Turns = Annotated[list[NewTurn], Field(min_length=1, max_length=1000)]


def conversation(turns: Sequence[NewTurn]) -> list[Message]:
    """What was sent, as the store takes it."""
    return [Message(role=turn.role, content=turn.content) for turn in turns]


_scheme = HTTPBearer(auto_error=False, description="A personal API token; on the pages' own site a session will do.")


async def here(request: Request) -> Workspace:
    """The workspace that is served."""
    return request.app.state.workspace


async def caller(request: Request, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]) -> User:
    """Who asks: the token's owner, else the session's, else the local owner where no login is needed.

    The Guard in web.py has looked at the request's origin before: other sites cannot use a session.
    """
    store: Store = request.app.state.workspace.store
    request.state.by_token = shown is not None
    if shown is None:
        user = auth.user_of(store, request.cookies)
        if user is not None:
            return user
        raise _unknown("log in first, or send Authorization: Bearer TOKEN")
    found = tokens.bearer(store, shown.credentials)
    if found is None:
        raise _unknown("this token is unknown, expired or revoked; make a new one")
    if found.note_use:
        await run_in_threadpool(tokens.note_use, store, found.token_id)
    return found.user


def _unknown(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


Space = Annotated[Workspace, Depends(here)]
Caller = Annotated[User, Depends(caller)]


def only(roles: Sequence[str], what: str) -> Callable[[User], Awaitable[User]]:
    """A dependency: the caller, if they have one of the roles."""

    async def check(user: Caller) -> User:
        if user.role not in roles:
            raise HTTPException(403, f"{user.name} may not {what}; ask a {' or '.join(roles)}")
        return user

    return check


Lead = Annotated[User, Depends(only(LEADS, "change projects or see who works here"))]
Keeper = Annotated[User, Depends(only(KEEPERS, "see or move everybody's data"))]
Reader = Annotated[User, Depends(only(READERS, "see how others rank"))]
Eraser = Annotated[User, Depends(only(ERASERS, "delete a person's data"))]
Trainer = Annotated[User, Depends(only(TRAINERS, "start or stop runs"))]


async def in_person(request: Request, user: Caller) -> User:
    """The caller, if they came with a session: a token that leaked must not make others that outlive it."""
    if request.state.by_token:
        raise HTTPException(403, "a token cannot make or list tokens; use a session or python -m labeler token")
    return user


InPerson = Annotated[User, Depends(in_person)]


@contextmanager
def refused(status: int) -> Iterator[None]:
    """An InputError inside becomes an answer with this status."""
    try:
        yield
    except InputError as error:
        raise HTTPException(status, str(error)) from None


def page(found: Sequence[T], limit: int, cursor_of: Callable[[T], int]) -> Page[T]:
    """A page from rows of which one more than `limit` was asked for."""
    items = list(found[:limit])
    return Page(items=items, next_cursor=cursor_of(items[-1]) if len(found) > limit else None)
