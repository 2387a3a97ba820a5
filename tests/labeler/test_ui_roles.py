"""Hidden tabs are no access control: each handler of the Quality and Team tabs is asked over HTTP by who may not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from labeler import tokens, users
from labeler.store import rows, scalar
from labeler.web import create_app
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank

PASSWORD = "correct horse"
Asked = tuple[TestClient, Workspace]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Two tasks on which ann and bob disagree, and somebody of each role."""
    workspace = make_workspace(tmp_path_factory.mktemp("roles"), 2)
    names = {"ann": "annotator", "bob": "annotator", "lea": "lead", "rex": "researcher"}
    people = {name: users.add_user(workspace.store, name, role, PASSWORD) for name, role in names.items()}
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2")
    for _ in range(2):
        rank(workspace, [1, 2, 3, 4], people["ann"], comment="a secret comment")
        rank(workspace, [4, 3, 2, 1], people["bob"])
    with TestClient(create_app(workspace, "0.0.0.0"), base_url="http://lab.example:7860") as client:
        yield client, workspace


def log_in(client: TestClient, name: str) -> None:
    client.cookies.clear()
    answer = client.post("/login", data={"name": name, "password": PASSWORD}, follow_redirects=False)
    assert answer.status_code == 303


def call(client: TestClient, function: str, data: dict[str, Any]) -> dict[str, Any]:
    """What the widget with this server function is answered."""
    components = client.get("/config").json()["components"]
    number = next(item["id"] for item in components if function in (item.get("props", {}).get("server_fns") or []))
    body = {"data": data, "component_id": number, "fn_name": function, "session_hash": "test"}
    answer = client.post("/gradio_api/component_server/", json=body)
    assert answer.status_code == 200
    return dict(answer.json())


def listeners(client: TestClient, output: str) -> list[dict[str, Any]]:
    """The page's handlers that write to the component with this elem_id."""
    config = client.get("/config").json()
    number = next(item["id"] for item in config["components"] if item.get("props", {}).get("elem_id") == output)
    return [listener for listener in config["dependencies"] if number in listener["outputs"]]


def trigger(client: TestClient, listener: dict[str, Any], data: list[Any]) -> str:
    """What a handler answers, as JSON; a queued one is followed to its end."""
    body = {"fn_index": listener["id"], "data": data, "session_hash": new_id()}
    if listener["queue"] is False:
        return client.post("/gradio_api/run/predict", json=body).text
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": body["session_hash"]}) as stream:
        for line in stream.iter_lines():
            if "process_completed" in line:
                return line
    raise AssertionError("the handler did not end")


def test_annotators_are_told_nothing_of_others_labels(app: Asked) -> None:
    client, workspace = app
    log_in(client, "ann")
    event = {"task": 1, "project": 1, "uuid": new_id(), "ranks": [1, 2, 3, 4]}
    for function in ("quality_case", "quality_settle"):
        assert call(client, function, event) == {"error": "ann may not see how others rank; ask a lead"}
    found = listeners(client, "quality-figures")
    assert len(found) == 2
    for listener in found:
        told = trigger(client, listener, [None])
        assert "ann may not see how others rank; ask a lead" in told
        assert "bob" not in told
        assert "Krippendorff" not in told
    log_in(client, "lea")
    assert all("bob" in trigger(client, listener, [None]) for listener in found)
    assert scalar(workspace.store.db, "SELECT count(*) FROM events WHERE kind = 'adjudicate'") == 0


def test_researchers_see_figures_and_settle_nothing(app: Asked) -> None:
    client, workspace = app
    log_in(client, "rex")
    assert call(client, "quality_case", {"task": 1})["case"]["said"][0]["comment"] == "a secret comment"
    event = {"task": 1, "project": 1, "uuid": new_id(), "ranks": [1, 2, 3, 4]}
    for more in ({}, {"kind": "take back"}):
        assert call(client, "quality_settle", event | more) == {"error": "rex may not settle tasks; ask a lead"}
    assert scalar(workspace.store.db, "SELECT count(*) FROM events WHERE kind = 'adjudicate'") == 0
    log_in(client, "lea")
    assert "error" not in call(client, "quality_settle", event)
    assert scalar(workspace.store.db, "SELECT count(*) FROM events WHERE kind = 'adjudicate'") == 1


def test_nobody_lists_the_tokens_of_others(app: Asked) -> None:
    client, workspace = app
    lea = users.User(**rows(workspace.store.db, "SELECT id, name, role FROM users WHERE name = 'lea'")[0])
    tokens.create_token(workspace.store, lea, "program of a lead")
    for name, sees in (("rex", False), ("lea", True)):
        log_in(client, name)
        told = [trigger(client, one, []) for one in listeners(client, "tokens-table") if not one["inputs"]]
        assert told
        assert all(("program of a lead" in answer) is sees for answer in told)
