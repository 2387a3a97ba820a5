"""The REST interface over a real socket: who may do what, that a repeat lands once, and that every no is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from labeler import snapshots, tokens
from labeler.api.data import Filters
from labeler.store import one, scalar
from tests.labeler.served import API, PASSWORD, Team, team

PROJECT = Path(__file__).resolve().parents[2]
TASKS = 6


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with team(tmp_path_factory.mktemp("api"), TASKS) as found:
        yield found


def new_project(app: Team, rows: int = 2, **settings: Any) -> int:
    """A project of its own with tasks of two completions; its id."""
    project = app.ask("lea", "POST", "/projects", {"name": uuid.uuid4().hex, **settings}).json()["id"]
    prompts = [{"prompt": f"Say {number} in {project}."} for number in range(rows)]
    for prompt in app.ask("lea", "POST", "/prompts", {"prompts": prompts}).json()["ids"] if rows else []:
        answers = [{"text": f"{word} to {prompt}"} for word in ("Yes", "No")]
        ids = app.ask("lea", "POST", f"/prompts/{prompt}/completions", {"completions": answers}).json()["ids"]
        made = app.ask("lea", "POST", f"/projects/{project}/tasks", {"prompt_id": prompt, "completion_ids": ids})
        assert made.status_code == 201
    return project


def next_task(app: Team, name: str, project: int) -> dict[str, Any] | None:
    return app.ask(name, "POST", f"/projects/{project}/next").json()["task"]


def event(kind: str = "submit", **more: Any) -> dict[str, Any]:
    return {"uuid": str(uuid.uuid4()), "kind": kind} | ({"ranks": [1, 2]} if kind == "submit" else {}) | more


def problem(answer: httpx.Response) -> str:
    """The one line of an error."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str)
    assert "Traceback" not in body["detail"]
    return body["detail"]


def operations(app: Team) -> Iterator[tuple[str, str]]:
    """Every operation, with 1 for every id."""
    for path, methods in app.ask("owner", "GET", "/openapi.json").json()["paths"].items():
        for method in methods:
            yield method, path.replace("{run_id}", "0001-dpo").format_map(dict.fromkeys(_ids(path), 1))


def _ids(path: str) -> list[str]:
    return [part.strip("{}") for part in path.split("/") if part.startswith("{")]


def test_every_operation_asks_who_it_is(app: Team) -> None:
    found = list(operations(app))
    assert len(found) > 35
    for method, path in found:
        answer = app.ask(None, method, path)
        assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), (method, path)
        assert "Bearer TOKEN" in problem(answer)
        wrong = app.ask(None, method, path, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401
    assert app.ask("ann", "GET", "/me").json()["name"] == "ann"


def test_a_revoked_token_and_a_disabled_user_are_refused_at_once(app: Team) -> None:
    app.join("leaver")
    assert app.ask("leaver", "GET", "/me").status_code == 200
    with app.workspace.store.write() as db:
        db.execute("UPDATE users SET disabled_at = 1 WHERE name = 'leaver'")
    assert app.ask("leaver", "GET", "/me").status_code == 401
    app.join("loser")
    token = tokens.list_tokens(app.workspace.store, app.users["loser"])[0]
    assert token.last_used_at is None
    assert app.ask("loser", "GET", "/me").status_code == 200
    assert tokens.list_tokens(app.workspace.store, app.users["loser"])[0].last_used_at is not None
    assert app.ask("loser", "DELETE", f"/tokens/{token.id}").status_code == 204
    assert app.ask("loser", "GET", "/me").status_code == 401


def test_a_session_will_do_but_not_from_another_site(app: Team) -> None:
    with app.client(None) as client:
        client.post("/login", data={"name": "owner", "password": PASSWORD})
        assert client.get(f"{API}/me").json()["name"] == "owner"
        made = client.post(f"{API}/tokens", json={"name": "laptop", "days": 1}).json()
        assert client.get(f"{API}/tokens").json()["items"][0]["name"] == "laptop"
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.post(f"{API}/tokens", json={"name": "evil"}, headers=headers).status_code == 403
    assert app.ask(None, "GET", "/me", headers={"Authorization": f"Bearer {made['secret']}"}).status_code == 200
    assert app.ask("owner", "POST", "/tokens", {"name": "child"}).status_code == 403  # a token makes no token


ALLOWED = {
    ("get", "/users"): "lead owner",
    ("post", "/projects"): "lead owner",
    ("patch", "/projects/1"): "lead owner",
    ("put", "/projects/1/guidelines"): "lead owner",
    ("get", "/projects/1/members"): "lead owner",
    ("put", "/projects/1/members"): "lead owner",
    ("get", "/projects/1/tasks"): "lead researcher owner",
    ("post", "/projects/1/tasks"): "lead researcher owner",
    ("post", "/projects/1/import"): "lead researcher owner",
    ("get", "/prompts"): "lead researcher owner",
    ("post", "/prompts"): "lead researcher owner",
    ("get", "/prompts/1"): "lead researcher owner",
    ("get", "/prompts/1/completions"): "lead researcher owner",
    ("post", "/prompts/1/completions"): "lead researcher owner",
    ("get", "/snapshots"): "lead researcher owner",
    ("post", "/snapshots"): "lead researcher owner",
    ("get", "/snapshots/1"): "lead researcher owner",
    ("get", "/snapshots/1/rows"): "lead researcher owner",
    ("get", "/projects/1/quality"): "lead researcher owner",
    ("get", "/projects/1/disputed"): "lead researcher owner",
    ("get", "/tasks/1/adjudication"): "lead researcher owner",
    ("post", "/tasks/1/adjudication"): "lead owner",
    ("post", "/users/1/erase"): "lead owner",
    ("get", "/erasures"): "lead researcher owner",
    ("get", "/runs"): "lead researcher owner",
    ("post", "/runs"): "researcher owner",
    ("get", "/runs/0001-dpo"): "lead researcher owner",
    ("get", "/runs/0001-dpo/metrics"): "lead researcher owner",
    ("post", "/runs/0001-dpo/stop"): "researcher owner",
    ("post", "/runs/0001-dpo/resume"): "researcher owner",
    ("get", "/checkpoints"): "lead researcher owner",
    ("get", "/checkpoints/1"): "lead researcher owner",
    # everybody, on what is their own
    ("get", "/me"): "annotator lead researcher owner",
    ("get", "/history"): "annotator lead researcher owner",
    ("post", "/comparisons"): "annotator lead researcher owner",
    ("get", "/projects"): "annotator lead researcher owner",
    ("get", "/projects/1"): "annotator lead researcher owner",
    ("post", "/projects/1/next"): "annotator lead researcher owner",
    ("get", "/projects/1/progress"): "annotator lead researcher owner",
    ("get", "/assignments/1"): "annotator lead researcher owner",
    ("post", "/assignments/1/heartbeat"): "annotator lead researcher owner",
    ("put", "/assignments/1/draft"): "annotator lead researcher owner",
    ("post", "/assignments/1/events"): "annotator lead researcher owner",
    ("delete", "/tokens/1"): "annotator lead researcher owner",
    ("get", "/tokens"): "",  # in person only
    ("post", "/tokens"): "",
}


def test_roles_are_checked_in_every_operation(app: Team) -> None:
    assert set(operations(app)) == set(ALLOWED)
    for name in ("ann", "lea", "rex", "owner"):
        with app.client(name) as client:
            for (method, path), roles in ALLOWED.items():
                if (method, path) == ("delete", "/tokens/1"):
                    continue  # would end the owner's token
                # an empty body is refused after the role is: nothing is changed here
                answer = client.request(method, API + path, json={} if method != "get" else None)
                allowed = app.users[name].role in roles.split()
                assert (answer.status_code != 403) is allowed, (name, method, path, answer.text)


def test_a_task_is_asked_for_kept_and_ranked(app: Team) -> None:
    project = new_project(app, rows=2)
    task = next_task(app, "ann", project)
    assert task is not None
    assert next_task(app, "ann", project) == task  # what is open comes back
    assert sorted(task) == ["assignment_id", "category", "completions", "draft", "messages", "task_id"]
    path = f"/assignments/{task['assignment_id']}"
    assert app.ask("ann", "POST", f"{path}/heartbeat").json() == {"held": True}
    draft = {
        "ranks": [2, None], "all_bad": False, "comment": "hm", "tags": [["helpful"], []], "ratings": [None, 3],
        "rewrite": "Bett", "strength": 2,
    }  # fmt: skip
    assert app.ask("ann", "PUT", f"{path}/draft", draft).json() == {"saved": True}
    assert app.ask("ann", "GET", path).json()["draft"] == draft
    for name, wrong in (("ranks", [1]), ("tags", [[], [], []]), ("ratings", [1, 2, 3]), ("strength", 5)):
        answer = app.ask("ann", "PUT", f"{path}/draft", {name: wrong})
        assert (answer.status_code, bool(problem(answer))) == (422, True)
    assert app.ask("ann", "GET", path).json()["draft"] == draft

    said = event(comment="clear", tags=[["helpful"], []], strength=3, rewrite="Better.", seconds=2.5)
    first = app.ask("ann", "POST", f"{path}/events", said)
    again = app.ask("ann", "POST", f"{path}/events", said)
    assert (
        (first.status_code, first.json())
        == (again.status_code, again.json())
        == (
            200,
            {"uuid": said["uuid"], "assignment_id": task["assignment_id"], "kind": "submit"},
        )
    )
    assert scalar(app.workspace.store.db, "SELECT count(*) FROM events WHERE uuid = ?", [said["uuid"]]) == 1
    shown = [completion["text"] for completion in task["completions"]]
    row = one(
        app.workspace.store.db, "SELECT ranks, completion_ids FROM latest_rankings WHERE uuid = ?", [said["uuid"]]
    )
    assert row is not None
    best = json.loads(row["completion_ids"])[json.loads(row["ranks"]).index(1)]
    texts = [scalar(app.workspace.store.db, "SELECT text FROM completions WHERE id = ?", [best])]
    assert texts == [shown[0]]  # rank 1 is stored with the completion that was shown first
    latest = app.ask("ann", "GET", "/history", params={"limit": 1}).json()
    assert latest["next_cursor"] is None or latest["items"][0]["id"] == latest["next_cursor"]
    assert {**said, "client_time": None}.items() >= {
        name: latest["items"][0][name] for name in ("uuid", "kind", "ranks", "comment", "tags", "strength", "rewrite")
    }.items()
    assert app.ask("ann", "POST", f"{path}/heartbeat").json() == {"held": False}
    assert app.ask("ann", "GET", f"/projects/{project}/progress").json()["done"] == 1

    assert app.ask("ann", "POST", f"{path}/events", event(ranks=[2, 1])).status_code == 200  # a correction
    assert app.ask("ann", "POST", f"{path}/events", event("retract")).status_code == 200
    assert next_task(app, "ann", project)["task_id"] == task["task_id"]  # type: ignore[index]
    assert app.ask("ann", "POST", f"{path}/events", event("skip", reason="unclear")).status_code == 200
    other = next_task(app, "ann", project)
    assert other is not None
    assert other["task_id"] != task["task_id"]
    app.ask("ann", "POST", f"/assignments/{other['assignment_id']}/events", event(ranks=[], all_bad=True))
    assert next_task(app, "ann", project) is None


def test_a_uuid_says_one_thing(app: Team) -> None:
    project = new_project(app)
    task = next_task(app, "ann", project)
    assert task is not None
    path = f"/assignments/{task['assignment_id']}/events"
    said = event()
    assert app.ask("ann", "POST", path, said).status_code == 200
    for other in ({**said, "ranks": [2, 1]}, {**said, "kind": "skip", "ranks": []}, {**said, "comment": "changed"}):
        answer = app.ask("ann", "POST", path, other)
        assert answer.status_code == 409
        assert "used for something else" in problem(answer)


def test_nobody_touches_anothers_work(app: Team) -> None:
    task = next_task(app, "ann", new_project(app))
    assert task is not None
    path = f"/assignments/{task['assignment_id']}"
    for name in ("bob", "owner"):
        assert app.ask(name, "GET", path).status_code == 404
        assert app.ask(name, "POST", f"{path}/heartbeat").status_code == 404
        assert app.ask(name, "PUT", f"{path}/draft", {}).status_code == 404
        assert app.ask(name, "POST", f"{path}/events", event()).status_code == 404


def test_a_late_submit_conflicts(app: Team) -> None:
    project = new_project(app, rows=1)
    task = next_task(app, "ann", project)
    assert task is not None
    with app.workspace.store.write() as db:
        db.execute("UPDATE assignments SET leased_until = 0 WHERE id = ?", [task["assignment_id"]])
    other = next_task(app, "bob", project)
    assert other is not None
    assert other["task_id"] == task["task_id"]
    assert app.ask("bob", "POST", f"/assignments/{other['assignment_id']}/events", event()).status_code == 200
    answer = app.ask("ann", "POST", f"/assignments/{task['assignment_id']}/events", event())
    assert answer.status_code == 409
    assert "somebody else" in problem(answer)


def test_projects_are_made_changed_and_closed(app: Team) -> None:
    made = app.ask("lea", "POST", "/projects", {"name": "Closed", "overlap": 3, "for_everybody": False})
    assert made.status_code == 201
    project = made.json()
    assert (project["overlap"], project["question"], project["tags"][0]) == (3, "ranking", "helpful")
    path = f"/projects/{project['id']}"
    assert "already" in problem(app.ask("lea", "POST", "/projects", {"name": "closed"}))
    assert app.ask("ann", "GET", path).status_code == 404
    assert app.ask("ann", "POST", f"{path}/next").status_code == 403
    members = {"user_ids": [app.users["ann"].id]}
    assert app.ask("lea", "PUT", f"{path}/members", members).json() == members
    assert app.ask("lea", "GET", f"{path}/members").json()["items"][0]["name"] == "ann"
    assert app.ask("ann", "POST", f"{path}/next").json() == {"task": None}
    assert app.ask("lea", "PUT", f"{path}/guidelines", {"text": "Be fair."}).json() == {"version": 1}
    assert app.ask("ann", "GET", path).json()["guidelines"] == "Be fair."
    changed = app.ask("lea", "PATCH", path, {"task_order": "random", "tags": ["odd"], "archived": True}).json()
    assert (changed["task_order"], changed["tags"], changed["archived"]) == ("random", ["odd"], True)
    assert app.ask("ann", "POST", f"{path}/next").status_code == 403
    bad = app.ask("lea", "PATCH", path, {"archived": False, "name": "First project"})
    assert bad.status_code == 422
    assert app.ask("lea", "GET", path).json()["archived"] is True  # all of it or nothing


def test_lists_come_in_pages(app: Team) -> None:
    project = new_project(app, rows=5)
    seen, cursor = [], 0
    for _ in range(3):
        params = {"cursor": cursor, "limit": 2}
        part = app.ask("lea", "GET", f"/projects/{project}/tasks", params=params).json()
        seen += [task["id"] for task in part["items"]]
        cursor = part["next_cursor"]
    assert cursor is None
    assert len(seen) == 5
    assert seen == sorted(set(seen))
    for path in ("/prompts", "/projects", "/users", "/checkpoints", "/snapshots"):
        every = app.ask("owner", "GET", path, params={"limit": 200}).json()
        assert every["next_cursor"] is None, path
        first = app.ask("owner", "GET", path, params={"limit": 1}).json()
        assert first["items"] == every["items"][:1]


def test_prompts_come_whole_or_not_at_all(app: Team) -> None:
    before = scalar(app.workspace.store.db, "SELECT count(*) FROM prompts")
    rows = [{"prompt": "Fine."}, {"prompt": [{"role": "assistant", "content": "Not fine."}]}]
    answer = app.ask("lea", "POST", "/prompts", {"prompts": rows})
    assert answer.status_code == 422
    assert "prompts.1: " in problem(answer)
    assert scalar(app.workspace.store.db, "SELECT count(*) FROM prompts") == before
    rows[1] = {"prompt": [{"role": "user", "content": "Now fine."}], "id": "fine", "category": "advice"}
    ids = app.ask("lea", "POST", "/prompts", {"prompts": rows}).json()["ids"]
    assert app.ask("lea", "POST", "/prompts", {"prompts": rows}).json()["ids"] == ids
    stored = app.ask("lea", "GET", f"/prompts/{ids[1]}").json()
    assert (stored["external_id"], stored["category"], stored["source"]) == ("fine", "advice", "api")


def test_a_file_goes_in_and_a_snapshot_comes_out(app: Team) -> None:
    project = new_project(app, rows=0)
    row = {"prompt": "One?", "chosen": "yes", "rejected": "no", "annotator": "importer"}
    lines = (json.dumps(row) + "\n").encode()

    def load(content: bytes, name: str) -> httpx.Response:
        return app.ask("rex", "POST", f"/projects/{project}/import", params={"name": name}, content=content)

    assert load(lines, "rows.jsonl").json() == {"rows": 1, "prompts": 1, "tasks": 1, "rankings": 1, "demonstrations": 0}
    assert load(lines, "rows.jsonl").json()["rankings"] == 0  # importing twice adds nothing twice
    bad = load(lines + b"{]\n", "../../etc/rows.jsonl")
    assert bad.status_code == 422
    assert "rows.jsonl:2" in problem(bad)
    assert "/" not in problem(bad)
    assert load(b"\x00\xff", "rows.parquet").status_code == 422
    assert "must end with" in problem(load(lines, "rows.exe"))

    made = app.ask("rex", "POST", "/snapshots", {"kind": "preferences", "filters": {"annotators": ["importer"]}})
    assert made.status_code == 201
    snapshot = made.json()
    assert snapshot["counts"]["rows"] == 1
    answer = app.ask("rex", "GET", f"/snapshots/{snapshot['id']}/rows")
    assert answer.headers["content-type"] == "application/jsonl"
    assert json.loads(answer.text)["completions"] == ["yes", "no"]
    same = app.ask("rex", "POST", "/snapshots", {"kind": "preferences", "filters": snapshot["filters"]}).json()
    assert (same["sha256"], same["id"]) != (snapshot["sha256"], snapshot["id"])
    assert same["sha256"] == snapshot["sha256"]
    nothing = app.ask("rex", "POST", "/snapshots", {"kind": "preferences", "filters": {"annotators": ["nobody"]}})
    assert nothing.status_code == 422


def test_every_filter_of_a_snapshot_can_be_sent() -> None:
    assert set(Filters.model_fields) == set(snapshots.FILTERS)


def test_a_comparison_lands_once(app: Team) -> None:
    vote = {
        "uuid": str(uuid.uuid4()),
        "prompt": [{"role": "user", "content": "Which?"}],
        "completions": [{"text": "This.", "checkpoint_id": 1}, {"text": "That."}],
        "ranks": [1, 2],
    }
    first = app.ask("ann", "POST", "/comparisons", vote)
    assert first.status_code == 200
    assert app.ask("ann", "POST", "/comparisons", vote).json() == first.json()
    assert scalar(app.workspace.store.db, "SELECT source FROM events WHERE uuid = ?", [vote["uuid"]]) == "api"
    assert app.ask("bob", "POST", "/comparisons", vote).status_code == 409
    for wrong in ({"ranks": [1, 2, 3]}, {"ranks": []}, {"prompt": [{"role": "assistant", "content": "Which?"}]}):
        answer = app.ask("ann", "POST", "/comparisons", vote | {"uuid": str(uuid.uuid4())} | wrong)
        assert (answer.status_code, bool(problem(answer))) == (422, True)
    vote |= {"uuid": str(uuid.uuid4()), "completions": [{"text": "This.", "checkpoint_id": 99}, {"text": "That."}]}
    assert app.ask("ann", "POST", "/comparisons", vote).status_code == 422


def test_a_run_is_queued_read_and_stopped(app: Team) -> None:
    body: dict[str, Any] = {"method": "ppo", "settings": {"max_steps": 3}}
    assert "reward model" in problem(app.ask("rex", "POST", "/runs", body))
    task = next_task(app, "ann", new_project(app))
    assert task is not None
    app.ask("ann", "POST", f"/assignments/{task['assignment_id']}/events", event())
    body["method"] = "dpo"
    for settings in ({"output": "/tmp/x"}, {"from_checkpoint": "/etc"}, {"max_step": 3}):
        answer = app.ask("rex", "POST", "/runs", body | {"settings": settings})
        assert answer.status_code == 422
        assert "unknown" in problem(answer)
    assert app.ask("rex", "POST", "/runs", body | {"settings": {"max_steps": -1}}).status_code == 422
    made = app.ask("rex", "POST", "/runs", body)
    assert made.status_code == 201
    run = made.json()
    assert (run["state"], run["config"]["max_steps"]) == ("queued", 3)
    path = f"/runs/{run['id']}"
    metrics = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n'
    (app.workspace.runs_folder / run["id"] / "metrics.jsonl").write_text(metrics)
    found = app.ask("lea", "GET", f"{path}/metrics", params={"limit": 1}).json()
    assert found == {"items": [{"step": 1, "loss": 0.5}], "next_cursor": 1}
    found = app.ask("lea", "GET", f"{path}/metrics", params={"cursor": 1}).json()
    assert found == {"items": [{"step": 2, "loss": None}], "next_cursor": None}
    assert app.ask("rex", "POST", f"{path}/stop").json()["state"] == "stopped"
    assert app.ask("rex", "POST", f"{path}/stop").json()["state"] == "stopped"
    assert app.ask("rex", "POST", f"{path}/resume").json()["state"] == "queued"
    assert app.ask("rex", "POST", f"{path}/resume").status_code == 409
    assert app.ask("lea", "GET", "/runs").json()["items"][0]["id"] == run["id"]
    for missing in ("nope", "..%2F..", "%00", "%ED%A0%80", "9" * 90):
        assert app.ask("rex", "GET", f"/runs/{missing}").status_code in (404, 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"[" * 100_000, 400),
        (b"9" * 10_000, 400),
        (b"NaN", 422),
        (b'"text"', 422),
        (b"\xff\xfe", 400),
        (b'{"name": "a\\u0000b"}', 422),
        (b'{"name": "\\ud800"}', 422),
        (b'{"\\ud800": 1, "name": "a"}', 422),
        (b'{"name": "a", "overlap": 1e400}', 422),
        (b'{"name": "a", "overlap": NaN}', 422),
        (b'{"name": "a", "overlap": true}', 422),
        (b'{"name": "a", "overlap": "3"}', 422),
        (b'{"name": "a", "gold_rate": Infinity}', 422),
        (b'{"name": "a", "overlap": 1180591620717411303424}', 422),
        (b'{"name": "a", "tags": "helpful"}', 422),
        (b'{"name": " "}', 422),
        (b'{"name": "a", "nonsense": 1}', 422),
        (b'{"name": "' + b"a" * 17 * 2**20 + b'"}', 413),
    ],
)
def test_nonsense_is_answered_with_one_line(app: Team, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = app.ask("lea", "POST", "/projects", content=body, headers=headers)
    assert (answer.status_code, bool(problem(answer))) == (status, True)
    assert len(problem(answer)) < 600


@pytest.mark.parametrize("number", ["-1", "0", str(2**63), str(2**70), "1.5", "one", "%00", "99999999"])
def test_no_id_is_too_strange(app: Team, number: str) -> None:
    for method, path in (
        ("POST", f"/projects/{number}/next"),
        ("GET", f"/projects/{number}"),
        ("GET", f"/assignments/{number}"),
        ("GET", f"/prompts/{number}"),
        ("GET", f"/snapshots/{number}/rows"),
        ("GET", f"/checkpoints/{number}"),
        ("GET", f"/prompts?cursor={number}") if number not in ("0", "99999999") else ("GET", "/nowhere"),
    ):
        answer = app.ask("owner", method, path)
        assert answer.status_code in (404, 422), (method, path, answer.text)
        assert problem(answer)


def test_what_is_not_there_is_said_in_json(app: Team) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/me", 405), ("GET", "/me/", 404)):
        answer = app.ask("ann", method, path)
        assert answer.status_code == status
        assert "/api/v1/docs" in problem(answer)


def test_the_pages_about_it_load_nothing_from_elsewhere(app: Team) -> None:
    page = app.ask(None, "GET", "/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    script = app.ask(None, "GET", "/docs.js")
    for text in (page.text, script.text):
        assert "//" not in text.replace("// ", "")
        assert "innerHTML" not in text
    assert app.ask(None, "GET", "/openapi.json").json()["servers"] == [{"url": API}]


def test_without_a_login_the_local_owner_asks(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from labeler.web import create_app
    from tests.labeler.labels import make_workspace

    workspace = make_workspace(tmp_path, 1)
    with TestClient(create_app(workspace), base_url="http://127.0.0.1:7860") as client:
        assert client.get(f"{API}/me").json()["role"] == "owner"
        secret = client.post(f"{API}/tokens", json={"name": "laptop"}).json()["secret"]
        assert client.get(f"{API}/me", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert client.get(f"{API}/me", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(f"{API}/me", headers={"Host": "evil.example"}).status_code == 421
        assert client.get(f"{API}/me", headers={"Origin": "http://evil.example"}).status_code == 403


def test_the_example_client_ranks_until_nothing_is_left(app: Team) -> None:
    app.join("robot")
    result = subprocess.run(
        [sys.executable, PROJECT / "docs" / "example_client.py", app.url],
        env={**os.environ, "TOKEN": app.secrets["robot"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("I am robot\n")
    sql = "SELECT count(*) FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id WHERE u.name = 'robot'"
    assert scalar(app.workspace.store.db, sql) == result.stdout.count("ranked") > 0
    assert next_task(app, "robot", 1) is None
