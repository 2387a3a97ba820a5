"""The web application from outside: who is let in, what every answer carries, how it fails to start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from data.records import InputError
from labeler import conversations, invitations, projects, ui, users
from labeler.store import rows, scalar
from labeler.web import check_host, create_app, is_loopback
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace

PROJECT = Path(__file__).resolve().parents[2]
BASE = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Workspace]]:
    """An app without users."""
    workspace = make_workspace(tmp_path_factory.mktemp("open"), 2)
    with TestClient(create_app(workspace), base_url=BASE) as client:
        yield client, workspace


@pytest.fixture(scope="module")
def closed_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Workspace]]:
    """An app with two users, bound to all addresses."""
    workspace = make_workspace(tmp_path_factory.mktemp("closed"), 2)
    users.add_user(workspace.store, "ann", "annotator", "correct horse")
    users.add_user(workspace.store, "lea", "lead", "correct horse")
    with TestClient(create_app(workspace, "0.0.0.0"), base_url="http://lab.example:7860") as client:
        yield client, workspace


def log_in(client: TestClient, name: str) -> None:
    client.cookies.clear()
    answer = client.post("/login", data={"name": name, "password": "correct horse"}, follow_redirects=False)
    assert answer.status_code == 303


def component(client: TestClient, function: str) -> tuple[int, str]:
    """The id of the widget that has this server function."""
    for item in client.get("/config").json()["components"]:
        if function in (item.get("props", {}).get("server_fns") or []):
            return item["id"], function
    raise AssertionError(function)


def call(client: TestClient, function: str, data: dict[str, Any]) -> Any:
    """What the Rank widget sends."""
    number, name = component(client, function)
    body = {"data": data, "component_id": number, "fn_name": name, "session_hash": "test"}
    return client.post("/gradio_api/component_server/", json=body)


def test_the_page_and_its_headers(open_app: tuple[TestClient, Workspace]) -> None:
    client, _ = open_app
    answer = client.get("/")
    assert answer.status_code == 200
    assert "Preference Loop" in answer.text
    assert "fonts.googleapis.com" not in answer.text
    policy = answer.headers["content-security-policy"]
    for part in ("frame-ancestors 'none'", "object-src 'none'", "script-src-attr 'none'", "connect-src 'self'"):
        assert part in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert client.get("/healthz").json() == {"status": "ok"}
    status = client.get("/status").json()
    assert (status["user"], status["login"], status["running"]) == ("owner", False, "")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/gradio_api/docs"])
def test_no_page_describes_the_inside(open_app: tuple[TestClient, Workspace], path: str) -> None:
    answer = open_app[0].get(path)
    assert "swagger" not in answer.text.lower()
    assert '"openapi"' not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"])
def test_own_names_are_answered(open_app: tuple[TestClient, Workspace], host: str) -> None:
    assert open_app[0].get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::1", "a@localhost@b"]
)
def test_foreign_names_are_refused_without_a_login(open_app: tuple[TestClient, Workspace], host: str) -> None:
    for path in ("/", "/config", "/healthz", "/gradio_api/info"):
        assert open_app[0].get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": BASE}, True),
        ({"Origin": BASE, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),
    ],
)
def test_other_sites_cannot_act(open_app: tuple[TestClient, Workspace], headers: dict[str, str], allowed: bool) -> None:
    answer = open_app[0].post("/gradio_api/component_server/", json={}, headers=headers)
    assert (answer.status_code == 403) is not allowed


def test_other_sites_may_link_here_but_not_read_or_frame(open_app: tuple[TestClient, Workspace]) -> None:
    client, _ = open_app
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers={**cross, "Sec-Fetch-Dest": "document"}).status_code == 200
    assert client.get("/", headers={**cross, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert client.get("/config", headers={"Origin": "http://evil.example"}).status_code == 403
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/gradio_api/queue/join", headers=preflight)
    assert "access-control-allow-origin" not in answer.headers


def test_a_task_is_ranked_over_http(open_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = open_app
    view = call(client, "rank_next", {}).json()
    assert (view["kind"], view["progress"]["done"]) == ("task", 0)
    assert "tiny-model" not in json.dumps(view)
    event = {"kind": "submit", "uuid": "0123456789abcdef", "assignment": view["assignment"], "ranks": [1, 2, 2, None]}
    view = call(client, "rank_submit", event).json()
    assert view["progress"]["done"] == 1
    assert scalar(workspace.store.db, "SELECT count(*) FROM latest_rankings") == 1
    assert call(client, "rank_submit", event).json()["progress"]["done"] == 1
    assert scalar(workspace.store.db, "SELECT count(*) FROM events") == 1


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"kind": "retract", "uuid": "0123456789abcdef", "assignment": 1},
        {"kind": "submit", "uuid": "x", "assignment": 1, "ranks": [1, 2, 3, 4]},
        {"kind": "submit", "uuid": "0123456789abcdee", "assignment": "1; DROP TABLE events", "ranks": [1, 2]},
        {"kind": "submit", "uuid": "0123456789abcdee", "assignment": 10**30, "ranks": [1, 2]},
        {"kind": "submit", "uuid": "0123456789abcdee", "assignment": 99, "ranks": [1, 2, 3, 4]},
        {"kind": "submit", "uuid": "0123456789abcdee", "assignment": 1, "ranks": [1, 2, 3, 4], "tags": [1, 2, 3, 4]},
        {"kind": "submit", "uuid": "0123456789abcdee", "assignment": 1, "ranks": [1, 2, 3, 4], "strength": [1]},
    ],
)
def test_nonsense_is_answered_with_an_error_line(open_app: tuple[TestClient, Workspace], data: Any) -> None:
    for function in (
        *("rank_submit", "rank_draft", "rank_undo", "rank_skipped", "rank_flag", "rank_heartbeat"),
        *("rank_history", "rank_open", "rank_guidelines"),
    ):
        if function == "rank_submit" or not isinstance(data, dict):
            answer = call(open_app[0], function, data)
            assert answer.status_code == 200
            assert answer.json()["error"]


def test_with_users_everything_needs_a_login(closed_app: tuple[TestClient, Workspace]) -> None:
    client, _ = closed_app
    client.cookies.clear()
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    for path in ("/config", "/status", "/gradio_api/info", "/gradio_api/queue/data", "/snapshots/1", "/assets/x.js"):
        assert client.get(path).status_code == 401
    assert client.post("/gradio_api/queue/join", json={}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert "password" in client.get("/login").text


def test_log_in_and_out(closed_app: tuple[TestClient, Workspace]) -> None:
    client, _ = closed_app
    client.cookies.clear()
    wrong = client.post("/login", data={"name": "ann", "password": "<b>wrong"})
    assert wrong.status_code == 401
    assert "Name or password is wrong" in wrong.text
    log_in(client, "ann")
    assert client.get("/status").json()["user"] == "ann"
    assert client.get("/").status_code == 200
    stolen = dict(client.cookies)
    assert client.post("/logout", follow_redirects=False).status_code == 303
    client.cookies.update(stolen)
    assert client.get("/status").status_code == 401


def test_an_invitation_page_lets_one_person_in_and_nobody_else(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = users.local_owner(workspace.store)
    users.set_own_password(workspace.store, owner, "correct horse")
    token = invitations.invite(workspace.store, owner, "annotator")
    with TestClient(create_app(workspace, "0.0.0.0"), base_url="http://lab.example:7860") as client:
        path = f"/invite/{token}"
        page = client.get(path)
        assert page.status_code == 200
        assert "annotator" in page.text
        assert page.headers["cache-control"] == "no-store"
        assert "script" not in page.headers["content-security-policy"]
        for wrong in ("/invite/guess", f"{path}x", "/invite/", f"/invite/../config?{token}"):
            answer = client.get(wrong, follow_redirects=False)
            assert answer.status_code in (401, 404), wrong
        assert client.get("/config").status_code == 401
        form = {"name": "<b>ann", "password": "long enough", "again": "longer"}
        answer = client.post(path, data=form, follow_redirects=False)
        assert answer.status_code == 400
        assert "The two passwords differ" in answer.text
        assert "<b>ann" not in answer.text
        assert "&lt;b&gt;ann" in answer.text
        foreign = client.post(path, data=form, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        answer = client.post(path, data={**form, "again": "long enough"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert client.get("/status").json()["user"] == "<b>ann"
        assert client.get("/status").json()["hidden_tabs"] == list(ui.HIDDEN_TABS["annotator"])
        client.cookies.clear()
        assert client.get(path).status_code == 404
        assert client.post(path, data={**form, "again": "long enough"}).status_code == 404


def test_an_invitation_path_opens_nothing_where_no_login_is_needed(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    with TestClient(create_app(workspace), base_url=BASE) as client:
        assert client.get("/invite/guess", headers={"Host": "evil.example"}).status_code == 421
        assert client.post("/invite/guess", headers={"Host": "evil.example"}).status_code == 421
        assert client.get("/invite/guess").status_code == 404
    with TestClient(create_app(workspace, "0.0.0.0"), base_url=BASE) as client:
        assert client.get("/invite/guess").status_code == 421


def test_the_cookie_is_kept_from_scripts_and_other_sites(closed_app: tuple[TestClient, Workspace]) -> None:
    client, _ = closed_app
    answer = client.post("/login", data={"name": "ann", "password": "correct horse"}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    cross = client.post("/login", data={"name": "ann", "password": "x"}, headers={"Origin": "http://evil.example"})
    assert cross.status_code == 403


def test_people_rank_under_their_own_names(closed_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = closed_app
    given = []
    for name in ("ann", "lea"):
        log_in(client, name)
        given.append(call(client, "rank_next", {}).json()["assignment"])
    stolen = {"kind": "submit", "uuid": "0123456789abcdef", "assignment": given[0], "ranks": [1, 2, 3, 4]}
    assert "not yours" in call(client, "rank_submit", stolen).json()["error"]  # lea sends ann's
    log_in(client, "ann")
    assert "error" not in call(client, "rank_submit", stolen).json()
    sql = "SELECT u.name FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id"
    assert scalar(workspace.store.db, sql) == "ann"


def test_nobody_sees_or_touches_the_tasks_and_projects_of_others(closed_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = closed_app
    lead = users.check_password(workspace.store, "lea", "correct horse")
    assert lead is not None
    closed = projects.create_project(workspace.store, lead, "closed", for_everybody=False)
    log_in(client, "lea")
    view = call(client, "rank_next", {"project": 1}).json()
    log_in(client, "ann")
    theirs = {"assignment": view["assignment"], "kind": "flag", "reason": "x", "uuid": "0123456789abcdff"}
    assert "not yours" in call(client, "rank_flag", theirs).json()["error"]
    assert call(client, "rank_heartbeat", theirs).json() == {"open": False}
    assert call(client, "rank_draft", theirs).json() == {"saved": False}
    assert "not yours" in call(client, "rank_open", theirs).json()["error"]
    for function in ("rank_history", "rank_guidelines"):
        assert "not open to you" in call(client, function, {"project": closed.id}).json()["error"]
    assert call(client, "rank_next", {"project": closed.id}).json().get("project", {"id": 1})["id"] == 1


def test_an_export_is_for_leads(closed_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = closed_app
    from labeler import snapshots

    lead = users.check_password(workspace.store, "lea", "correct horse")
    made = snapshots.write_snapshot(workspace.store, workspace.snapshots_folder / "p.jsonl", "prompts", {}, lead)
    log_in(client, "ann")
    assert client.get(f"/snapshots/{made.id}").status_code == 404
    log_in(client, "lea")
    answer = client.get(f"/snapshots/{made.id}")
    assert answer.status_code == 200
    assert len(answer.text.splitlines()) == 2
    assert client.get("/snapshots/99").status_code == 404


def test_nobody_reads_or_changes_the_conversations_of_others(closed_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = closed_app
    ann = users.check_password(workspace.store, "ann", "correct horse")
    assert ann is not None
    with workspace.store.write() as db:
        conversations.ask(db, ann, "Between us?", None)
    (row,) = rows(workspace.store.db, "SELECT id, conversation_id FROM turns")
    sampled = {"checkpoint_id": workspace.base_checkpoint_id, "sampling": {}}
    asked = {"conversation_id": row["conversation_id"], "turn_id": row["id"], "other_id": row["id"], "reward_id": 1}
    asked |= {"title": "mine", "text": "Hello?", "settings": sampled}
    before = rows(workspace.store.db, "SELECT * FROM conversations"), rows(workspace.store.db, "SELECT * FROM turns")
    log_in(client, "lea")
    for function in ("open", "look", "ask", "edit", "again", "stop", "choose", "prefer", "score", "rename", "delete"):
        answer = call(client, f"chat_{function}", asked).json()
        assert "gone or is not yours" in answer["error"], function
    assert client.get(f"/conversations/{row['conversation_id']}").status_code == 404
    now = rows(workspace.store.db, "SELECT * FROM conversations"), rows(workspace.store.db, "SELECT * FROM turns")
    assert now == before
    log_in(client, "ann")
    assert client.get(f"/conversations/{row['conversation_id']}").json()["messages"][0]["content"] == "Between us?"


def test_the_database_cannot_be_fetched(open_app: tuple[TestClient, Workspace]) -> None:
    client, workspace = open_app
    for path in (workspace.store.path, PROJECT / "pyproject.toml"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.1", True)],
        *[("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("lab.example", False), ("", False)],
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_an_open_address_needs_a_user_first(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    check_host(workspace, "127.0.0.1")
    with pytest.raises(InputError, match="user add"):
        check_host(workspace, "0.0.0.0")
    users.add_user(workspace.store, "ann", "owner", "correct horse")
    check_host(workspace, "0.0.0.0")


def test_on_an_open_address_no_host_name_helps_without_a_login(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    with TestClient(create_app(workspace, "0.0.0.0"), base_url=BASE) as client:
        assert client.get("/").status_code == 421


def start(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=PROJECT,
        env={**os.environ, "WORKSPACE": str(tmp_path / "w"), "BASE_MODEL": "no-model", "PORT": "0", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_failed_start_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "preferences.sqlite").write_bytes(b"not a database, not at all. " * 200)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            ({"PORT": str(port)}, f"PORT={port + 1}"),
            ({"WORKSPACE": str(tmp_path / "file")}, "set WORKSPACE"),
            ({"WORKSPACE": str(broken)}, "not a usable SQLite database"),
            ({"HOST": "0.0.0.0"}, "python -m labeler user add"),
        ]
        for env, remedy in cases:
            result = start(tmp_path, **env)
            assert result.returncode == 1, env
            lines = result.stderr.strip().splitlines()
            assert len(lines) == 1, lines
            assert lines[0].startswith("error: ")
            assert remedy in lines[0]


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", "http", "not a port number"),
        ("127.0.0.1", "70000", "not a port number"),
        ("127.0.0.1", "-1", "not a port number"),
        ("no.such.host.invalid", "0", "cannot listen"),
    ],
)
def test_an_address_that_cannot_be(host: str, port: str, message: str) -> None:
    from app import listen

    with pytest.raises(InputError, match=message):
        listen(host, port)


def test_the_way_to_the_first_page_needs_no_torch() -> None:
    code = "import sys, app; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr
