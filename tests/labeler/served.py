"""A team's app behind a real socket, for tests that ask over HTTP, from several threads, or from other processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app import listen
from labeler import tokens
from labeler.users import User, add_user, ensure_user
from labeler.web import create_app
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace

PASSWORD = "correct horse"
API = "/api/v1"


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@dataclass
class Team:
    """A served workspace, and a token for each of its people."""

    workspace: Workspace
    url: str
    users: dict[str, User] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def join(self, name: str, role: str = "annotator") -> None:
        """Somebody with a token and no password."""
        with self.workspace.store.write() as db:
            self.users[name] = ensure_user(db, name, role)
        self.secrets[name], _ = tokens.create_token(self.workspace.store, self.users[name], "test")

    def client(self, name: str | None) -> httpx.Client:
        """Asks in this person's name; None: without a token."""
        headers = {"Authorization": f"Bearer {self.secrets[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def ask(self, name: str | None, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """One request to the API."""
        with self.client(name) as client:
            return client.request(method, f"{API}{path}", json=body, **more)


@contextmanager
def team(folder: Path, tasks: int) -> Iterator[Team]:
    """An app with a user of every role; ann and bob are annotators, and the owner has a password."""
    workspace = make_workspace(folder, tasks)
    add_user(workspace.store, "owner", "owner", PASSWORD)
    with listen("127.0.0.1", "0") as listener:
        server = Server(uvicorn.Config(create_app(workspace), log_level="critical", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert server.listens.wait(60)
        found = Team(workspace, f"http://127.0.0.1:{listener.getsockname()[1]}")
        roles = {"owner": "owner", "lea": "lead", "rex": "researcher", "ann": "annotator", "bob": "annotator"}
        for name, role in roles.items():
            found.join(name, role)
        yield found
        server.should_exit = True
        thread.join(60)
