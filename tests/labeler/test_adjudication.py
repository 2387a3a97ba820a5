"""Adjudication: the worst disagreements first, the lead's ranking alone is learned from, and all of it as events."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.formats import read_rows
from data.records import InputError
from labeler import adjudication, history, snapshots, tasks
from labeler.events import Event
from labeler.projects import FIRST
from labeler.rankings import record_event
from labeler.store import rows, scalar
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three tasks, two annotators: they agree on the first, differ a little on the second, wholly on the third."""
    workspace = make_workspace(tmp_path, 3)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2")
    ann, ben = people(workspace)
    for first, second in (([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 4, 3]), ([1, 2, 3, 4], [4, 3, 2, 1])):
        rank(workspace, first, ann, comment="a is best")
        rank(workspace, second, ben)
    return workspace


def people(workspace: Workspace) -> tuple[User, User]:
    with workspace.store.write() as db:
        return ensure_user(db, "ann"), ensure_user(db, "ben")


def learned(workspace: Workspace, filters: dict | None = None) -> list[tuple[str, str, list[int]]]:
    """(task's letter-free prompt, annotator, ranks) of a snapshot."""
    path = workspace.folder / "learned.jsonl"
    snapshots.write_snapshot(workspace.store, path, "preferences", filters or {}, None)
    return [(row["prompt"][0]["content"], row["annotator"], row["ranks"]) for _, row in read_rows(path)]


def test_the_least_agreement_comes_first_and_agreement_not_at_all(workspace: Workspace) -> None:
    found = adjudication.candidates(workspace.store.db, FIRST)
    assert [(one.task_id, one.people, one.share) for one in found] == [(3, 2, 0.0), (2, 2, pytest.approx(5 / 6))]
    assert found[0].tau == -1.0
    assert len(adjudication.candidates(workspace.store.db, FIRST, limit=1)) == 1


def test_the_rankings_stand_side_by_side(workspace: Workspace) -> None:
    found = adjudication.case(workspace.store.db, 3, local_owner(workspace.store))
    assert found.completions == [f"answer {letter} to 3" for letter in "abcd"]
    assert [(one.name, one.ranks, one.comment, one.final) for one in found.said] == [
        ("ann", [1, 2, 3, 4], "a is best", False),
        ("ben", [4, 3, 2, 1], "", False),
    ]
    with pytest.raises(InputError, match="no such task"):
        adjudication.case(workspace.store.db, 99, local_owner(workspace.store))


def test_the_final_ranking_alone_is_learned_from_until_it_is_taken_back(workspace: Workspace) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    before = learned(workspace)
    mark = scalar(store.db, "SELECT max(id) FROM events")
    uuid = new_id()
    assert adjudication.adjudicate(store, owner, 3, [2, 1, 3, 3], uuid=uuid, comment="b is shorter") is True
    assert adjudication.adjudicate(store, owner, 3, [2, 1, 3, 3], uuid=uuid) is False  # a retry
    after = learned(workspace)
    assert len(before) == 6
    assert [row for row in after if row[0] == "Question 3?"] == [("Question 3?", "owner", [2, 1, 3, 3])]
    assert [row for row in after if row[0] != "Question 3?"] == [row for row in before if row[0] != "Question 3?"]
    # as of before it was said, nothing has changed; nor has anything that the annotators said
    assert learned(workspace, {"event_high_water": mark}) == before
    assert scalar(store.db, "SELECT count(*) FROM events WHERE kind = 'submit'") == 6
    assert adjudication.candidates(store.db, FIRST)[-1].adjudicated
    assert adjudication.case(store.db, 3, owner).said[-1].final

    settled = scalar(store.db, "SELECT max(id) FROM events")
    assert adjudication.take_back(store, owner, 3, new_id()) is True
    assert learned(workspace) == before
    assert learned(workspace, {"event_high_water": settled}) == after
    with pytest.raises(InputError, match="nothing to take back"):
        adjudication.take_back(store, owner, 3, new_id())
    assert adjudication.adjudicate(store, owner, 3, [1, 2, 3, 4], uuid=new_id()) is True
    assert adjudication.adjudicate(store, owner, 3, [4, 3, 2, 1], uuid=new_id()) is True  # changed their mind
    assert [row for row in learned(workspace) if row[0] == "Question 3?"] == [("Question 3?", "owner", [4, 3, 2, 1])]


def test_of_two_leads_the_last_word_counts(workspace: Workspace) -> None:
    store = workspace.store
    with store.write() as db:
        ada, bea = ensure_user(db, "ada", "lead"), ensure_user(db, "bea", "lead")
    adjudication.adjudicate(store, ada, 3, [1, 2, 3, 4], uuid=new_id())
    adjudication.adjudicate(store, bea, 3, [4, 3, 2, 1], uuid=new_id())
    assert ("Question 3?", "bea", [4, 3, 2, 1]) in learned(workspace)
    assert len(learned(workspace)) == 5
    assert not adjudication.case(store.db, 3, ada).mine
    adjudication.take_back(store, bea, 3, new_id())
    assert ("Question 3?", "ada", [1, 2, 3, 4]) in learned(workspace)
    with pytest.raises(InputError, match="have not settled this task"):
        adjudication.take_back(store, bea, 2, new_id())


def test_it_does_not_count_toward_the_overlap_nor_come_up_in_the_rank_tab(workspace: Workspace) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    with store.write() as db:
        db.execute("UPDATE tasks SET overlap = 3")
    adjudication.adjudicate(store, owner, 3, [1, 2, 3, 4], uuid=new_id())
    assert rows(store.db, "SELECT submissions FROM tasks") == [{"submissions": 2}] * 3
    adjudication.take_back(store, owner, 3, new_id())
    given = tasks.next_assignment(store, owner)
    assert given is not None
    purpose = scalar(store.db, "SELECT purpose FROM assignments WHERE id = ?", [given.id])
    assert (given.task_id, purpose) == (1, "label")
    assert history.can_undo(store, owner) is False


def test_only_leads_settle_and_only_by_this_way(workspace: Workspace) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    ann, _ = people(workspace)
    for act in (
        lambda: adjudication.adjudicate(store, ann, 3, [1, 2, 3, 4], uuid=new_id()),
        lambda: adjudication.take_back(store, ann, 3, new_id()),
    ):
        with pytest.raises(InputError, match="may not settle"):
            act()
    with pytest.raises(InputError, match="at least two"):
        adjudication.adjudicate(store, owner, 3, [1, None, None, None], uuid=new_id())
    assert scalar(store.db, "SELECT count(*) FROM assignments WHERE purpose = 'adjudicate'") == 0  # nothing is left
    with pytest.raises(InputError, match="no such task"):
        adjudication.adjudicate(store, owner, 99, [1, 2, 3, 4], uuid=new_id())
    own = scalar(store.db, "SELECT id FROM assignments WHERE user_id = ? AND task_id = 3", [ann.id])
    with pytest.raises(InputError, match="Quality page"):
        record_event(store, ann, Event(new_id(), own, "adjudicate", [1, 2, 3, 4]))
    adjudication.adjudicate(store, owner, 3, [1, 2, 3, 4], uuid=new_id())
    theirs = scalar(store.db, "SELECT id FROM assignments WHERE purpose = 'adjudicate'")
    with pytest.raises(InputError, match="Quality page"):
        record_event(store, owner, Event(new_id(), theirs, "submit", [1, 2, 3, 4]))
