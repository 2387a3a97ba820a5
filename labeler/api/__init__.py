"""The REST interface under /api/v1: what the pages do to data, for programs. docs/api.md shows it in use.

One room a subject: labels (next task, submit), projects, prompts (and completions, tasks), data (import, snapshots),
quality (and adjudication), runs (and checkpoints), people (and tokens, erasure). access.py says who asks and what an
answer looks like when it is no.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.records import InputError
from labeler.api import data, labels, people, projects, prompts, quality, runs
from labeler.api.access import PROBLEMS
from labeler.api.data import MAX_FILE
from labeler.store import explain
from labeler.workspace import Workspace

log = logging.getLogger(__name__)

PATH = "/api/v1"
MAX_BODY = 16 * 2**20
"""Bytes of a request, files to import aside."""

FOLDER = Path(__file__).parent
DESCRIPTION = """Rank model outputs, and move what was ranked, from programs.

Send `Authorization: Bearer TOKEN`; make a token with `python -m labeler token create --user NAME --name PROGRAM`.
Every error is `{"detail": "what was wrong and what to do"}`. Lists come in pages: send `next_cursor` back as `cursor`
until it is null."""


def create_api(workspace: Workspace) -> FastAPI:
    """The application to mount at PATH. It asks for a token or a session itself, in every operation."""
    api = FastAPI(
        title="Preference Loop",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        exception_handlers={
            InputError: _input_error,
            RequestValidationError: _invalid,
            HTTPException: _refused,
            sqlite3.Error: _database_error,
            UnicodeError: _unicode_error,
            Exception: _our_mistake,
        },
    )
    api.add_middleware(BodyLimit)
    api.state.workspace = workspace
    for room in (labels, projects, prompts, data, quality, runs, people):
        api.include_router(room.router, responses=PROBLEMS)
    api.include_router(_pages)
    return api


class BodyLimit:
    """Stops reading a request that is too large, whether or not it said so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = MAX_FILE if scope["path"].endswith("/import") else MAX_BODY
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the request is larger than {limit:,} bytes; send it in parts")
            return message

        await self.app(scope, counted, send)


_pages = APIRouter(include_in_schema=False)


@_pages.get("/docs")
def docs() -> FileResponse:
    """Every operation on one page, made from openapi.json. Nothing on it comes from elsewhere."""
    return FileResponse(FOLDER / "docs.html", media_type="text/html")


@_pages.get("/docs.js")
def docs_script() -> FileResponse:
    return FileResponse(FOLDER / "docs.js", media_type="text/javascript")


_ROUTING = {
    404: f"there is no such operation; {PATH}/docs lists them",
    405: f"this cannot be done here; {PATH}/docs lists what can",
}


def _problem(detail: str, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    # half a surrogate pair may come back in a quotation, and is no UTF-8
    return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status, headers)


async def _input_error(_: Request, error: Exception) -> Response:
    return _problem(str(error), 422)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = _ROUTING.get(error.status_code) if error.detail in ("Not Found", "Method Not Allowed") else None
    return _problem(told or str(error.detail), error.status_code, dict(error.headers or {}))


async def _invalid(_: Request, error: Exception) -> Response:
    """What pydantic found, as one sentence that names the places."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return _problem("the body is not JSON; send one JSON object", 400)
    parts = [f"{'.'.join(str(place)[:60] for place in item['loc'])}: {item['msg']}" for item in found[:5]]
    more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
    return _problem("; ".join(parts) + more, 422)


async def _database_error(_: Request, error: Exception) -> Response:
    log.error("the REST interface could not use the database", exc_info=error)
    return _problem(f"not saved for certain, send it again: {explain(error)}", 503)


async def _unicode_error(_: Request, error: Exception) -> Response:
    return _problem("a text holds half a surrogate pair, which is no Unicode character; send valid UTF-8", 422)


async def _our_mistake(_: Request, error: Exception) -> Response:
    return _problem("something went wrong in the app; its log says what", 500)
