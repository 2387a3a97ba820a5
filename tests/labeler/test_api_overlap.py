"""Many annotators at once over the REST interface: every task gets as many submissions as it asks for, each once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from labeler.store import rows, scalar
from tests.labeler.served import API, Team, team

PROJECT = Path(__file__).resolve().parents[2]
TASKS = 12


def twice(client: httpx.Client, path: str, body: Any = None) -> dict[str, Any]:
    """The answer to a request that is sent twice at the same time, as a nervous proxy would; both must say the same."""
    with ThreadPoolExecutor(2) as both:
        answers = list(both.map(lambda _: client.post(f"{API}{path}", json=body), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert answers[0].json() == answers[1].json()
    found: dict[str, Any] = answers[0].json()
    return found


def rank_all(app: Team, name: str, held: Held | None = None) -> list[str]:
    """Rank until nothing comes any more; the uuids that were submitted."""
    sent = []
    with app.client(name) as client:
        while task := twice(client, "/projects/1/next")["task"]:
            if held is not None:
                held.take(task["task_id"])
            ranks = [number + 1 for number in range(len(task["completions"]))]
            said = {"uuid": str(uuid.uuid4()), "kind": "submit", "ranks": ranks}
            twice(client, f"/assignments/{task['assignment_id']}/events", said)
            sent.append(said["uuid"])
    return sent


class Held:
    """The tasks that somebody was given: with an overlap of 1 nobody else may ever be."""

    def __init__(self) -> None:
        self.tasks: list[int] = []
        self.lock = threading.Lock()

    def take(self, task_id: int) -> None:
        with self.lock:
            self.tasks.append(task_id)


def test_ten_annotators_with_overlap_three_and_every_request_twice(tmp_path: Path) -> None:
    with team(tmp_path, TASKS) as app:
        store = app.workspace.store
        with store.write() as db:
            db.execute("UPDATE tasks SET overlap = 3")
        names = [f"annotator-{number}" for number in range(10)]
        for name in names:
            app.join(name)
        with ThreadPoolExecutor(len(names)) as pool:
            work = [pool.submit(rank_all, app, name) for name in names]
            sent = [said for one in work for said in one.result()]
        assert len(sent) == len(set(sent)) == TASKS * 3
        assert {row["uuid"] for row in rows(store.db, "SELECT uuid FROM events WHERE kind = 'submit'")} == set(sent)
        counts = rows(
            store.db,
            """SELECT t.submissions, count(*) AS rankings, count(DISTINCT r.user_id) AS people
               FROM tasks AS t JOIN latest_rankings AS r ON r.task_id = t.id GROUP BY t.id""",
        )
        assert counts == [{"submissions": 3, "rankings": 3, "people": 3}] * TASKS
        assert scalar(store.db, "SELECT count(*) FROM assignments WHERE state = 'open'") == 0


def test_two_annotators_never_get_the_same_task_at_once(tmp_path: Path) -> None:
    with team(tmp_path, TASKS) as app:
        held = Held()
        with ThreadPoolExecutor(2) as pool:
            work = [pool.submit(rank_all, app, name, held) for name in ("ann", "bob")]
            sent = [said for one in work for said in one.result()]
        assert sorted(held.tasks) == sorted(set(held.tasks))
        assert len(held.tasks) == len(sent) == TASKS
        assert scalar(app.workspace.store.db, "SELECT count(DISTINCT task_id) FROM latest_rankings") == TASKS


def test_the_load_benchmark_counts_what_was_collected() -> None:
    command = [sys.executable, "-m", "benchmarks.annotate_load", "--annotators", "5", "--rate", "20", "--seconds", "1"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert (found["labels"], found["errors"], found["missed"]) == (20, 0, 0)
    assert found["rankings"] == found["tasks"] * found["overlap"]
    assert found["next_ms"]["p95"] > 0 < found["submit_ms"]["p95"]
