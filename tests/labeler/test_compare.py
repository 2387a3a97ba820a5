"""Blind comparisons on a tiny model: a vote lands once, with its provenance, and names stay hidden until then."""

from __future__ import annotations

import json

import pytest

from data.records import InputError
from labeler.chat import Chat
from labeler.compare import Round, Rounds
from labeler.store import rows, scalar
from labeler.ui.compare import draw
from labeler.users import ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import QUESTION, SHORT, checkpoint_ids


@pytest.fixture
def rounds(talking: Chat) -> Rounds:
    return Rounds(talking)


@pytest.fixture
def finished(rounds: Rounds, workspace: Workspace) -> Round:
    found = start(rounds, workspace)
    for _ in rounds.answer(found):
        pass
    return found


def start(rounds: Rounds, workspace: Workspace, count: int = 2, blind: bool = True) -> Round:
    known = checkpoint_ids(workspace)
    chosen = [workspace.base_checkpoint_id, known["dpo/0001 step 1"], known["dpo/0002 step 1"]][:count]
    return rounds.start(local_owner(workspace.store), QUESTION, chosen, SHORT, blind)


def test_a_vote_is_stored_with_its_provenance(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    owner = local_owner(workspace.store)
    rounds.vote(finished.id, owner, [2, 1])
    event = rows(workspace.store.db, "SELECT * FROM events WHERE uuid = ?", [finished.event_id])[0]
    payload = json.loads(event["payload"])
    assert (event["source"], event["kind"], payload["ranks"], bool(payload["all_bad"])) == (
        "compare", "submit", [2, 1], False,
    )  # fmt: skip
    for side, letter, completion_id in zip(finished.sides, "AB", payload["completion_ids"], strict=True):
        stored = rows(workspace.store.db, "SELECT * FROM completions WHERE id = ?", [completion_id])[0]
        assert (stored["text"], stored["checkpoint_id"]) == (side.text, side.checkpoint.id)
        assert (stored["num_tokens"], stored["finish_reason"]) == (side.num_tokens, side.finish_reason)
        assert json.loads(stored["sampling"]) == {**SHORT.settings(), "side": letter, "blind": True}


def test_a_second_vote_changes_nothing(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    owner = local_owner(workspace.store)
    before = scalar(workspace.store.db, "SELECT count(*) FROM events")
    first = rounds.vote(finished.id, owner, [2, 1]).task_id
    assert rounds.vote(finished.id, owner, [1, 2]).task_id == first
    assert finished.ranks == [2, 1]
    assert scalar(workspace.store.db, "SELECT count(*) FROM events") == before + 1


def test_both_bad_is_a_flag_and_no_comparison(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    rounds.vote(finished.id, local_owner(workspace.store), [None, None], all_bad=True)
    found = rows(workspace.store.db, "SELECT * FROM latest_rankings WHERE uuid = ?", [finished.event_id])[0]
    assert found["all_bad"] == 1
    assert json.loads(found["ranks"]) == [None, None]


def test_no_vote_before_all_have_answered(rounds: Rounds, workspace: Workspace) -> None:
    found = start(rounds, workspace)
    owner = local_owner(workspace.store)
    turns = rounds.answer(found)
    next(turns)
    with pytest.raises(InputError, match="until every side has answered"):
        rounds.vote(found.id, owner, [1, 2])
    turns.close()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="until every side has answered"):
        rounds.vote(found.id, owner, [1, 2])
    assert found.task_id is None


def test_a_round_belongs_to_its_user(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    with workspace.store.write() as db:
        somebody = ensure_user(db, "somebody")
    for round_id, user in ((finished.id, somebody), ("guessed", local_owner(workspace.store)), (None, somebody)):
        with pytest.raises(InputError, match="gone"):
            rounds.vote(round_id, user, [1, 2])


def test_names_are_drawn_only_after_the_vote(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    names = [side.checkpoint.name for side in finished.sides]
    hidden = draw(finished)
    assert not any(name in hidden for name in names)
    assert "tokens" not in hidden, "the length may give a side away"
    rounds.vote(finished.id, local_owner(workspace.store), [1, 1])
    shown = draw(finished)
    assert all(name in shown for name in names)
    assert shown.count(">tie<") == 2


def test_without_blindness_the_sides_keep_their_order_and_names(rounds: Rounds, workspace: Workspace) -> None:
    found = start(rounds, workspace, count=3, blind=False)
    assert found.sides[0].checkpoint.id == workspace.base_checkpoint_id
    assert "dpo/0002 step 1" in draw(found)


def test_blind_sides_are_shuffled(rounds: Rounds, workspace: Workspace) -> None:
    orders = {tuple(side.checkpoint.id for side in start(rounds, workspace, 3).sides) for _ in range(100)}
    assert len(orders) == 6


def test_hostile_answers_stay_text(rounds: Rounds, workspace: Workspace) -> None:
    found = start(rounds, workspace)
    found.sides[0].text = "<script>alert(1)</script><img src=x onerror=alert(1)>${alert(1)}"
    html = draw(found)
    assert "<script" not in html
    assert "<img" not in html


@pytest.mark.parametrize(("chosen", "message"), [([1], "two to 6"), ([1, 1], "chosen twice"), ([1] * 7, "two to 6")])
def test_wrong_choices(rounds: Rounds, workspace: Workspace, chosen: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rounds.start(local_owner(workspace.store), QUESTION, chosen, SHORT, True)


def test_the_conversation_goes_on_with_the_preferred_answer(
    rounds: Rounds, workspace: Workspace, finished: Round
) -> None:
    owner = local_owner(workspace.store)
    with pytest.raises(InputError, match="Vote for an answer first"):
        rounds.proceed(finished.id, owner, "And a dog?")
    rounds.vote(finished.id, owner, [2, 1])
    with pytest.raises(InputError, match="Write the next message"):
        rounds.proceed(finished.id, owner, " ")
    following = rounds.proceed(finished.id, owner, "And a dog?")
    assert following.messages == [
        *QUESTION,
        {"role": "assistant", "content": finished.sides[1].text},
        {"role": "user", "content": "And a dog?"},
    ]
    assert {side.checkpoint.id for side in following.sides} == {side.checkpoint.id for side in finished.sides}
    assert (following.sampling, following.blind, following.revealed) == (finished.sampling, True, False)
    for _ in rounds.answer(following):
        pass
    task = rounds.vote(following.id, owner, [1, 1]).task_id
    assert following.preferred == 0
    sql = "SELECT p.messages FROM tasks AS t JOIN prompts AS p ON p.id = t.prompt_id WHERE t.id = ?"
    assert json.loads(scalar(workspace.store.db, sql, [task])) == following.messages


def test_nothing_goes_on_from_answers_that_are_all_bad(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    owner = local_owner(workspace.store)
    rounds.vote(finished.id, owner, [None, None], all_bad=True)
    with pytest.raises(InputError, match="Vote for an answer first"):
        rounds.proceed(finished.id, owner, "And a dog?")


def test_raw_answers_for_the_differences_are_escaped(rounds: Rounds, workspace: Workspace, finished: Round) -> None:
    finished.sides[0].text = '" onclick="alert(1)"><script>alert(1)</script>'
    html = draw(finished)
    assert "<script" not in html
    assert 'data-text="&quot; onclick=&quot;alert(1)&quot;&gt;&lt;script&gt;' in html
