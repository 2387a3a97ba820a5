"""Start the app: settings, the job worker, the server. `python app.py --help` lists the settings."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import socket
import sqlite3
import sys

import uvicorn

from data.records import InputError
from labeler.store import explain
from labeler.web import check_host, create_app
from labeler.worker import Worker
from labeler.workspace import open_workspace
from training.config import DEFAULT_MODEL


class Server(uvicorn.Server):
    """Says so when the page can be opened."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            print(f"Ready: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def settings() -> argparse.Namespace:
    """Flags, else environment variables, else defaults."""
    parser = argparse.ArgumentParser(description="Rank, train, chat.")
    parser.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1", help="HOST; default 127.0.0.1")
    parser.add_argument("--port", default=os.environ.get("PORT") or "7860", help="PORT; default 7860")
    parser.add_argument("--workspace", default=os.environ.get("WORKSPACE") or "workspace", help="WORKSPACE; a folder")
    parser.add_argument("--base-model", default=os.environ.get("BASE_MODEL") or DEFAULT_MODEL, help="BASE_MODEL")
    parser.add_argument(
        "--launcher",
        default=os.environ.get("LAUNCHER") or "",
        help="LAUNCHER; what starts a training run in place of this python: 'accelerate launch --num_processes 2', "
        "'srun python', 'ssh host /path/.venv/bin/python'",
    )
    return parser.parse_args()


def listen(host: str, port: str) -> socket.socket:
    """A listening socket. Raises InputError where the port is no port, taken or forbidden."""
    if not port.isdigit() or int(port) > 65535:
        raise InputError(f"PORT={port} is not a port number; use 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is taken; choose another one: make run PORT={int(port) % 65535 + 1}"
            ) from None
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); set HOST or PORT") from None
    return listener


def main() -> int:
    """Serve until interrupted; returns the exit status."""
    options = settings()
    try:
        listener = listen(options.host, options.port)
        workspace = open_workspace(options.workspace, options.base_model, launcher=options.launcher)
        check_host(workspace, options.host)
        app = create_app(workspace, options.host)
        worker = Worker(workspace)
        worker.start()
    except (InputError, sqlite3.Error, OSError) as error:
        print(f"error: {explain(error) if isinstance(error, sqlite3.Error) else error}", file=sys.stderr)
        return 1
    # open pages hold a connection for as long as they are open: do not wait for them
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    gc.collect()
    gc.freeze()  # what is there from the start stays; to look through it again would hold everybody up for 0.15 s
    try:
        Server(config).run(sockets=[listener])
    finally:
        worker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
