"""Conversations in SQLite: whose they are, branches, what is exported, and preferences between versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.records import InputError
from labeler import conversations, erasure
from labeler.chat_preferences import prefer, said
from labeler.conversations import Conversation
from labeler.store import Store, one, rows, scalar
from labeler.ui.chat_view import read_choices, turn_view
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace

CUT = {"temperature": 0.5, "seed": 1, "checkpoint": "base"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path, rankings=0)


@pytest.fixture
def store(workspace: Workspace) -> Store:
    return workspace.store


@pytest.fixture
def ann(store: Store) -> User:
    with store.write() as db:
        return ensure_user(db, "ann")


def talk(store: Store, user: User, *answers: str, ends: str = "stop", system: tuple[str, ...] = ()) -> Conversation:
    """A question with these answers, each a version."""
    with store.write() as db:
        asked = conversations.ask(db, user, "What is a good name for a cat?", None)
        found, question = conversations.of_turn(db, user, asked)
        made = [
            conversations.begin_answer(
                db, question, 1, CUT | {"system_prompt": system[i] if system else "Be brief.", "seed": i}, {}
            )
            for i in range(len(answers))
        ]
    for turn_id, text in zip(made, answers, strict=True):
        conversations.save_answer(store, turn_id, text, 3, 0.2, 0.5, ends)
    return conversations.get(store.db, user, found.id)


def ids(found: Conversation) -> list[int]:
    return [turn.id for turn in found.turns.values() if turn.role == "assistant"]


def test_a_conversation_belongs_to_its_user(store: Store, ann: User) -> None:
    found = talk(store, ann, "Tom.", "Mimi.")
    eve, leaf = local_owner(store), ids(found)[0]
    assert conversations.list_conversations(store, eve) == []
    refused: list[Any] = [
        lambda: conversations.get(store.db, eve, found.id),
        lambda: conversations.of_turn(store.db, eve, leaf),
        lambda: conversations.open_conversation(store, eve, found.id),
        lambda: conversations.choose(store, eve, leaf),
        lambda: conversations.rename(store, eve, found.id, "mine"),
        lambda: conversations.delete(store, eve, found.id),
        lambda: conversations.export(store, eve, found.id),
        lambda: prefer(store, eve, *ids(found)),
    ]
    for act in refused:
        with pytest.raises(InputError, match="gone or is not yours"):
            act()
    assert conversations.get(store.db, ann, found.id) == found


def test_listed_renamed_and_deleted(store: Store, ann: User) -> None:
    first, second = talk(store, ann, "Tom."), talk(store, ann, "Mimi.")
    conversations.open_conversation(store, ann, first.id)
    conversations.rename(store, ann, second.id, "  Cats \n and dogs ")
    assert conversations.list_conversations(store, ann) == [
        (first.id, "What is a good name for a cat?"),
        (second.id, "Cats and dogs"),
    ]
    with pytest.raises(InputError, match="1 to 100 characters"):
        conversations.rename(store, ann, second.id, " ")
    conversations.delete(store, ann, first.id)
    assert [number for number, _ in conversations.list_conversations(store, ann)] == [second.id]
    assert scalar(store.db, "SELECT count(*) FROM turns WHERE conversation_id = ?", [first.id]) == 0


def test_a_long_conversation_can_be_deleted(store: Store, ann: User) -> None:
    found = talk(store, ann, "Tom.")
    with store.write() as db:
        parent = ids(found)[0]
        for _ in range(1200):  # deeper than SQLite lets one deletion cause another
            parent = db.execute(
                "INSERT INTO turns (conversation_id, parent_id, role, text) VALUES (?, ?, 'user', 'And?')",
                [found.id, parent],
            ).lastrowid
    conversations.delete(store, ann, found.id)
    assert scalar(store.db, "SELECT count(*) FROM turns") == 0


def test_a_question_without_an_answer_is_replaced(store: Store, ann: User) -> None:
    with store.write() as db:
        first = conversations.ask(db, ann, "One?", None)
        found, _ = conversations.of_turn(db, ann, first)
        second = conversations.ask(db, ann, "Two?", found.id)
        found, turn = conversations.of_turn(db, ann, second)
    assert [each.id for each in found.branch(found.leaf_id)] == [second]
    assert [each.id for each in found.versions(turn)] == [first, second]


def test_export_holds_the_shown_branch_and_everything(store: Store, ann: User) -> None:
    found = talk(store, ann, "Tom.", "Mimi.")
    told = json.loads(json.dumps(conversations.export(store, ann, found.id)))
    assert told["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a good name for a cat?"},
        {"role": "assistant", "content": "Mimi."},
    ]
    assert [(turn["text"], turn["settings"].get("seed")) for turn in told["turns"]][1:] == [("Tom.", 0), ("Mimi.", 1)]


def test_a_preference_is_a_ranking_with_its_provenance(store: Store, ann: User) -> None:
    found = talk(store, ann, "Tom.", "Mimi.", "Cat.")
    tom, mimi, _ = ids(found)
    task_id = prefer(store, ann, mimi, tom)
    row = one(store.db, "SELECT * FROM latest_rankings WHERE task_id = ?", [task_id])
    assert row is not None
    assert (row["source"], row["user_id"], json.loads(row["ranks"])) == ("chat", ann.id, [2, 1])
    stored = [
        one(store.db, "SELECT * FROM completions WHERE id = ?", [number]) or {}
        for number in json.loads(row["completion_ids"])
    ]
    assert [(each["text"], each["checkpoint_id"], each["finish_reason"]) for each in stored] == [
        ("Tom.", 1, "stop"), ("Mimi.", 1, "stop"),
    ]  # fmt: skip
    assert json.loads(stored[1]["sampling"]) == {
        "temperature": 0.5, "seed": 1, "blind": False, "conversation": found.id, "turn": mimi,
    }  # fmt: skip
    prompt = one(store.db, "SELECT * FROM prompts WHERE id = ?", [row["prompt_id"]]) or {}
    assert [message["role"] for message in json.loads(prompt["messages"])] == ["system", "user"]
    # the same again adds nothing, another opinion replaces the first, and a third version is another pair
    assert prefer(store, ann, mimi, tom) == task_id
    assert scalar(store.db, "SELECT count(*) FROM events") == 1
    assert prefer(store, ann, tom, mimi, tie=True) == task_id
    assert json.loads(rows(store.db, "SELECT ranks FROM latest_rankings")[0]["ranks"]) == [1, 1]
    assert scalar(store.db, "SELECT count(*) FROM events") == 2
    assert prefer(store, ann, tom, ids(found)[2]) != task_id
    assert said(store.db, ann, found)[tom] == [(mimi, "tie"), (ids(found)[2], "better")]
    # the conversation may go; what was said of it stays
    conversations.delete(store, ann, found.id)
    assert scalar(store.db, "SELECT count(*) FROM latest_rankings") == 2


def test_what_is_no_preference_is_refused(store: Store, ann: User) -> None:
    found, other = talk(store, ann, "Tom.", "Tom."), talk(store, ann, "Mimi.")
    same, mimi = ids(found), ids(other)[0]
    cases: list[tuple[int, int, str]] = [
        (same[0], same[1], "say the same"),
        (same[0], same[0], "two versions"),
        (same[0], mimi, "two versions"),
        (*ids(talk(store, ann, "A", "B", ends="stopped")), "not written to its end"),
        (*ids(talk(store, ann, "A", "B", system=("x", "y"))), "different system prompts"),
        (10**9, 10**9, "gone"),
    ]
    for better, worse, message in cases:
        with pytest.raises(InputError, match=message):
            prefer(store, ann, better, worse)
    assert scalar(store.db, "SELECT count(*) FROM events") == 0


def test_presets_are_a_person_s_own(store: Store, ann: User) -> None:
    conversations.save_preset(store, ann, " Pirate ", " Arr. ")
    conversations.save_preset(store, ann, "Pirate", "Arr!")
    assert conversations.presets(store, ann) == {"Pirate": "Arr!"}
    assert conversations.presets(store, local_owner(store)) == {}
    conversations.save_preset(store, ann, "Pirate", "")
    assert conversations.presets(store, ann) == {}
    with pytest.raises(InputError, match="give the system prompt a name"):
        conversations.save_preset(store, ann, "", "Arr.")


def test_deleting_a_person_deletes_their_conversations(store: Store, ann: User) -> None:
    found = talk(store, ann, "A secret word: xyzzy.", "Another.")
    prefer(store, ann, *ids(found))
    conversations.save_preset(store, ann, "Pirate", "Say xyzzy.")
    assert erasure.erase(store, local_owner(store), ann.id, "delete").clean
    assert scalar(store.db, "SELECT count(*) FROM conversations") == 0
    assert b"xyzzy" not in store.path.read_bytes()


def test_hostile_text_is_safe_html(store: Store, ann: User) -> None:
    hostile = "<img src=x onerror=alert(1)> ![x](http://e.invalid/x.png)\n\n```\n<b>\n```\n[l](javascript:alert(1))"
    found = talk(store, ann, hostile)
    html = turn_view(found.turns[ids(found)[0]], None)["html"]
    assert "<img" not in html
    assert "<b>" not in html
    assert 'href="javascript' not in html


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, "something unknown"),
        ({"settings": {"sampling": {}}}, "choose a checkpoint"),
        ({"settings": {"sampling": {"temperature": None}, "checkpoint_id": 1}}, "set temperature to a number"),
        ({"settings": {"sampling": {"min_p": 2}, "checkpoint_id": 1}}, "min p must lie between"),
        ({"settings": {"sampling": {}, "checkpoint_id": 1, "system_prompt": 5}}, "keep the system prompt"),
        ({"settings": {"sampling": {}, "checkpoint_id": True}}, "choose a checkpoint"),
    ],
)
def test_what_a_browser_sends_is_checked(sent: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_choices(sent)
