"""What annotators said: lands once, is never overwritten, and can be taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.records import InputError
from labeler import events, history, projects, tasks, users
from labeler.events import Event
from labeler.history import save_draft
from labeler.rankings import record_comparison, record_event
from labeler.store import rows, scalar
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank


def latest(workspace: Workspace) -> list[list[int | None]]:
    return [json.loads(row["ranks"]) for row in rows(workspace.store.db, "SELECT ranks FROM latest_rankings")]


def kinds(workspace: Workspace) -> list[str]:
    return [row["kind"] for row in rows(workspace.store.db, "SELECT kind FROM events ORDER BY id")]


def test_ranks_are_stored_in_the_tasks_order_as_given(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    assignment = rank(workspace, [3, None, 1, 3], comment="  c is best ")
    row = rows(workspace.store.db, "SELECT * FROM latest_rankings")[0]
    assert json.loads(row["ranks"]) == [3, None, 1, 3]
    assert json.loads(row["completion_ids"]) == [1, 2, 3, 4]
    assert (row["source"], row["comment"], row["all_bad"]) == ("task", "c is best", 0)
    payload = json.loads(row["payload"])
    assert payload["display_order"] == [completion.id for completion in assignment.completions]


def test_the_same_event_lands_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    owner = local_owner(workspace.store)
    assignment = tasks.next_assignment(workspace.store, owner)
    assert assignment is not None
    event = Event(new_id(), assignment.id, "submit", [1, 2, 3, 4])
    assert record_event(workspace.store, owner, event) is True
    assert record_event(workspace.store, owner, event) is False
    assert kinds(workspace) == ["submit"]
    other = tasks.next_assignment(workspace.store, owner)
    assert other is not None
    with pytest.raises(InputError, match="used for something else"):
        record_event(workspace.store, owner, Event(event.uuid, other.id, "submit", [1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([1, None, None, None], "at least two"),
        ([None] * 4, "at least two"),
        ([], "0 ranks"),
        ([1, 2, 3], "3 ranks"),
        ([0, 1, 2, 3], "rank 0"),
        ([10, 1, 2, 3], "rank 10"),
        ([True, 1, 2, 3], "rank True"),
        (["1", 2, 3, 4], "rank '1'"),
        ([1.5, 2, 3, 4], "rank 1.5"),
    ],
)
def test_ranks_that_say_nothing_are_refused(tmp_path: Path, ranks: list[Any], message: str) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    assignment = tasks.next_assignment(workspace.store, owner)
    assert assignment is not None
    with pytest.raises(InputError, match=message):
        record_event(workspace.store, owner, Event(new_id(), assignment.id, "submit", ranks))
    assert kinds(workspace) == []
    assert tasks.next_assignment(workspace.store, owner) == assignment


def test_all_bad_needs_no_ranks(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    rank(workspace, [None] * 4, all_bad=True)
    assert scalar(workspace.store.db, "SELECT all_bad FROM latest_rankings") == 1


def test_a_later_submit_replaces_an_earlier_one_and_both_are_kept(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    assignment = rank(workspace, [1, 2, 3, 4])
    record_event(workspace.store, owner, Event(new_id(), assignment.id, "submit", [2, 2, 2, 1]))
    assert kinds(workspace) == ["submit", "submit"]
    assert len(latest(workspace)) == 1
    assert sorted(latest(workspace)[0]) == [1, 2, 2, 2]  # type: ignore[type-var]
    assert scalar(workspace.store.db, "SELECT submissions FROM tasks") == 1


def test_undo_takes_the_last_one_back_with_what_was_said(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    owner = local_owner(workspace.store)
    rank(workspace, [1, 2, 3, 4])
    second = rank(workspace, [4, None, 2, 1], comment="hm")
    assert tasks.next_assignment(workspace.store, owner) is not None  # a third one is open by now
    uuid = new_id()
    assert history.undo(workspace.store, owner, uuid) == second.id
    assert history.undo(workspace.store, owner, uuid) is None  # the same click again
    assert kinds(workspace) == ["submit", "submit", "retract"]
    assert len(latest(workspace)) == 1
    back = tasks.next_assignment(workspace.store, owner)
    assert back is not None
    assert (back.id, back.completions) == (second.id, second.completions)
    assert back.draft is not None
    by_letter = dict(zip("abcd", [4, None, 2, 1], strict=True))
    assert back.draft["ranks"] == [by_letter[c.text.split()[1]] for c in back.completions]
    assert back.draft["comment"] == "hm"
    assert tasks.progress(workspace.store, owner)["done"] == 1


def test_undo_goes_back_step_by_step_and_stops(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    owner = local_owner(workspace.store)
    first, second = rank(workspace, [1, 2, 3, 4]), rank(workspace, [1, 2, 3, 4])
    assert [history.undo(workspace.store, owner, new_id()) for _ in range(3)] == [second.id, first.id, None]
    assert not history.can_undo(workspace.store, owner)


def test_a_skip_can_be_undone_unless_somebody_else_did_the_task(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    with workspace.store.write() as db:
        from labeler.users import ensure_user

        bob = ensure_user(db, "bob")
    for done_by_bob in (False, True):
        assignment = tasks.next_assignment(workspace.store, owner)
        assert assignment is not None
        record_event(workspace.store, owner, Event(new_id(), assignment.id, "skip"))
        if done_by_bob:
            rank(workspace, [1, 2, 3, 4], bob)
            with pytest.raises(InputError, match="somebody else"):
                history.undo(workspace.store, owner, new_id())
        else:
            assert history.undo(workspace.store, owner, new_id()) == assignment.id


def test_skipped_tasks_come_back_together(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    owner = local_owner(workspace.store)
    for _ in range(3):
        assignment = tasks.next_assignment(workspace.store, owner)
        assert assignment is not None
        record_event(workspace.store, owner, Event(new_id(), assignment.id, "skip"))
    assert tasks.next_assignment(workspace.store, owner) is None
    assert history.return_skipped(workspace.store, owner, new_id()) == 3
    assert kinds(workspace) == ["skip"] * 3 + ["retract"] * 3
    assert tasks.progress(workspace.store, owner)["remaining"] == 3


def test_taking_back_stays_within_the_project(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 4)
    store, owner = workspace.store, local_owner(workspace.store)
    second = projects.create_project(store, owner, "Second").id
    with store.write() as db:
        db.execute("UPDATE tasks SET project_id = ? WHERE id > 2", [second])
    tasks.rebuild_counts(store)
    done = {}
    for project in (1, second):
        for kind in ("submit", "skip"):
            assignment = tasks.next_assignment(store, owner, project)
            assert assignment is not None
            record_event(store, owner, Event(new_id(), assignment.id, kind, [1, 2, 3, 4] if kind == "submit" else []))
            done[project, kind] = assignment.id
    assert history.return_skipped(store, owner, new_id(), 1) == 1  # the later skip is in the other project
    assert tasks.progress(store, owner, second)["skipped"] == 1
    assert history.undo(store, owner, new_id(), 1) == done[1, "submit"]
    assert not history.can_undo(store, owner, 1)
    assert history.undo(store, owner, new_id(), 1) is None
    assert history.undo(store, owner, new_id(), second) == done[second, "skip"]
    assert history.can_undo(store, owner, second)
    assert not history.can_undo(store, owner, 9)


def test_what_a_program_said_can_be_taken_back_too(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    store, owner = workspace.store, local_owner(workspace.store)
    first = rank(workspace, [1, 2, 3, 4])
    assignment = tasks.next_assignment(store, owner)
    assert assignment is not None
    record_event(store, owner, Event(new_id(), assignment.id, "submit", [1, 2, 2, 1], source="api"))
    record_comparison(
        store, owner, assignment.messages, [("x", None, {}), ("y", None, {})], [1, 2], source="api", event_id=new_id()
    )  # of no project: Compare's own
    assert history.undo(store, owner, new_id()) == assignment.id
    back = tasks.next_assignment(store, owner)
    assert back is not None
    assert back.draft is not None
    assert back.draft["ranks"] == [1, 2, 2, 1]
    assert history.undo(store, owner, new_id()) == first.id


def test_what_can_be_taken_back_is_found_without_reading_every_event(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    params = {"user": 1, "project": 1}
    plan = rows(workspace.store.db, f"EXPLAIN QUERY PLAN {history.LAST_EVENT}", params)
    assert any("events_undo (user_id=?)" in row["detail"] for row in plan)


def test_a_draft_comes_back_and_ends_with_the_submit(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    owner = local_owner(workspace.store)
    assignment = tasks.next_assignment(workspace.store, owner)
    assert assignment is not None
    draft = {"ranks": [None, 2, None, 1], "all_bad": False, "comment": "half", "order": [1, 0, 3, 2]}
    assert save_draft(workspace.store, owner, assignment.id, draft)
    back = tasks.next_assignment(workspace.store, owner)
    assert back is not None
    assert back.draft == draft
    record_event(workspace.store, owner, Event(new_id(), assignment.id, "submit", [4, 2, 3, 1]))
    assert scalar(workspace.store.db, "SELECT count(*) FROM drafts") == 0
    # a draft that was still on its way when the ranking was submitted
    assert not save_draft(workspace.store, owner, assignment.id, draft)
    assert latest(workspace)


@pytest.mark.parametrize(
    "draft",
    [{"order": [0, 0, 1, 2]}, {"order": ["a", {}, 1, 2]}, {"order": 3}, {"ranks": [1]}, {"comment": "x" * 20_000}],
)
def test_a_strange_draft_is_cleaned(draft: dict[str, Any]) -> None:
    clean = history.clean_draft(draft, 4)
    assert set(clean) == {"ranks", "all_bad", "comment"}
    assert clean["ranks"] == [None] * 4
    assert len(clean["comment"]) <= events.MAX_COMMENT


def test_a_comparison_is_stored_whole_and_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    sampling = {"temperature": 0.5, "seed": 7, "num_tokens": 3, "finish_reason": "length"}
    event_id = new_id()
    arguments: tuple[Any, ...] = (
        workspace.store,
        owner,
        [{"role": "user", "content": "Hello?"}],
        [("left", 1, sampling), ("right", None, {})],
        [2, 1],
    )
    task_id = record_comparison(*arguments, event_id=event_id)
    assert record_comparison(*arguments, event_id=event_id) == task_id
    row = rows(workspace.store.db, "SELECT * FROM latest_rankings")[0]
    assert (row["task_id"], json.loads(row["ranks"]), row["source"]) == (task_id, [2, 1], "compare")
    left = rows(workspace.store.db, "SELECT * FROM completions WHERE text = 'left'")
    assert [(c["checkpoint_id"], c["num_tokens"], c["finish_reason"]) for c in left] == [(1, 3, "length")]
    assert json.loads(left[0]["sampling"]) == {"temperature": 0.5, "seed": 7}
    # a vote is no work for the Rank tab, and undo there does not touch it
    assert tasks.progress(workspace.store, owner) == {"done": 0, "total": 1, "remaining": 1, "today": 0, "skipped": 0}
    assert history.undo(workspace.store, owner, new_id()) is None


def test_a_comparison_that_fails_leaves_nothing(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    before = scalar(workspace.store.db, "SELECT count(*) FROM completions")
    with pytest.raises(InputError):
        record_comparison(
            workspace.store,
            local_owner(workspace.store),
            [{"role": "user", "content": "Hello?"}],
            [("left", 1, {}), ("right", 1, {})],
            [1, None],
            event_id=new_id(),
        )
    assert scalar(workspace.store.db, "SELECT count(*) FROM completions") == before
    assert scalar(workspace.store.db, "SELECT count(*) FROM prompts") == 1


def test_a_draft_keeps_all_that_a_submit_says(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    assignment = tasks.next_assignment(workspace.store, owner)
    assert assignment is not None
    draft = {
        "ranks": [1, 2, None, 2],
        "tags": [["helpful"], [], ["x", "x"], []],
        "ratings": [5, None, None, 1],
        "strength": 3,
        "rewrite": "better",
        "order": [3, 2, 1, 0],
        "comment": "c",
        "all_bad": False,
        "unknown": "dropped",
    }
    assert save_draft(workspace.store, owner, assignment.id, draft)
    again = tasks.next_assignment(workspace.store, owner)
    assert again is not None
    del draft["unknown"]
    assert again.draft == draft | {"tags": [["helpful"], [], ["x"], []]}
    for broken in ({"tags": [1, 2, 3, 4]}, {"tags": [[1], [], [], []]}, {"ratings": [6, 1, 1, 1]}):
        with pytest.raises(InputError):
            save_draft(workspace.store, owner, assignment.id, {"ranks": [None] * 4, **broken})


def test_history_holds_what_is_in_force_in_display_order(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    store, owner = workspace.store, local_owner(workspace.store)
    done = []
    for number in range(3):
        assignment = tasks.next_assignment(store, owner)
        assert assignment is not None
        event = Event(new_id(), assignment.id, "submit", [1, 2, 3, number + 1], tags=[["a"], [], [], ["d"]])
        record_event(store, owner, event)
        done.append(assignment)
    record_event(store, owner, Event(new_id(), done[0].id, "submit", [4, 3, 2, 1], comment="changed"))
    history.undo(store, owner, new_id())  # takes back the changed one
    assert [label.assignment_id for label in history.labels(store, owner, 1)] == [done[2].id, done[1].id]
    (label,) = history.labels(store, owner, 1, limit=1)
    assert label.said == {"ranks": [1, 2, 3, 3], "tags": [["a"], [], [], ["d"]], "all_bad": False, "comment": ""}
    assert history.labels(store, owner, 2) == []
    other = users.add_user(store, "ann", "annotator", "correct horse")
    assert history.labels(store, other, 1) == []
    with pytest.raises(InputError, match="not yours"):
        history.label(store, other, done[1].id)
