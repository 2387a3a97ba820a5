"""Rankings found by words and filters, with an index and without, always in step with what is in force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlite_utils import Database

from data.records import InputError
from labeler import events, history, rankings, search, snapshots
from labeler.imports import import_file
from labeler.projects import create_project
from labeler.search import Query, agreement, find
from labeler.store import rows, scalar
from labeler.users import User, add_user, ensure_user, local_owner
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import MODEL, make_workspace, new_id, rank

GIVEN = [
    {"prompt": "How do I bake bread?", "chosen": "Knead the dough.", "rejected": "Buy it.", "annotator": "ann"},
    {
        "prompt": "How do I sleep?",
        "chosen": "Go to bed.",
        "rejected": "Zzz",
        "annotator": "bob",
        "comment": "naïve words",
    },
    {"prompt": "What is bread?", "chosen": "Food", "rejected": "Dough money", "annotator": "ann"},
]


@pytest.fixture(params=["index", "like"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    if request.param == "like":  # as in a SQLite without FTS5
        with workspace.store.write() as db:
            for name in ("in_force_found", "in_force_lost"):
                db.execute(f"DROP TRIGGER {name}")
            db.execute("DROP TABLE search")
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GIVEN))
    import_file(workspace.store, file, local_owner(workspace.store))
    return workspace


def prompts(workspace: Workspace, **query: object) -> list[str]:
    return [row["prompt"][-1]["content"] for row in find(workspace.store, Query(**query)).rows]  # type: ignore[arg-type]


def test_words_are_found_in_prompt_answers_and_comment(filled: Workspace) -> None:
    assert search.has_index(filled.store.db) is bool(
        scalar(filled.store.db, "SELECT 1 FROM sqlite_master WHERE name = 'search'")
    )
    assert prompts(filled) == ["What is bread?", "How do I sleep?", "How do I bake bread?"]
    assert prompts(filled, words="BREAD") == ["What is bread?", "How do I bake bread?"]
    assert prompts(filled, words="bread knead") == ["How do I bake bread?"]
    assert prompts(filled, words="words") == ["How do I sleep?"]
    assert prompts(filled, words="nowhere") == []
    assert prompts(filled, words="bread", annotator="ann") == ["What is bread?", "How do I bake bread?"]
    assert prompts(filled, words="bread", annotator="bob") == []
    for odd in ('" OR (bread', "knead AND (", "NEAR(bread", "bread:x*", "%bread"):
        assert set(prompts(filled, words=odd)) <= {"What is bread?", "How do I bake bread?"}
    with pytest.raises(InputError, match="no word"):
        find(filled.store, Query(words='% "'))


def test_phrases_beginnings_and_accents(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GIVEN))
    import_file(workspace.store, file, local_owner(workspace.store))
    assert prompts(workspace, words='"bake bread"') == ["How do I bake bread?"]
    assert prompts(workspace, words='"bread bake"') == []
    assert prompts(workspace, words="dou*") == ["What is bread?", "How do I bake bread?"]
    assert prompts(workspace, words="naive") == ["How do I sleep?"]


def test_filters(filled: Workspace, tmp_path: Path) -> None:
    owner = local_owner(filled.store)
    other = create_project(filled.store, owner, "Other")
    import_file(filled.store, tmp_path / "f.jsonl", owner, project_id=other.id)
    assert len(prompts(filled)) == 6
    assert len(prompts(filled, project_id=other.id, annotator="ann")) == 2
    assert prompts(filled, until=1.0) == []
    assert len(prompts(filled, since=1.0)) == 6
    rankings.record_comparison(
        filled.store, owner, [{"role": "user", "content": "Which?"}], [("p", 1, {}), ("q", None, {})], [1, 2],
        event_id=new_id(),
    )  # fmt: skip
    assert prompts(filled, checkpoint_id=1) == ["Which?"]
    assert prompts(filled, checkpoint_id=2) == []


def test_pages_go_on_where_the_last_one_ended(filled: Workspace) -> None:
    first = find(filled.store, Query(), limit=2)
    assert [len(first.rows), first.before is None] == [2, False]
    second = find(filled.store, Query(), first.before, limit=2)
    assert [row["prompt"][0]["content"] for row in second.rows] == ["How do I bake bread?"]
    assert second.before is None
    first = find(filled.store, Query(words="bread"), limit=1)
    assert len(find(filled.store, Query(words="bread"), first.before, limit=1).rows) == 1


def test_agreement_of_a_task() -> None:
    assert agreement([[1, 2, 3], [1, 2, 3]]) == 1.0
    assert agreement([[1, 2], [2, 1]]) == 0.0
    assert agreement([[1, 2, 3], [1, 2, 2]]) == pytest.approx(2 / 3)
    assert agreement([[1, 2, None], [2, None, 1]]) is None
    assert agreement([[1, 2]]) is None
    assert agreement([[1, 2], [1, 2], [2, 1]]) == pytest.approx(1 / 3)


def test_rankings_are_found_by_agreement(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    given = [
        {"prompt": "Agreed?", "chosen": "x", "rejected": "y"},
        {"prompt": "Quarrel?", "chosen": "x", "rejected": "y"},
        {"prompt": "Alone?", "chosen": "x", "rejected": "y", "annotator": "ann"},
    ]
    file = tmp_path / "f.jsonl"
    lines = [row | {"annotator": name} for row in given[:2] for name in ("ann", "bob")]
    lines[3] = {"prompt": "Quarrel?", "completions": ["x", "y"], "ranks": [2, 1], "annotator": "bob"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*lines, given[2]]))
    import_file(workspace.store, file, local_owner(workspace.store))
    assert prompts(workspace, agreement="low") == ["Quarrel?"] * 2
    assert prompts(workspace, agreement="high") == ["Agreed?"] * 2
    shares = {row["prompt"][0]["content"]: row["agreement"] for row in find(workspace.store, Query()).rows}
    assert shares == {"Alone?": None, "Quarrel?": 0.0, "Agreed?": 1.0}


def test_what_is_taken_back_or_corrected_is_not_found(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2)
    owner = local_owner(workspace.store)
    rank(workspace, [1, 2, 3, 4], comment="marmalade")
    assert len(prompts(workspace, words="marmalade")) == 1
    rankings.record_event(workspace.store, owner, events.Event(new_id(), 1, "submit", [1, 1, 1, 2], comment="honey"))
    assert prompts(workspace, words="marmalade") == []
    assert len(prompts(workspace, words="honey")) == 1
    history.undo(workspace.store, owner, new_id())
    assert prompts(workspace, words="honey") == []
    assert scalar(workspace.store.db, "SELECT count(*) FROM in_force") == 0
    workspace.store.db.execute("INSERT INTO search (search) VALUES ('integrity-check')")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_words_of_an_import_are_indexed_once_and_in_step(tmp_path: Path, on_error: str) -> None:
    """Rankings that are taken over by later ones of the same person, in the same batch and from before it."""
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    store, file = workspace.store, tmp_path / "f.jsonl"
    base = {"prompt": "Which?", "completions": ["x", "y"], "annotator": "ann"}
    said = [{"ranks": [1, 2], "comment": "marmalade"}, {"ranks": [2, 1], "comment": "honey"}]
    for batch, found in (
        (said, {"marmalade": 0, "honey": 1}),
        ([{"ranks": [1, 1], "comment": "butter"}], {"honey": 0, "butter": 1}),
    ):
        file.write_text("".join(json.dumps(base | more) + "\n" for more in batch))
        import_file(store, file, local_owner(store), on_error=on_error)
        assert {word: len(prompts(workspace, words=word)) for word in found} == found
        store.db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
        assert scalar(store.db, "SELECT count(*) FROM unindexed") == 0

    def indexed(word: str) -> int:
        return int(scalar(store.db, "SELECT count(*) FROM search WHERE search MATCH ?", [word]))

    assert [indexed(word) for word in ("marmalade", "honey", "butter")] == [0, 0, 1]

    def say(db: Database, comment: str) -> None:
        rankings.record_ranking(db, ensure_user(db, "ann"), 1, [2, 1], comment=comment, source="api", event_id=new_id())

    with store.write() as db, search.indexed_together(db):
        say(db, "jam")
        say(db, "toast")
        assert [indexed(word) for word in ("butter", "jam", "toast")] == [0, 0, 0], "at the end"
    assert [indexed(word) for word in ("jam", "toast")] == [0, 1]
    # nothing of what fails stays behind, and words are indexed one by one again
    with pytest.raises(ZeroDivisionError), store.write() as db, search.indexed_together(db):
        raise ZeroDivisionError
    with store.write() as db:
        say(db, "crumbs")
        assert indexed("crumbs") == 1
    assert indexed("toast") == 0


def test_a_lead_takes_a_ranking_back_with_a_reason(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    store = workspace.store
    with store.write() as db:
        ann = ensure_user(db, "ann")
    rank(workspace, [1, 2, 3, 4], ann)
    lead = add_user(store, "lee", "lead", "long enough")
    (event,) = [row["event_id"] for row in find(store, Query()).rows]
    for user, reason, words in ((ann, "why not", "may not retract"), (lead, "  ", "say why")):
        with pytest.raises(InputError, match=words):
            rankings.retract(store, user, event, reason)
    rankings.retract(store, lead, event, "clicked at random")
    assert find(store, Query()).rows == []
    assert snapshots.count(store)["rankings"] == 0
    said, taken_back = rows(store.db, "SELECT user_id, kind, payload FROM events ORDER BY id")
    assert (said["user_id"], said["kind"]) == (ann.id, "submit")
    assert (taken_back["user_id"], taken_back["kind"]) == (lead.id, "retract")
    expected = {"retracts": event, "retracted_by": "lee", "reason": "clicked at random"}
    assert json.loads(taken_back["payload"]) == expected
    with pytest.raises(InputError, match="not in force any more"):
        rankings.retract(store, lead, event, "again")
    rank(workspace, [4, 3, 2, 1], User(lead.id, "lee", "lead"))  # the task waits for somebody again
    assert len(find(store, Query()).rows) == 1


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 5)
    for ranks in ([1, 2, 3, 4], [1, 1, 2, 2], [None, 2, None, 1]):
        rank(workspace, ranks)
    rank(workspace, [1, 2, 3, 4], all_bad=True)
    rankings.record_comparison(
        workspace.store, local_owner(workspace.store), [{"role": "user", "content": "Hm?"}],
        [("a", 1, {}), (" \n", 1, {}), ("b", 1, {})], [1, 2, 2], event_id=new_id(),
    )  # fmt: skip
    fast = snapshots.count(workspace.store, kinds=["preferences"])
    slow = snapshots.count(workspace.store, {"since": 0.0}, kinds=["preferences"])
    assert fast == {key: slow[key] for key in fast} == {"rankings": 4, "comparisons": 14, "ties": 2, "annotators": 1}
