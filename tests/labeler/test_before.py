"""What a run would learn from: counts, the split, agreement, and the warnings, each on data where it is known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.formats import read_rankings
from data.preferences import count_comparisons, split_by_prompt
from labeler import before, jobs, snapshots
from labeler.imports import import_file
from labeler.store import scalar
from labeler.ui.before import filters, learns_from, view
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import MODEL, make_workspace, rank
from tests.labeler.studio import small_workspace
from tests.labeler.test_reliability import labelled

WEIGHTED = {"weight_by_reliability": True}


def look(workspace: Workspace, fraction: float = 0.2, **passing: Any) -> before.Before:
    return before.look(workspace, "preferences", passing, fraction, 0, None)


def bring_in(workspace: Workspace, folder: Path, rows: list[dict]) -> None:
    file = folder / "more.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import_file(workspace.store, file, local_owner(workspace.store))


def pairs(count: int, chosen: str, rejected: str, **more: Any) -> list[dict]:
    return [
        {"prompt": f"Say {n}.", "completions": [f"{chosen} {n}", f"{rejected} {n}"], "ranks": [1, 2], **more}
        for n in range(count)
    ]


def wrongs(found: before.Before) -> str:
    return " ".join(f"{each.wrong} {each.remedy}" for each in found.concerns)


def test_counts_by_project_and_annotator_and_the_weight_of_each(tmp_path: Path) -> None:
    workspace = labelled(tmp_path)  # ann and ben agree, cem says the opposite
    plain, weighed = look(workspace), look(workspace, **WEIGHTED)
    assert [(one.annotator, one.rankings, one.comparisons, one.weight) for one in plain.sources] == [
        (name, 10, 60, 1.0) for name in ("ann", "ben", "cem")
    ]
    assert (plain.count, plain.prompts, plain.shared_tasks) == (180, 10, 10)
    by_name = {one.annotator: one for one in weighed.sources}
    assert not by_name["cem"].learned
    assert 0.3 < by_name["ann"].weight <= 1
    assert weighed.count == 120
    # what is said is what the snapshot will hold
    file = tmp_path / "weighted.jsonl"
    snapshots.write_snapshot(workspace.store, file, "preferences", WEIGHTED, None)
    learned = Counter(ranking.annotator for ranking in read_rankings(file))
    assert learned == {one.annotator: one.rankings for one in weighed.sources if one.learned}
    assert count_comparisons(read_rankings(file)) == weighed.count
    # of ann's, ben's and cem's votes on each task's six pairs: 5 of 6 the same, 0 of 6, 1 of 6
    assert plain.agreement.value == pytest.approx(6 / 18)
    assert plain.agreement.n == 180
    assert "sharpen the guidelines" in wrongs(plain)


def test_the_split_is_the_one_the_trainer_makes(tmp_path: Path) -> None:
    workspace = labelled(tmp_path)
    file = tmp_path / "preferences.jsonl"
    snapshots.write_snapshot(workspace.store, file, "preferences", {}, None)
    for fold in (None, 2):
        train, held = split_by_prompt(read_rankings(file), 0.2, 7, fold)
        found = before.look(workspace, "preferences", {}, 0.2, 7, fold).split
        assert found == before.Split(count_comparisons(train), 8, count_comparisons(held), 2)
    assert look(workspace, 0).split is None
    assert "Validation fraction" in wrongs(look(workspace, 0))


def test_new_labels_are_seen(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    assert "Rank some answers" in wrongs(look(workspace))
    rank(workspace, [1, 2, 3, 4])
    assert look(workspace).count == 6
    assert "one prompt" in wrongs(look(workspace))
    rank(workspace, [1, 1, 2, None])
    found = look(workspace)
    assert (found.count, found.prompts) == (9, 2)
    assert "too few" in wrongs(found)


def test_length_bias_is_told_with_its_interval(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path / "w", rankings=0)
    bring_in(workspace, tmp_path, pairs(60, "a long answer that goes on", "short"))
    biased = look(workspace)
    assert (biased.longer.value, biased.longer.low, biased.longer.n) == (1.0, 1.0, 60)
    assert "longer answer is preferred in 100% of 60" in wrongs(biased)
    even = small_workspace(tmp_path / "even", rankings=0)
    bring_in(even, tmp_path, pairs(40, "a long answer", "short") + pairs(80, "brief", "a long answer")[40:])
    found = look(even).longer
    assert found.value == 0.5
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.45 < 0.55 < found.high
    assert "answer is preferred" not in wrongs(look(even))
    assert look(even).count >= 60, "and there is enough to judge"


def test_answers_of_another_base_are_told(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 4)
    rank(workspace, [1, 2, 3, 4])
    assert before.other_bases(workspace) == (0, 4, [])
    bring_in(workspace, tmp_path, pairs(3, "yes", "no", model="another-model"))
    assert before.other_bases(workspace) == (6, 10, ["another-model"])
    assert "6 of 10 answers" in wrongs(look(workspace))
    assert scalar(workspace.store.db, "SELECT count(*) FROM checkpoints WHERE base_model = ?", [MODEL]) == 1


def test_demonstrations_and_prompts_have_a_split_too(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 10)
    assert "nothing to imitate" in wrongs(before.look(workspace, "demonstrations", {}, 0.1, 0, None))
    for _ in range(5):
        rank(workspace, [1, 2, 3, 4])
    shown = before.look(workspace, "demonstrations", {}, 0.2, 0, None)
    assert (shown.count, shown.split) == (5, before.Split(4, 4, 1, 1))
    asked = before.look(workspace, "prompts", {}, 0.2, 0, None)
    assert (asked.count, asked.split, asked.concerns) == (10, before.Split(8, 8, 2, 2), [])


def test_names_are_text(tmp_path: Path) -> None:
    workspace = labelled(tmp_path)
    with workspace.store.write() as db:
        db.execute("UPDATE users SET name = '<b>ann</b>' WHERE name = 'ann'")
    html = learns_from(look(workspace), 0.2, False)
    assert "&lt;b&gt;ann&lt;/b&gt;" in html
    assert "<b>ann" not in html
    assert "48 comparisons of 8 prompts" not in html, "three people ranked each of them"
    assert "144 comparisons of 8 prompts to train on, 36 comparisons of 2 prompts held out" in html


def test_the_filter_is_offered_where_weights_count(tmp_path: Path) -> None:
    assert [method for method in jobs.SNAPSHOT_KINDS if filters(method, True)] == ["reward", "dpo"]
    assert filters("dpo", False) == {}
    workspace = labelled(tmp_path)
    defaults = {"validation_fraction": 0.1, "seed": 0, "fold": None}
    assert "left out: guesses" in view(workspace, "dpo", lambda: defaults, True)
    assert "left out" not in view(workspace, "dpo", lambda: defaults, False)
