"""Known answers before real work: who passes, who does not, and what the lead may do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.records import InputError
from labeler import gold, projects, qualification, tasks
from labeler.events import Event
from labeler.history import undo
from labeler.qualification import agreed_pairs
from labeler.rankings import record_event
from labeler.store import scalar
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Twelve tasks, seven of which have the known answer a > b > c > d; three come first, and 0.7 is enough."""
    workspace = make_workspace(tmp_path, 12)
    owner = local_owner(workspace.store)
    for task_id in range(6, 13):
        gold.set_gold(workspace.store, owner, task_id, [1, 2, 3, 4])
    projects.change_project(workspace.store, owner, 1, qualification=3, pass_mark=0.7)
    return workspace


def person(workspace: Workspace, name: str, role: str = "annotator") -> User:
    with workspace.store.write() as db:
        return ensure_user(db, name, role)


def status(workspace: Workspace, user: User) -> qualification.Status:
    return qualification.status(workspace.store.db, user, projects.get_project(workspace.store.db, 1))


def test_pairs_agree_where_they_are_ordered_as_known() -> None:
    assert agreed_pairs([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert agreed_pairs([1, 2, 3], [5, 6, 9]) == (3, 3)  # the order counts, not the numbers
    assert agreed_pairs([1, 2, 3], [3, 2, 1]) == (0, 3)
    assert agreed_pairs([1, 1, 2], [1, 1, 2]) == (3, 3)  # a tie is an order of its own
    assert agreed_pairs([1, 1, 2], [1, 2, 3]) == (2, 3)
    assert agreed_pairs([1, 2, 3], [1, 1, 1]) == (0, 3)
    assert agreed_pairs([1, None, 2], [1, 2, 3]) == (1, 1)  # the known answer says nothing of the others
    assert agreed_pairs([1, 2, 3], [1, 2, None]) == (1, 3)  # to rank little is not to agree
    assert agreed_pairs([1, 2], [None, None]) == (0, 1)


def test_who_agrees_goes_on_to_real_work_and_stays_qualified(workspace: Workspace) -> None:
    ann = person(workspace, "ann")
    assert status(workspace, ann) == qualification.Status(3, 0, None, False)
    given = [rank(workspace, ranks, ann).task_id for ranks in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 4, 3])]
    assert min(given) >= 6
    assert len(set(given)) == 3
    found = status(workspace, ann)
    assert (found.done, found.pairs, found.passed) == (3, 18, True)
    assert found.agreement == pytest.approx(17 / 18)
    assert rank(workspace, [4, 3, 2, 1], ann).task_id == 1
    projects.change_project(workspace.store, local_owner(workspace.store), 1, qualification=7, pass_mark=1.0)
    assert status(workspace, ann).passed
    assert rank(workspace, [4, 3, 2, 1], ann).task_id == 2


def test_who_falls_short_is_told_so_and_the_lead_may_let_them_in(workspace: Workspace) -> None:
    store, bob, lea = workspace.store, person(workspace, "bob"), person(workspace, "lea", "lead")
    for _ in range(3):
        rank(workspace, [4, 3, 2, 1], bob)
    assert status(workspace, bob).failed
    with pytest.raises(InputError, match=r"0% of 18 pairs.*70%.*ask the project's lead"):
        tasks.next_assignment(store, bob)
    with pytest.raises(InputError, match="may not change"):
        qualification.let_in(store, bob, bob.id, 1)
    qualification.let_in(store, lea, bob.id, 1)
    assert status(workspace, bob).passed
    held = tasks.next_assignment(store, bob)
    assert held is not None
    assert held.task_id == 1


def test_a_second_try_has_other_known_answers(workspace: Workspace) -> None:
    store, bob, lea = workspace.store, person(workspace, "bob"), person(workspace, "lea", "lead")
    first = {rank(workspace, [4, 3, 2, 1], bob).task_id for _ in range(3)}
    with pytest.raises(InputError, match="may not change"):
        qualification.reset(store, bob, bob.id, 1)
    qualification.reset(store, lea, bob.id, 1)
    assert status(workspace, bob) == qualification.Status(3, 0, None, False)
    second = {rank(workspace, [1, 2, 3, 4], bob).task_id for _ in range(3)}
    assert not first & second
    assert status(workspace, bob).passed
    with pytest.raises(InputError, match="not seen 1 of the known answers, and 3 are needed"):
        qualification.reset(store, lea, bob.id, 1)
    with pytest.raises(InputError, match="no user 99"):
        qualification.let_in(store, lea, 99, 1)


def test_a_skip_does_not_choose_easier_ones_but_can_be_taken_back(workspace: Workspace) -> None:
    store, ann = workspace.store, person(workspace, "ann")
    for _ in range(3):
        held = tasks.next_assignment(store, ann)
        assert held is not None
        record_event(store, ann, Event(new_id(), held.id, "skip"))
    assert status(workspace, ann).failed
    undo(store, ann, new_id())
    assert (status(workspace, ann).done, status(workspace, ann).failed) == (2, False)


def test_leads_need_not_qualify(workspace: Workspace) -> None:
    for role in ("lead", "owner"):
        user = person(workspace, f"a {role}", role)
        assert status(workspace, user).passed
        assert tasks.next_assignment(workspace.store, user) is not None
        assert scalar(workspace.store.db, "SELECT max(task_id) FROM assignments") < 6


def test_too_few_known_answers_is_said(workspace: Workspace) -> None:
    store, owner, ann = workspace.store, local_owner(workspace.store), person(workspace, "ann")
    for task_id in range(7, 13):
        gold.set_gold(store, owner, task_id, None)
    rank(workspace, [1, 2, 3, 4], ann)
    with pytest.raises(InputError, match=r"no more of them for you\. Ask the project's lead"):
        tasks.next_assignment(store, ann)


def test_everybody_who_began_is_listed(workspace: Workspace) -> None:
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    rank(workspace, [1, 2, 3, 4], ann)
    qualification.let_in(workspace.store, local_owner(workspace.store), bob.id, 1)
    project = projects.get_project(workspace.store.db, 1)
    found = [
        (row["name"], state.done, state.passed) for row, state in qualification.everybody(workspace.store.db, project)
    ]
    assert found == [("ann", 1, False), ("bob", 0, True)]


def test_an_open_real_task_waits_while_qualification_is_asked_for(workspace: Workspace) -> None:
    store, owner, ann = workspace.store, local_owner(workspace.store), person(workspace, "ann")
    projects.change_project(store, owner, 1, qualification=0)
    real = tasks.next_assignment(store, ann)
    projects.change_project(store, owner, 1, qualification=1)
    assert real is not None
    assert rank(workspace, [1, 2, 3, 4], ann).task_id >= 6
    assert tasks.next_assignment(store, ann) == real
