"""Who gets which task: leases, overlap, order, and what comes back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import tasks
from labeler.rankings import Event, record_event, save_draft
from labeler.store import rows, scalar
from labeler.users import User, ensure_user
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank


def person(workspace: Workspace, name: str) -> User:
    with workspace.store.write() as db:
        return ensure_user(db, name)


def test_a_reload_shows_the_same_task_in_the_same_order(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 5)
    ann = person(workspace, "ann")
    first = tasks.next_assignment(workspace.store, ann)
    assert first == tasks.next_assignment(workspace.store, ann)
    assert scalar(workspace.store.db, "SELECT count(*) FROM assignments") == 1


def test_the_order_of_display_is_shuffled(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 40)
    ann = person(workspace, "ann")
    firsts = {rank(workspace, [1, 2, 3, 4], ann).completions[0].text.split()[1] for _ in range(40)}
    assert firsts == set("abcd")  # missing one of four in 40 shuffles: 1 in 25,000


def test_nothing_that_is_shown_names_the_model(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    assignment = tasks.next_assignment(workspace.store, person(workspace, "ann"))
    assert assignment is not None
    assert set(vars(assignment.completions[0])) == {"id", "text", "finish_reason"}


def test_two_people_never_have_the_same_task_at_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 4)
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    seen = []
    for _ in range(2):
        one, other = tasks.next_assignment(workspace.store, ann), tasks.next_assignment(workspace.store, bob)
        assert one is not None
        assert other is not None
        assert one.task_id != other.task_id
        seen += [rank(workspace, [1, 2, 3, 4], ann).task_id, rank(workspace, [1, 2, 3, 4], bob).task_id]
    assert sorted(seen) == [1, 2, 3, 4]
    assert tasks.next_assignment(workspace.store, ann) is None


def test_a_lease_that_ran_out_goes_to_the_next_person(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    held = tasks.next_assignment(workspace.store, ann)
    assert held is not None
    assert tasks.next_assignment(workspace.store, bob) is None
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET leased_until = ?", [time.time() - 1])
    rank(workspace, [1, 2, 3, 4], bob)
    with pytest.raises(InputError, match="somebody else"):
        record_event(workspace.store, ann, Event(new_id(), held.id, "submit", [1, 2, 3, 4]))
    assert tasks.next_assignment(workspace.store, ann) is None
    assert scalar(workspace.store.db, "SELECT count(*) FROM latest_rankings") == 1


def test_a_lease_that_ran_out_is_kept_where_nobody_else_came(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    ann = person(workspace, "ann")
    held = tasks.next_assignment(workspace.store, ann)
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET leased_until = ?", [time.time() - 1])
    assert tasks.next_assignment(workspace.store, ann) == held
    assert scalar(workspace.store.db, "SELECT leased_until FROM assignments") > time.time()


def test_a_draft_renews_the_lease(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    ann = person(workspace, "ann")
    held = tasks.next_assignment(workspace.store, ann)
    assert held is not None
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET leased_until = ?", [time.time() - 1])
    assert save_draft(workspace.store, ann, held.id, {"ranks": [1, None, None, None]})
    assert tasks.next_assignment(workspace.store, person(workspace, "bob")) is None


def test_overlap_asks_for_that_many_people_and_no_more(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2")
    people = [person(workspace, name) for name in ("ann", "bob", "cyd")]
    done = []
    while True:
        open_to = [user for user in people if tasks.next_assignment(workspace.store, user)]
        if not open_to:
            break
        done.append((rank(workspace, [1, 2, 3, 4], open_to[0]).task_id, open_to[0].name))
    assert len(done) == len(set(done)) == 4
    assert [row["submissions"] for row in rows(workspace.store.db, "SELECT submissions FROM tasks")] == [2, 2]


def test_skipped_tasks_are_for_others(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    first = tasks.next_assignment(workspace.store, ann)
    assert first is not None
    record_event(workspace.store, ann, Event(new_id(), first.id, "skip"))
    second = tasks.next_assignment(workspace.store, ann)
    assert second is not None
    assert second.task_id != first.task_id
    given = tasks.next_assignment(workspace.store, bob)
    assert given is not None
    assert given.task_id == first.task_id


def test_progress_counts_what_is_done_and_what_is_left(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 5)
    ann = person(workspace, "ann")
    rank(workspace, [1, 2, 3, 4], ann)
    rank(workspace, [1, 2, 3, 4], ann)
    skipped = tasks.next_assignment(workspace.store, ann)
    assert skipped is not None
    record_event(workspace.store, ann, Event(new_id(), skipped.id, "skip"))
    expected = {"done": 2, "total": 4, "remaining": 2, "today": 2, "skipped": 1}
    assert tasks.progress(workspace.store, ann) == expected
    expected = {"done": 0, "total": 3, "remaining": 3, "today": 0, "skipped": 0}
    assert tasks.progress(workspace.store, person(workspace, "bob")) == expected


def test_an_assignment_is_its_owners(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    held = tasks.next_assignment(workspace.store, person(workspace, "ann"))
    assert held is not None
    bob = person(workspace, "bob")
    with pytest.raises(InputError, match="not yours"):
        tasks.get_assignment(workspace.store.db, held.id, bob)
    with pytest.raises(InputError, match="not yours"):
        record_event(workspace.store, bob, Event(new_id(), held.id, "submit", [1, 2, 3, 4]))
    assert not save_draft(workspace.store, bob, held.id, {"ranks": [1, 2, 3, 4]})


@pytest.mark.parametrize("ids", [[1], [1, 1], list(range(1, 11))])
def test_a_task_needs_two_to_nine_different_completions(tmp_path: Path, ids: list[int]) -> None:
    workspace = make_workspace(tmp_path, 3)
    with pytest.raises(InputError), workspace.store.write() as db:
        tasks.create_task(db, 1, ids, project_id=1)


def test_the_display_order_holds_the_tasks_completions(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    held = tasks.next_assignment(workspace.store, person(workspace, "ann"))
    assert held is not None
    stored = json.loads(scalar(workspace.store.db, "SELECT display_order FROM assignments"))
    assert [completion.id for completion in held.completions] == stored
    assert sorted(stored) == tasks.completion_ids(workspace.store.db, held.task_id)
