"""Who gets which task: leases, overlap, order, and what comes back."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import threading
import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import mixing, tasks
from labeler.events import Event
from labeler.history import return_skipped, save_draft, undo
from labeler.projects import Project
from labeler.rankings import record_event
from labeler.store import Store, rows, scalar
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


def expire(workspace: Workspace) -> None:
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET leased_until = ?", [time.time() - 1])


def order_of(workspace: Workspace, user: User) -> list[int]:
    """The tasks as this person gets them, each skipped."""
    found = []
    while (held := tasks.next_assignment(workspace.store, user)) is not None:
        found.append(held.task_id)
        record_event(workspace.store, user, Event(new_id(), held.id, "skip"))
    return found


def test_a_heartbeat_keeps_the_lease_until_somebody_else_has_the_task(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    store, ann, bob = workspace.store, person(workspace, "ann"), person(workspace, "bob")
    held = tasks.next_assignment(store, ann)
    assert held is not None
    expire(workspace)
    assert tasks.heartbeat(store, ann, held.id)
    assert scalar(store.db, "SELECT leased_until FROM assignments") > time.time() + tasks.LEASE_SECONDS - 60
    assert tasks.next_assignment(store, bob) is None
    assert not tasks.heartbeat(store, bob, held.id)
    expire(workspace)
    given = tasks.next_assignment(store, bob)
    assert given is not None
    assert not tasks.heartbeat(store, ann, held.id)
    assert save_draft(store, ann, held.id, {"ranks": [1, None, None, None]})  # kept, but the task stays bob's
    assert record_event(store, bob, Event(new_id(), given.id, "submit", [1, 2, 3, 4]))
    assert not tasks.heartbeat(store, bob, given.id)


def test_a_queue_is_given_as_it_was_added(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 8)
    assert order_of(workspace, person(workspace, "ann")) == list(range(1, 9))


def test_random_order_is_everybodys_own_and_stays(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 30)
    with workspace.store.write() as db:
        db.execute("UPDATE projects SET task_order = 'random'")
        db.execute("UPDATE tasks SET overlap = 3")
    found = [order_of(workspace, person(workspace, name)) for name in ("ann", "bob")]
    assert sorted(found[0]) == sorted(found[1]) == list(range(1, 31))
    assert found[0] != found[1]
    assert found[0] != sorted(found[0])
    cyd = person(workspace, "cyd")
    first = tasks.next_assignment(workspace.store, cyd)
    assert first is not None
    # what comes is what would have come, although somebody else took a task away in between
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET state = 'released' WHERE user_id = ?", [cyd.id])
    again = tasks.next_assignment(workspace.store, cyd)
    assert again is not None
    assert again.task_id == first.task_id


def test_active_order_begins_where_the_priority_is_highest(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 5)
    store, ann = workspace.store, person(workspace, "ann")
    with store.write() as db:
        db.execute("UPDATE projects SET task_order = 'active'")
        db.execute("UPDATE tasks SET priority = 1 WHERE id IN (2, 4)")
    given = [rank(workspace, [1, 2, 3, 4], ann).task_id]
    with store.write() as db:  # the reward model was trained anew
        db.execute("UPDATE tasks SET priority = 2 WHERE id = 5")
    given += [rank(workspace, [1, 2, 3, 4], ann).task_id for _ in range(4)]
    assert given == [2, 5, 4, 1, 3]
    assert tasks.next_assignment(store, ann) is None
    with store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2 WHERE id = 3")
    bobs = tasks.next_assignment(store, person(workspace, "bob"))
    assert bobs is not None
    assert bobs.task_id == 3


@pytest.mark.parametrize("order", ["queue", "random", "active"])
def test_a_task_that_reopens_or_is_added_comes_also_to_those_who_were_through(tmp_path: Path, order: str) -> None:
    workspace = make_workspace(tmp_path, 3)
    store, ann, bob = workspace.store, person(workspace, "ann"), person(workspace, "bob")
    with store.write() as db:
        db.execute("UPDATE projects SET task_order = ?", [order])
    done = rank(workspace, [1, 2, 3, 4], ann)
    rest = order_of(workspace, bob)
    assert len(rest) == 2
    assert tasks.next_assignment(store, bob) is None
    undo(store, ann, new_id())
    assert tasks.next_assignment(store, bob) is None  # it is ann's, until her lease runs out
    expire(workspace)
    given = tasks.next_assignment(store, bob)
    assert given is not None
    assert given.task_id == done.task_id
    record_event(store, bob, Event(new_id(), given.id, "skip"))
    with store.write() as db:
        new = tasks.create_task(db, 1, [1, 2], project_id=1)
    given = tasks.next_assignment(store, bob)
    assert given is not None
    assert given.task_id == new


@pytest.mark.parametrize("order", ["queue", "random", "active"])
def test_what_comes_next_is_known_beforehand_and_nothing_is_taken_for_it(tmp_path: Path, order: str) -> None:
    workspace = make_workspace(tmp_path, 60)
    store = workspace.store
    with store.write() as db:
        db.execute("UPDATE projects SET task_order = ?, gold_rate = 0.2, repeat_rate = 0.1 WHERE id = 1", [order])
        db.execute("UPDATE tasks SET gold_ranks = '[1, 2, 3, 4]' WHERE id > 50")
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    count = "SELECT count(*) FROM assignments"
    guesses, given = [], []
    while (assignment := tasks.next_assignment(store, ann)) is not None:
        given.append(assignment.task_id)
        before = scalar(store.db, count)
        guess = tasks.upcoming(store, ann, assignment.id)
        assert scalar(store.db, count) == before
        assert tasks.next_assignment(store, ann) == assignment  # it is still open
        assert tasks.upcoming(store, bob, assignment.id) is None  # it is ann's
        guesses.append(guess and guess.task_id)
        rank(workspace, [1, 2, 3, 4], ann)
    assert guesses == [*given[1:], None]
    assert len(given) > len(set(given)) > 50  # repeats and known answers were among them


def test_others_may_take_what_would_come_next(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    ann, bob = person(workspace, "ann"), person(workspace, "bob")
    held = tasks.next_assignment(workspace.store, ann)
    assert held is not None
    guess = tasks.upcoming(workspace.store, ann, held.id)
    taken = tasks.next_assignment(workspace.store, bob)
    assert guess is not None
    assert taken is not None
    assert guess.task_id == taken.task_id
    rank(workspace, [1, 2, 3, 4], ann)
    after = tasks.next_assignment(workspace.store, ann)
    assert after is not None
    assert after.task_id not in (held.task_id, taken.task_id)


def work_until_done(path: Path, name: str) -> None:
    """One annotator, as threads and processes of the tests below run it; each submit is sent twice."""
    store = Store(path)
    with store.write() as db:
        user = ensure_user(db, name)
    while (held := tasks.next_assignment(store, user)) is not None:
        event = Event(new_id(), held.id, "submit", [1, 2, 3, 4])
        assert record_event(store, user, event)
        assert not record_event(store, user, event)
    store.close()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_many_at_once_submit_exactly_what_the_overlap_asks_for(tmp_path: Path, kind: str) -> None:
    workspace = make_workspace(tmp_path, 12)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 3")
    names = [f"person {number}" for number in range(6)]
    maker = threading.Thread if kind == "threads" else multiprocessing.get_context("spawn").Process
    workers = [maker(target=work_until_done, args=(workspace.store.path, name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    # whoever came while the last leases were held went home early; nobody else is needed
    for name in names:
        work_until_done(workspace.store.path, name)
    found = rows(
        workspace.store.db,
        "SELECT count(*) AS n, count(DISTINCT user_id) AS people FROM latest_rankings GROUP BY task_id",
    )
    assert found == [{"n": 3, "people": 3}] * 12
    assert scalar(workspace.store.db, "SELECT count(*) FROM events") == 36
    assert scalar(workspace.store.db, "SELECT group_concat(DISTINCT submissions) FROM tasks") == "3"


def test_counts_are_those_of_a_recount(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 12)
    store = workspace.store
    people = [person(workspace, name) for name in ("ann", "bob", "cyd")]
    with store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2")
    dice = random.Random(5)
    for step in range(120):
        user = dice.choice(people)
        act = dice.choice(["submit", "submit", "skip", "undo", "return", "gold", "overlap"])
        if act == "undo":
            with contextlib.suppress(InputError):  # others may have ranked since what was skipped
                undo(store, user, new_id())
        elif act == "return" and step % 3 == 0:
            return_skipped(store, user, new_id())
        elif act == "gold" and step % 4 == 0:
            with store.write() as db:
                gold = None if dice.random() < 0.5 else "[1, 2, 3, 4]"
                db.execute("UPDATE tasks SET gold_ranks = ? WHERE id = ?", [gold, dice.randint(1, 12)])
        elif act == "overlap" and step % 4 == 0:
            with store.write() as db:
                db.execute("UPDATE tasks SET overlap = ? WHERE id = ?", [dice.randint(1, 3), dice.randint(1, 12)])
        elif (held := tasks.next_assignment(store, user)) is not None:
            record_event(store, user, Event(new_id(), held.id, "skip" if act == "skip" else "submit", [1, 2, 3, 4]))
    # the cursors must not hide anything either: what is given is what a search without them finds
    for user in people:
        held = tasks.next_assignment(store, user)
        with store.write() as db:
            db.execute("UPDATE standings SET cursor = NULL")
        assert tasks.next_assignment(store, user) == held
    before = [tasks.progress(store, user) for user in people]
    standings = "SELECT * FROM standings ORDER BY user_id"
    counted, projects = rows(store.db, standings), rows(store.db, "SELECT * FROM projects")
    tasks.rebuild_counts(store)
    assert projects == rows(store.db, "SELECT * FROM projects")
    assert [tasks.progress(store, user) for user in people] == before
    for row, again in zip(counted, rows(store.db, standings), strict=True):
        assert row | {"cursor": None} == again
    assert any(row["done"] and row["dealt_open"] and row["skipped"] for row in counted)


def test_today_begins_at_midnight(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 4)
    store, ann = workspace.store, person(workspace, "ann")
    rank(workspace, [1, 2, 3, 4], ann)
    with store.write() as db:
        db.execute("UPDATE standings SET day = date('now', 'localtime', '-1 day')")
    assert tasks.progress(store, ann)["today"] == 0
    rank(workspace, [1, 2, 3, 4], ann)
    assert tasks.progress(store, ann)["today"] == 1
    assert tasks.progress(store, ann)["done"] == 2


def mixed(workspace: Workspace, user: User, count: int) -> list[str]:
    """What somebody's next tasks are for: label, gold or repeat; each is submitted."""
    found = []
    for _ in range(count):
        held = rank(workspace, [1, 2, 3, 4], user)
        row = rows(
            workspace.store.db,
            "SELECT a.purpose, t.gold_ranks FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id WHERE a.id = ?",
            [held.id],
        )[0]
        found.append("gold" if row["gold_ranks"] else row["purpose"])
    return found


def test_gold_and_repeats_come_at_their_rates_and_do_not_count_as_opinions(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 260)
    store, ann, bob = workspace.store, person(workspace, "ann"), person(workspace, "bob")
    with store.write() as db:
        db.execute("UPDATE tasks SET gold_ranks = '[1, 2, 3, 4]' WHERE id <= 30")
        db.execute("UPDATE projects SET gold_rate = 0.1, repeat_rate = 0.1")
    found = mixed(workspace, ann, 200)
    assert found.count("gold") == 20
    assert 14 <= found.count("repeat") <= 20  # those at the very start had nothing to repeat
    assert found.count("gold") + found.count("repeat") + found.count("label") == 200
    theirs = mixed(workspace, bob, 30)
    assert theirs != found[:30]
    sql = """SELECT count(*) AS n FROM latest_rankings AS r WHERE r.user_id = ? AND {} GROUP BY r.task_id"""
    assert {row["n"] for row in rows(store.db, sql.format("gold_ranks IS NOT NULL"), [ann.id])} == {1}
    # an overlap of 1 is met by labels alone, and gold is for everybody
    assert scalar(store.db, "SELECT max(submissions) FROM tasks WHERE gold_ranks IS NULL") == 1
    again = rows(
        store.db,
        """SELECT r.id - f.id AS gap, r.display_order = f.display_order AS same FROM assignments AS r
            JOIN assignments AS f ON f.task_id = r.task_id AND f.user_id = r.user_id AND f.purpose = 'label'
            WHERE r.purpose = 'repeat'""",
    )
    assert min(row["gap"] for row in again) >= mixing.REPEAT_GAP
    assert sum(row["same"] for row in again) < len(again) / 2  # shuffled anew: 1 in 24 is the same by chance
    assert scalar(store.db, "SELECT count(*) FROM tasks WHERE submissions > overlap AND gold_ranks IS NULL") == 0


def test_an_annotator_cannot_tell_what_is_mixed_in(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 90)
    store, ann = workspace.store, person(workspace, "ann")
    with store.write() as db:
        db.execute("UPDATE tasks SET gold_ranks = '[1, 2, 3, 4]' WHERE id > 70")
        db.execute("UPDATE projects SET gold_rate = 0.2, repeat_rate = 0.1")
    kinds, seen = [], set()
    for step in range(22):  # 30 later the first repeats change what lies ahead for the whole stratum
        before = tasks.progress(store, ann)
        held = tasks.next_assignment(store, ann)
        assert held is not None
        seen.add(tuple(sorted(vars(held))))
        assert tasks.progress(store, ann) == before
        kinds += mixed(workspace, ann, 1)
        after = tasks.progress(store, ann)
        if step != mixing.REPEAT_GAP:
            assert (after["done"], after["remaining"]) == (before["done"] + 1, before["remaining"] - 1)
            assert after["total"] == before["total"]
    assert "gold" in kinds
    assert len(seen) == 1
    assert not {name for name in seen.pop() if "gold" in name or "purpose" in name}


def test_what_lies_ahead_is_counted_as_it_comes() -> None:
    project = Project(7, "p", "ranking", 1, "queue", 0.1, 0.05, 0, 0.7, (), True, False, "", 0)
    for position, real in ((0, 1), (0, 170), (0, 171), (3, 400), (199, 1), (200, 1000), (57, 0)):
        ahead = mixing.positions_ahead(project, 3, position, real, {"gold", "repeat"})
        stream = [mixing.kind_at(project, 3, place) for place in range(position, position + ahead)]
        assert stream.count("label") == real
        assert not stream or stream[-1] == "label"
    assert mixing.positions_ahead(project, 3, 5, 10, set()) == 10
