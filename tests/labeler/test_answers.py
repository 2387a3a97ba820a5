"""Answers in the making on a tiny model: the right adapter, fair turns, kept as they grow, stopped, scored."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from data.records import InputError
from labeler import conversations
from labeler.answers import Answers, Choices
from labeler.chat import Chat, Sampling
from labeler.conversations import Conversation, Turn
from labeler.store import scalar
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import QUESTION, checkpoint_ids, untrained_reward_model, wait_for

LONG = Sampling(max_new_tokens=24, temperature=1.0, seed=5)
TEXT = QUESTION[0]["content"]
CHOICES = ("dpo/0001 step 1", "dpo/0002 step 1")


@pytest.fixture(scope="module")
def answers(talking: Chat) -> Answers:
    talking.base()
    return Answers(talking)


@pytest.fixture
def owner(workspace: Workspace) -> User:
    return local_owner(workspace.store)


def chosen(workspace: Workspace, name: str | None = None, sampling: Sampling = LONG) -> Choices:
    known = checkpoint_ids(workspace)
    return Choices(known[name] if name else workspace.base_checkpoint_id, sampling=sampling)


def finished(answers: Answers, user: User, conversation_id: int) -> Turn:
    """The last turn, once the answer has ended."""
    writing = answers.find(conversation_id)
    if writing is not None:
        assert writing.done.wait(60)
    found = load(answers, user, conversation_id)
    assert found.leaf_id is not None
    return found.turns[found.leaf_id]


def load(answers: Answers, user: User, conversation_id: int) -> Conversation:
    return conversations.get(answers.store.db, user, conversation_id)


def test_three_people_three_checkpoints_at_once(answers: Answers, workspace: Workspace) -> None:
    names = [None, *CHOICES]
    alone = [
        list(answers.chat.stream(chosen(workspace, name).checkpoint_id, QUESTION, LONG))[-1].text_so_far
        for name in names
    ]
    assert len(set(alone)) == 3, "the three adapters answer differently"
    with workspace.store.write() as db:
        people = [ensure_user(db, name) for name in ("ann", "bob", "cid")]
    base = answers.chat.base()
    open_now = [
        answers.ask(user, TEXT, None, chosen(workspace, name)) for user, name in zip(people, names, strict=True)
    ]
    ends = [finished(answers, user, number) for user, number in zip(people, open_now, strict=True)]
    assert [turn.text for turn in ends] == alone
    assert [turn.settings["checkpoint"] for turn in ends] == [f"base {Path(workspace.base_model).name}", *CHOICES]
    assert answers.chat.base() is base


def test_everybody_gets_tokens_in_turn(answers: Answers, workspace: Workspace) -> None:
    sampling = Sampling(max_new_tokens=100, temperature=1.0, seed=5)
    streams = [
        answers.chat.stream(chosen(workspace, name).checkpoint_id, QUESTION, sampling) for name in (None, *CHOICES)
    ]
    counts, at_first_end, ready = [0, 0, 0], list[list[int]](), threading.Barrier(3)

    def take(place: int) -> None:
        next(streams[place])
        ready.wait(60)
        for _ in streams[place]:
            counts[place] += 1
        at_first_end.append(list(counts))

    threads = [threading.Thread(target=take, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    first = at_first_end[0]
    assert min(first) >= 0.8 * min(max(first), min(counts)), (first, counts)


def test_an_answer_is_kept_as_it_grows_and_can_be_stopped(answers: Answers, workspace: Workspace, owner: User) -> None:
    sampling = Sampling(max_new_tokens=1900, temperature=1.0, seed=1)
    number = answers.ask(owner, TEXT, None, chosen(workspace, sampling=sampling))
    with pytest.raises(InputError, match="is being written in this conversation"):
        answers.ask(owner, "And a dog?", number, chosen(workspace))
    kept = wait_for(lambda: scalar(workspace.store.db, "SELECT text FROM turns ORDER BY id DESC LIMIT 1"))
    answers.stop(number)
    turn = finished(answers, owner, number)
    assert turn.finish_reason == "stopped"
    assert turn.text.startswith(kept)
    assert turn.num_tokens
    assert turn.first_token_seconds
    assert len(load(answers, owner, number).turns) == 2


def test_what_a_crash_left_is_said_to_be_interrupted(answers: Answers, workspace: Workspace, owner: User) -> None:
    number = answers.ask(owner, TEXT, None, chosen(workspace))
    turn = finished(answers, owner, number)
    with workspace.store.write() as db:  # as it stands while it is written
        db.execute("UPDATE turns SET text = 'Call it', finish_reason = NULL WHERE id = ?", [turn.id])
    Answers(answers.chat)
    left = finished(answers, owner, number)
    assert (left.text, left.finish_reason) == ("Call it", "interrupted")


def test_regenerating_draws_a_new_seed_and_editing_branches(
    answers: Answers, workspace: Workspace, owner: User
) -> None:
    number = answers.ask(owner, TEXT, None, chosen(workspace))
    first = finished(answers, owner, number)
    answers.again(owner, first.id, chosen(workspace))
    second = finished(answers, owner, number)
    answers.again(owner, second.id, chosen(workspace, CHOICES[0]))
    third = finished(answers, owner, number)
    assert [turn.settings["seed"] for turn in (first, second, third)] == [5, 6, 7]
    found = load(answers, owner, number)
    assert [turn.id for turn in found.versions(third)] == [first.id, second.id, third.id]
    conversations.choose(workspace.store, owner, first.id)
    answers.ask(owner, "Another one?", number, chosen(workspace))
    longer = finished(answers, owner, number)
    assert [turn.id for turn in load(answers, owner, number).branch(longer.id)][1] == first.id
    question = found.turns[first.parent_id or 0]
    answers.edit(owner, question.id, "A name for a dog?", chosen(workspace))
    other = finished(answers, owner, number)
    found = load(answers, owner, number)
    assert [turn.text for turn in found.branch(other.id)] == ["A name for a dog?", other.text]
    assert conversations.choose(workspace.store, owner, question.id) == number
    shown = load(answers, owner, number)
    assert question.id in [turn.id for turn in shown.branch(shown.leaf_id)]


def test_what_is_too_long_is_refused_and_nothing_is_stored(answers: Answers, workspace: Workspace, owner: User) -> None:
    before = scalar(workspace.store.db, "SELECT count(*) FROM turns")
    with pytest.raises(InputError, match="has reached the 2048 tokens"):
        answers.ask(owner, "word " * 3000, None, chosen(workspace))
    assert scalar(workspace.store.db, "SELECT count(*) FROM turns") == before
    assert not scalar(workspace.store.db, "SELECT 1 FROM conversations WHERE title LIKE 'word%'")


def test_an_answer_that_fails_leaves_its_question(answers: Answers, workspace: Workspace, owner: User) -> None:
    folder = next((workspace.runs_folder / "0002-dpo" / "checkpoints").iterdir())
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        number = answers.ask(owner, TEXT, None, chosen(workspace, CHOICES[1]))
        turn = finished(answers, owner, number)
        assert (turn.role, turn.text) == ("user", TEXT)
        assert "are gone from" in answers.problem(number)
    finally:
        hidden.rename(folder)
    answers.again(owner, turn.id, chosen(workspace, CHOICES[1]))
    assert finished(answers, owner, number).role == "assistant"
    assert answers.problem(number) == ""


def test_a_reward_model_scores_each_answer(answers: Answers, workspace: Workspace, owner: User) -> None:
    if "reward/0001 step 1" not in checkpoint_ids(workspace):
        untrained_reward_model(workspace)
    reward = checkpoint_ids(workspace)["reward/0001 step 1"]
    base_id = workspace.base_checkpoint_id
    number = answers.ask(owner, TEXT, None, Choices(base_id, reward, sampling=LONG))
    turn = finished(answers, owner, number)
    known = conversations.scores(workspace.store.db, number)
    assert known[turn.id].keys() == {reward}
    ended = turn.finish_reason == "stop"
    assert known[turn.id][reward] == pytest.approx(answers.chat.score(reward, QUESTION, turn.text, ended), abs=1e-5)
    # chosen afterwards: what is shown gets its score then
    number = answers.ask(owner, TEXT, None, chosen(workspace))
    turn = finished(answers, owner, number)
    answers.score(owner, number, reward)
    assert conversations.scores(workspace.store.db, number)[turn.id][reward] == pytest.approx(
        known.popitem()[1][reward]
    )
    with pytest.raises(InputError, match="gives no scores here"):
        answers.score(owner, number, base_id)
