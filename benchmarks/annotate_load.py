"""Many annotators over the REST interface at once: how long they wait, and whether every task gets what it asks for.

    python -m benchmarks.annotate_load --annotators 50 --rate 100 --seconds 60

Starts the app as a process of its own on a fresh workspace. Each annotator asks for the next task at set moments and
submits half a period later, together `rate` labels a second, whether or not the server keeps up (an open loop): a
latency counts from the moment at which the request was due, so a server that falls behind is not forgiven. Afterwards
everybody works on until nothing is left, and the tasks are counted in the database. Prints one JSON object; exits with
1 where there was an error or a task got more or fewer submissions than its overlap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from labeler import tokens
from labeler.projects import FIRST
from labeler.prompts import add_completion, add_prompt
from labeler.store import rows
from labeler.tasks import create_task
from labeler.users import add_user, ensure_user
from labeler.workspace import Workspace, open_workspace

PROJECT = Path(__file__).resolve().parents[1]
MODEL = "no-model"


def prepare(folder: Path, annotators: int, tasks: int, overlap: int) -> list[str]:
    """A workspace with that many tasks of four completions and people who have tokens; the tokens."""
    workspace = open_workspace(folder, MODEL, seed_file=None)
    add_user(workspace.store, "owner", "owner", uuid.uuid4().hex)  # as in a team: nobody gets in without a key
    with workspace.store.write() as db:
        people = [ensure_user(db, f"annotator-{number}") for number in range(annotators)]
        for number in range(tasks):
            prompt = add_prompt(db, [{"role": "user", "content": f"Question {number}? " * 10}], "", "api")
            texts = [f"Answer {letter} to question {number}. " * 15 for letter in "abcd"]
            ids = [add_completion(db, prompt, text, None, {}, None, "stop", "api") for text in texts]
            create_task(db, prompt, ids, project_id=FIRST, overlap=overlap, source="api")
    return [tokens.create_token(workspace.store, user, "load")[0] for user in people]


def start(folder: Path, profile: Path | None) -> tuple[subprocess.Popen[str], str]:
    """The app on a free port, and its address."""
    program = ["-m", "cProfile", "-o", str(profile), "app.py"] if profile else ["app.py"]
    process = subprocess.Popen(
        [sys.executable, *program, "--workspace", str(folder), "--base-model", MODEL, "--port", "0"],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Ready: "):
            return process, line.split()[1]
    raise SystemExit(f"the app did not start (exit status {process.wait()})")


class Client:
    """One annotator's connection, kept open. Plain HTTP over a stream with the headers that httpx sends: httpx itself
    takes more than half as much of the processor as the server, which has to share it.
    """

    def __init__(self, address: str, secret: str) -> None:
        self.address = urlsplit(address)
        self.headers = (
            f"Host: {self.address.netloc}\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
            f"Connection: keep-alive\r\nUser-Agent: annotate-load\r\nAuthorization: Bearer {secret}\r\n"
        )
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and content of the answer. Raises OSError or EOFError where none came."""
        head, content = f"{method} {path} HTTP/1.1\r\n{self.headers}", b""
        if body is not None:
            content = json.dumps(body).encode()
            head += "Content-Type: application/json\r\n"
        try:
            async with asyncio.timeout(60):
                if self.streams is None or self.streams[0].at_eof():  # the server closes what is idle
                    self.close()
                    self.streams = await asyncio.open_connection(self.address.hostname, self.address.port)
                reader, writer = self.streams
                writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)\r\n", answer, re.IGNORECASE)
                if length is None:
                    raise EOFError("an answer without a length")
                return int(answer.split(maxsplit=2)[1]), await reader.readexactly(int(length[1]))
        except (OSError, EOFError):
            self.close()  # what still comes would be taken for the next answer
            raise

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


class Load:
    """What the annotators did so far: seconds each request took from when it was due, and what went wrong."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {"next": [], "submit": []}
        self.errors: list[str] = []
        self.labels = 0

    async def ask(self, client: Client, what: str, due: float, path: str, body: Any = None) -> Any:
        """The answer to one request that was due at `due` (time.perf_counter), or None."""
        await asyncio.sleep(due - time.perf_counter())
        try:
            status, content = await client.ask("POST", path, body)
        except (OSError, EOFError) as error:
            self.errors.append(f"{what}: {type(error).__name__} {error}")
            return None
        self.took[what].append(time.perf_counter() - due)
        if status != 200:
            self.errors.append(f"{what}: {status} {content.decode()[:200]}")
            return None
        return json.loads(content)

    async def label(self, client: Client, due: float, think: float) -> bool:
        """Ask for a task at `due`, rank it `think` seconds later; False where there was none."""
        found = await self.ask(client, "next", due, f"/api/v1/projects/{FIRST}/next")
        if found is None or found["task"] is None:
            return False
        ranks = random.sample(range(1, 5), 4)
        body = {"uuid": str(uuid.uuid4()), "kind": "submit", "ranks": ranks, "seconds": 1.0}
        path = f"/api/v1/assignments/{found['task']['assignment_id']}/events"
        stored = await self.ask(client, "submit", due + think, path, body)
        self.labels += stored is not None
        return stored is not None


async def drive(address: str, secrets: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """The timed part, then the rest until nothing is left."""
    load, period = Load(), len(secrets) / rate
    clients = [Client(address, secret) for secret in secrets]
    # connections are open, as in a session
    await asyncio.gather(*(client.ask("GET", "/api/v1/me") for client in clients))
    begin = time.perf_counter() + 0.5

    async def annotator(number: int, client: Client) -> int:
        first = begin + period * (number + random.random()) / len(secrets)
        count = round(seconds / period)
        done = [await load.label(client, first + turn * period, period / 2) for turn in range(count)]
        return sum(done)

    timed = sum(await asyncio.gather(*(annotator(*item) for item in enumerate(clients))))
    elapsed = time.perf_counter() - begin
    found: dict[str, Any] = {
        "labels": timed,
        "labels_per_s": round(timed / elapsed, 1),
        "missed": round(seconds / period) * len(secrets) - timed,
        **{f"{what}_ms": summary(times) for what, times in load.took.items()},
        "errors": len(load.errors),
        "first_errors": load.errors[:3],
    }
    # until two rounds in a row find nothing: a task that somebody held in the first may be free in the second
    idle = 0
    while idle < 2:
        done = await asyncio.gather(*(load.label(client, time.perf_counter(), 0.0) for client in clients))
        idle = 0 if any(done) else idle + 1
    for client in clients:
        client.close()
    return found | {"errors_afterwards": len(load.errors) - found["errors"]}


def summary(seconds: list[float]) -> dict[str, float]:
    """Quantiles in milliseconds."""
    values = np.array(seconds) * 1000
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95, 99)} | {"max": round(values.max(), 1)}


def collected(workspace: Workspace) -> dict[str, int]:
    """How the tasks stand, counted from the rankings in force."""
    found = rows(
        workspace.store.db,
        """SELECT t.overlap, (SELECT count(*) FROM latest_rankings AS r WHERE r.task_id = t.id) AS rankings
           FROM tasks AS t""",
    )
    return {
        "tasks": len(found),
        "rankings": sum(row["rankings"] for row in found),
        "over_collected": sum(row["rankings"] > row["overlap"] for row in found),
        "under_collected": sum(row["rankings"] < row["overlap"] for row in found),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--rate", type=float, default=100.0, help="labels a second, all together")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--overlap", type=int, default=3, help="submissions a task asks for")
    parser.add_argument("--profile", type=Path, help="write the server's cProfile to this file (slows it down)")
    options = parser.parse_args(arguments)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        # a tenth more than the timed part needs, so that nobody finds the project finished before its end
        tasks = round(options.rate * options.seconds * 1.1 / options.overlap) + options.annotators
        secrets = prepare(Path(folder), options.annotators, tasks, options.overlap)
        server, address = start(Path(folder), options.profile)
        try:
            found = asyncio.run(drive(address, secrets, options.rate, options.seconds))
        finally:
            server.terminate()
            server.wait(timeout=60)
        found = vars(options) | found | collected(open_workspace(folder, MODEL, seed_file=None))
    del found["profile"]
    print(json.dumps(found))
    wrong = ("errors", "errors_afterwards", "missed", "over_collected", "under_collected")
    return int(any(found[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
