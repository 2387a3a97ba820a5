"""The REST interface to what a lead does: figures, disagreements settled, and a person's data deleted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeler import quality
from labeler.store import one, rows, scalar
from tests.labeler.labels import rank
from tests.labeler.served import Team, team


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Team]:
    """Three tasks that ann and bob ranked: the same, a little different, the other way round."""
    with team(tmp_path, 3) as found:
        with found.workspace.store.write() as db:
            db.execute("UPDATE tasks SET overlap = 2")
        for ranks in ([1, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]):
            rank(found.workspace, [1, 2, 3, 4], found.users["ann"], comment="a is best")
            rank(found.workspace, ranks, found.users["bob"])
        yield found


def settle(app: Team, who: str, task: int, **said: Any) -> Any:
    said.setdefault("uuid", str(uuid.uuid4()))
    return app.ask(who, "POST", f"/tasks/{task}/adjudication", said)


def test_figures_are_those_of_the_page(app: Team) -> None:
    found = app.ask("rex", "GET", "/projects/1/quality").json()
    measured = quality.measure(app.workspace.store.db, 1)
    assert (found["rankings"], found["cut"]) == (6, False)
    assert found["overall"]["percent"]["value"] == pytest.approx(measured.overall.percent.value)
    assert found["overall"]["percent"]["n"] == 18
    assert found["overall"]["tau"]["value"] == pytest.approx((1 + 2 / 3 - 1) / 3)
    assert [one["name"] for one in found["annotators"]] == ["ann", "bob"]
    assert found["annotators"][0]["suspicions"]["position"]["state"] == "few"
    (pair,) = found["pairs"]
    assert {pair["first_user_id"], pair["second_user_id"]} == {app.users["ann"].id, app.users["bob"].id}
    assert pair["agreement"] == found["overall"]
    assert found["gold"] == {"value": None, "low": None, "high": None, "n": 0}
    assert app.ask("rex", "GET", "/projects/9/quality").status_code == 404
    empty = app.ask("lea", "POST", "/projects", {"name": "Empty"}).json()["id"]
    assert app.ask("rex", "GET", f"/projects/{empty}/quality").json()["rankings"] == 0


def test_a_disagreement_is_settled_once_and_taken_back(app: Team) -> None:
    def disputed() -> list[tuple[int, bool]]:
        found = app.ask("lea", "GET", "/projects/1/disputed").json()
        assert found["next_cursor"] is None
        return [(task["task_id"], task["adjudicated"]) for task in found["items"]]

    assert disputed() == [(3, False), (2, False)]
    part = app.ask("lea", "GET", "/projects/1/disputed", params={"limit": 1}).json()
    rest = app.ask("lea", "GET", "/projects/1/disputed", params={"cursor": part["next_cursor"]}).json()
    assert [part["items"][0]["task_id"], rest["items"][0]["task_id"]] == [3, 2]

    case = app.ask("rex", "GET", "/tasks/3/adjudication").json()
    assert [said["name"] for said in case["said"]] == ["ann", "bob"]
    assert case["completions"][0] == "answer a to 3"
    event = {"uuid": str(uuid.uuid4()), "ranks": [1, 1, 2, None], "comment": "both are fine"}
    first, again = settle(app, "lea", 3, **event), settle(app, "lea", 3, **event)
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.json()["kind"] == "adjudicate"
    assert settle(app, "lea", 3, **event | {"ranks": [2, 1, 1, 1]}).status_code == 409  # a uuid says one thing
    assert disputed() == [(2, False), (3, True)]
    final = app.ask("lea", "GET", "/tasks/3/adjudication").json()
    assert (final["mine"], final["said"][-1]["ranks"], final["said"][-1]["final"]) == (True, [1, 1, 2, None], True)
    assert app.ask("rex", "GET", "/tasks/3/adjudication").json()["mine"] is False

    assert settle(app, "owner", 3, kind="retract").status_code == 409  # another lead's
    assert settle(app, "lea", 3, kind="retract").status_code == 200
    assert disputed() == [(3, False), (2, False)]
    for task, said, status in ((3, {"ranks": [1, 2]}, 422), (3, {}, 422), (99, {"ranks": [1, 2, 3, 4]}, 404)):
        assert settle(app, "lea", task, **said).status_code == status
    for who in ("ann", "rex"):
        assert settle(app, who, 3, ranks=[1, 2, 3, 4]).status_code == 403
    sql = "SELECT kind FROM events WHERE user_id = ?"
    assert [row["kind"] for row in rows(app.workspace.store.db, sql, [app.users["lea"].id])] == [
        "adjudicate",
        "retract",
    ]


def test_a_persons_data_is_deleted_when_their_name_is_said(app: Team) -> None:
    ann = app.users["ann"].id
    for who, user, body, status in (
        ("ann", ann, {"name": "ann", "files": "keep"}, 403),
        ("rex", ann, {"name": "ann", "files": "keep"}, 403),
        ("lea", ann, {"name": "Ann Other", "files": "keep"}, 422),
        ("lea", ann, {"name": "ann", "files": "perhaps"}, 422),
        ("lea", ann, {"name": "ann"}, 422),
        ("lea", 999, {"name": "ann", "files": "keep"}, 404),
        ("lea", app.users["lea"].id, {"name": "lea", "files": "keep"}, 409),
        ("lea", app.users["owner"].id, {"name": "owner", "files": "keep"}, 409),
    ):
        assert app.ask(who, "POST", f"/users/{user}/erase", body).status_code == status
    assert scalar(app.workspace.store.db, "SELECT count(*) FROM latest_rankings WHERE user_id = ?", [ann]) == 3
    answer = app.ask("lea", "POST", f"/users/{ann}/erase", {"name": "ann", "files": "delete"})
    assert answer.status_code == 200
    assert answer.json()["counts"]["events"] == 3
    assert app.ask("ann", "GET", "/me").status_code == 401  # the token went with them
    assert scalar(app.workspace.store.db, "SELECT count(*) FROM latest_rankings WHERE user_id = ?", [ann]) == 0
    (record,) = app.ask("rex", "GET", "/erasures").json()["items"]
    assert (record["user_id"], record["erased_by"]) == (ann, app.users["lea"].id)
    assert (record["cleaned_at"] is not None) == answer.json()["clean"]
    assert one(app.workspace.store.db, "SELECT 1 FROM users WHERE name = 'ann'") is None
