"""Projects: who may make, change and work in them; guidelines; known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.helpers import special_args
from starlette.requests import Request

from data.records import InputError
from labeler import auth, gold, invitations, projects, snapshots, tasks, users
from labeler.store import rows, scalar
from labeler.ui import team
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, rank


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path, 4)


def person(workspace: Workspace, name: str, role: str = "annotator") -> User:
    with workspace.store.write() as db:
        return ensure_user(db, name, role)


def test_a_project_is_made_changed_closed_and_opened(workspace: Workspace) -> None:
    store, lea = workspace.store, person(workspace, "lea", "lead")
    made = projects.create_project(store, lea, " Style ", question="pairwise", overlap=3, tags=["curt", "curt", " "])
    assert (made.name, made.question, made.overlap, made.tags) == ("Style", "pairwise", 3, ("curt",))
    assert (made.archived, made.guidelines_version) == (False, 0)
    changed = projects.change_project(store, lea, made.id, task_order="random", gold_rate=0.1)
    assert (changed.task_order, changed.gold_rate, changed.overlap) == ("random", 0.1, 3)
    projects.archive_project(store, lea, made.id)
    assert [p.id for p in projects.projects_of(store.db, lea)] == [1]
    assert [p.id for p in projects.all_projects(store.db)] == [1, made.id]
    with pytest.raises(InputError, match="closed"):
        tasks.next_assignment(store, lea, made.id)
    projects.archive_project(store, lea, made.id, archived=False)
    assert tasks.next_assignment(store, lea, made.id) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": " "}, "1 to 100"),
        ({"name": "FIRST project"}, "choose another name"),
        ({"question": "riddle"}, "unknown question"),
        ({"task_order": "last"}, "unknown order"),
        ({"overlap": 0}, "from 1 to 1000"),
        ({"overlap": 1.5}, "whole number"),
        ({"qualification": -1}, "from 0"),
        ({"pass_mark": 2}, "0 to 1"),
        ({"gold_rate": 0.5, "repeat_rate": 0.5}, "at most 0.9"),
        ({"tags": ["x" * 61]}, "60 characters"),
        ({"colour": "red"}, "unknown setting"),
    ],
)
def test_wrong_settings_change_nothing(workspace: Workspace, settings: dict[str, Any], message: str) -> None:
    store, lea = workspace.store, person(workspace, "lea", "lead")
    before = rows(store.db, "SELECT * FROM projects")
    with pytest.raises(InputError, match=message):
        projects.create_project(store, lea, **({"name": "New"} | settings))
    other = projects.create_project(store, lea, "Other")
    with pytest.raises(InputError, match=message):
        projects.change_project(store, lea, other.id, **settings)
    assert rows(store.db, "SELECT * FROM projects WHERE id = 1") == before


@pytest.mark.parametrize("role", ["annotator", "researcher"])
def test_only_leads_and_owners_change_projects(workspace: Workspace, role: str) -> None:
    store, ann = workspace.store, person(workspace, "ann", role)
    before = rows(store.db, "SELECT * FROM projects")
    for act in (
        lambda: projects.create_project(store, ann, "Mine"),
        lambda: projects.change_project(store, ann, 1, overlap=2),
        lambda: projects.archive_project(store, ann, 1),
        lambda: projects.write_guidelines(store, ann, 1, "x"),
        lambda: projects.set_members(store, ann, 1, [ann.id]),
        lambda: gold.set_gold(store, ann, 1, [1, 2, 3, 4]),
        lambda: gold.set_gold_as_ranked(store, ann, 1),
    ):
        with pytest.raises(InputError, match="may not change projects"):
            act()
    assert rows(store.db, "SELECT * FROM projects") == before
    assert scalar(store.db, "SELECT count(*) FROM members") == 0


def test_a_project_can_be_for_its_members_and_leads_only(workspace: Workspace) -> None:
    store, lea = workspace.store, person(workspace, "lea", "lead")
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    projects.change_project(store, lea, 1, for_everybody=False)
    projects.set_members(store, lea, 1, [ann.id, ann.id])
    assert [row["name"] for row in projects.members(store.db, 1)] == ["ann"]
    assert tasks.next_assignment(store, ann) is not None
    assert tasks.next_assignment(store, lea) is not None
    with pytest.raises(InputError, match="not open to you"):
        tasks.next_assignment(store, bob)
    with pytest.raises(InputError, match="no user 99"):
        projects.set_members(store, lea, 1, [bob.id, 99])
    assert [row["name"] for row in projects.members(store.db, 1)] == ["ann"]


def test_guidelines_have_versions(workspace: Workspace) -> None:
    store, lea = workspace.store, person(workspace, "lea", "lead")
    assert projects.write_guidelines(store, lea, 1, "  ") == 0
    assert projects.write_guidelines(store, lea, 1, "Be fair.") == 1
    assert projects.write_guidelines(store, lea, 1, " Be fair.\n") == 1
    assert projects.write_guidelines(store, lea, 1, "Be fair and quick.") == 2
    project = projects.get_project(store.db, 1)
    assert (project.guidelines_version, project.guidelines) == (2, "Be fair and quick.")
    found = [(row["version"], row["text"], row["name"]) for row in projects.guidelines_versions(store.db, 1)]
    assert found == [(2, "Be fair and quick.", "lea"), (1, "Be fair.", "lea")]


def test_projects_are_worked_in_apart_from_each_other(workspace: Workspace) -> None:
    store, ann = workspace.store, person(workspace, "ann")
    other = projects.create_project(store, local_owner(store), "Other", overlap=2)
    with store.write() as db:
        task_id = tasks.create_task(db, 1, [1, 2], project_id=other.id)
    assert scalar(store.db, "SELECT overlap FROM tasks WHERE id = ?", [task_id]) == 2
    rank(workspace, [1, 2, 3, 4], ann)
    held = tasks.next_assignment(store, ann, other.id)
    assert held is not None
    assert held.task_id == task_id
    assert tasks.progress(store, ann, other.id)["total"] == 1
    assert tasks.progress(store, ann)["done"] == 1
    counted = projects.counts(store.db)
    assert {key: counted[1][key] for key in ("num_tasks", "num_open", "num_gold", "labels", "annotators")} == {
        "num_tasks": 4,
        "num_open": 3,
        "num_gold": 0,
        "labels": 1,
        "annotators": 1,
    }
    assert (counted[other.id]["num_open"], counted[other.id]["labels"]) == (1, 0)


def test_a_known_answer_is_set_from_ranks_or_from_a_ranking_and_taken_back(workspace: Workspace) -> None:
    store, lea = workspace.store, person(workspace, "lea", "lead")
    mine = rank(workspace, [2, 1, 1, None], lea).task_id
    theirs = rank(workspace, [4, 3, 2, 1], person(workspace, "ann")).task_id
    assert [row["id"] for row in gold.candidates(store.db, lea, 1)] == [mine]
    assert gold.set_gold_as_ranked(store, lea, mine) == [2, 1, 1, None]
    with pytest.raises(InputError, match="nobody adjudicated"):
        gold.set_gold_as_ranked(store, lea, theirs)
    gold.set_gold(store, lea, theirs, [1, 2, 3, 4])
    found = {row["id"]: (row["gold_ranks"], row["answers"]) for row in gold.gold_tasks(store.db, 1)}
    assert found == {mine: ("[2, 1, 1, null]", 1), theirs: ("[1, 2, 3, 4]", 1)}
    assert projects.counts(store.db)[1]["num_gold"] == 2
    assert snapshots.count(store)["rankings"] == 0  # what tests people is not learned from
    gold.set_gold(store, lea, theirs, None)
    assert snapshots.count(store)["rankings"] == 1
    for task_id, ranks, message in (
        (99, [1, 2, 3, 4], "no task 99"),
        (mine, [1, 2], "4 completions but 2 ranks"),
        (mine, [1, None, None, None], "at least two"),
        (mine, [0, 1, 2, 3], "not a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            gold.set_gold(store, lea, task_id, ranks)


def test_a_known_answer_is_not_given_as_work(workspace: Workspace) -> None:
    store, ann = workspace.store, person(workspace, "ann")
    for task_id in (1, 2, 3):
        gold.set_gold(store, local_owner(store), task_id, [1, 2, 3, 4])
    assert rank(workspace, [1, 2, 3, 4], ann).task_id == 4
    assert tasks.next_assignment(store, ann) is None


def asked_by(workspace: Workspace, user: User) -> gr.Request:
    """A request with this person's session, as Gradio hands it to a handler."""
    cookie = f"{auth.COOKIE}={auth.start_session(workspace.store, user)}"
    headers = [(b"cookie", cookie.encode()), (b"host", b"lab.example")]
    return gr.Request(Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}))


@pytest.mark.parametrize("role", ["annotator", "researcher"])
def test_no_handler_of_the_team_tab_serves_others_than_leads(workspace: Workspace, role: str) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    users.set_own_password(store, owner, "horse battery")
    ann = users.add_user(store, "ann", role, "horse battery")
    invitations.invite(store, owner, "annotator")
    projects.write_guidelines(store, owner, 1, "Secret guidelines.")
    gold.set_gold(store, owner, 1, [1, 2, 3, 4])
    with gr.Blocks() as blocks, gr.Tab("Team"):
        team.build(workspace)
    request, lead_request = asked_by(workspace, ann), asked_by(workspace, owner)

    def call(fn: Any, count: int, value: Any, who: gr.Request) -> str:
        return str(fn(*special_args(fn, [value] * count, who)[0]))

    def stored() -> list[str]:
        """All but tokens, which everybody makes for themselves."""
        return [line for line in store.db.conn.iterdump() if not line.startswith('INSERT INTO "tokens"')]

    before, handlers = stored(), 0
    for block in blocks.fns.values():
        for value in (1, None, "annotator"):
            said = call(block.fn, len(block.inputs), value, request)
            assert not [word for word in ("Secret", "First project", "Question 1", "invite/") if word in said], said
            handlers += 1
    assert handlers > 45
    assert stored() == before
    looks = [block for block in blocks.fns.values() if getattr(block.fn, "__name__", "") == "look"]
    shown = "".join(call(block.fn, len(block.inputs), 1, lead_request) for block in looks)
    assert "First project" in shown  # the same calls serve the owner
    assert "Question 1" in shown
