"""The evaluation's numbers, against the trainer's own and against what can be counted by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from data.formats import write_rows
from data.preferences import split_by_prompt
from data.records import InputError, Prompt, Ranking
from labeler import evaluation
from labeler.evaluation import Pair, pairs_of, reward_report
from labeler.rankings import record_comparison
from labeler.users import ensure_user, local_owner
from tests.labeler.studio import QUESTION, small_workspace
from training.losses import calibration_error


def ranking(number: int, ranks: tuple[int | None, ...], texts: tuple[str, ...], margin: float = 0.0) -> Ranking:
    return Ranking(Prompt(({"role": "user", "content": f"Question {number}"},)), texts, ranks, margin)


def test_pairs_of_rankings() -> None:
    rankings = [
        ranking(1, (1, 2, None), ("short", "rather long", "ignored"), margin=2.0),
        ranking(2, (1, 1, 3), ("a", "b", "ccc")),
        ranking(1, (2, 1), ("x", "yy")),
    ]
    found = pairs_of(rankings, [[0.5, 1.5, 9.0], [1.0, 2.0, 0.0], [0.0, 0.0]])
    assert found == [
        Pair(0, -1.0, -6, 2.0, 1),
        Pair(1, 1.0, -2, 0.0, 2),
        Pair(1, 2.0, -2, 0.0, 2),
        Pair(0, 0.0, 1, 0.0, 1),
    ]
    report = reward_report(found)
    # wrong, right, right, and half for the equal scores
    assert report["accuracy"]["value"] == pytest.approx(2.5 / 4)
    assert (report["accuracy"]["n"], report["prompts"], report["pairs"]) == (4, 2, 4)
    assert report["strength"] == {"stated": True, "groups": report["strength"]["groups"]}
    assert [(g["name"], g["value"], g["n"]) for g in report["strength"]["groups"]] == [("2 strength", 0.0, 1)]
    assert [(g["name"], g["value"], g["n"]) for g in report["longer"]] == [
        ("the longer was preferred", 0.5, 1),
        ("the shorter was preferred", pytest.approx(2 / 3), 3),
    ]


def test_groups_hold_every_pair_once_and_calibration_is_the_trainers() -> None:
    draw = random.Random(0)
    pairs = [Pair(i // 6, draw.gauss(0.5, 2), draw.randint(-300, 300), 0.0, draw.randint(1, 3)) for i in range(600)]
    report = reward_report(pairs)
    assert not report["strength"]["stated"]
    assert [group["name"] for group in report["strength"]["groups"]] == [f"{i} ranks apart" for i in (1, 2, 3)]
    for groups in (report["strength"]["groups"], report["length"], report["calibration"]):
        assert sum(group["n"] for group in groups) == 600
        mean = sum(group["n"] * group["value"] for group in groups if "name" in group) / 600
        if "name" in groups[0]:
            assert mean == pytest.approx(report["accuracy"]["value"])
    ece = sum(bin["n"] / 600 * abs(bin["confidence"] - bin["value"]) for bin in report["calibration"])
    assert ece == pytest.approx(calibration_error(torch.tensor([p.difference for p in pairs])), abs=1e-6)
    accuracy = report["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]


def test_a_few_that_are_all_right_are_not_certain() -> None:
    accuracy = reward_report([Pair(i, 1.0, 0, 0.0, 1) for i in range(5)])["accuracy"]
    assert accuracy["value"] == 1.0
    assert accuracy["low"] == pytest.approx(0.5655, abs=1e-3)  # Wilson, 5 of 5
    with pytest.raises(InputError, match="only ties"):
        reward_report([])


def test_the_interval_is_by_prompt() -> None:
    """Six comparisons of each of ten prompts that are all right or all wrong say no more than ten."""
    together = reward_report([Pair(i // 6, 1.0 if i // 6 < 5 else -1.0, 0, 0.0, 1) for i in range(60)])["accuracy"]
    apart = reward_report([Pair(i, 1.0 if i % 2 else -1.0, 0, 0.0, 1) for i in range(60)])["accuracy"]
    assert together["value"] == apart["value"] == 0.5
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


def test_what_was_held_out_is_the_trainers_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "completions": ["a", "b"], "ranks": [1, 2]} for i in range(20)]
    data = tmp_path / "preferences.jsonl"
    write_rows(data, rows)
    config = {"data": str(data), "validation_fraction": 0.25, "seed": 3, "fold": None}
    found = evaluation.held_out(config, "preferences")
    every = evaluation.held_out({"validation_data": str(data)}, "preferences")
    assert len(every) == 20
    assert list(found) == list(split_by_prompt(every, 0.25, 3)[1])
    assert len(found) == 5
    with pytest.raises(InputError, match="held nothing out"):
        evaluation.held_out(config | {"validation_fraction": 0}, "preferences")
    with pytest.raises(InputError, match="are gone"):
        evaluation.held_out({"data": str(tmp_path / "gone"), "validation_fraction": 0.5}, "preferences")


def test_votes_between_two_checkpoints(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path / "w", rankings=0)
    store, base = workspace.store, workspace.base_checkpoint_id
    with store.write() as db:
        db.execute("INSERT INTO checkpoints (name, kind, base_model) VALUES ('a', 'policy', 'x'), ('b', 'policy', 'x')")
        ann = ensure_user(db, "ann", "annotator")
    first, second = base + 1, base + 2
    votes = [(1, 2, False), (2, 1, False), (1, 1, False), (1, 2, False), (None, None, True)]
    for number, (ours, theirs, bad) in enumerate(votes):
        sides = [("ours", first, {}), ("theirs", second, {}), ("base", base, {})]
        user = ann if number % 2 else local_owner(store)
        question = [{"role": "user", "content": f"{QUESTION[0]['content']} {number}"}]
        record_comparison(
            store, user, question, sides, [ours, theirs, None], all_bad=bad, event_id=f"{number:036}", source="compare"
        )
    # the names were in view; and one ranking of two answers of each is one vote
    seen = [("ours", first, {"blind": False}), ("theirs", second, {"blind": False})]
    record_comparison(store, ann, QUESTION, seen, [2, 1], event_id=f"{8:036}", source="compare")
    record_comparison(store, ann, QUESTION, [*seen[:1], ("b", second, {})], [2, 1], event_id=f"{9:036}", source="chat")
    figure, ties = evaluation.votes_between(store, first, second)
    assert (figure.value, figure.n, ties) == (2.5 / 4, 4, 1)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < 0.625 < figure.high
    assert evaluation.votes_between(store, second, first)[0].value == 1.5 / 4
    assert evaluation.votes_between(store, first, base)[0].value is None


def test_a_policys_report() -> None:
    answers = [
        evaluation.Answers([{"role": "user", "content": "?"}], "ours", "parents", (ours, theirs), (4, 8))
        for ours, theirs in ((1.0, 0.0), (2.0, 3.0), (1.0, 1.0), (5.0, 0.0))
    ]
    report = evaluation.policy_report(answers, shown=2)
    assert (report["win_rate"]["value"], report["win_rate"]["n"]) == (2.5 / 4, 4)
    assert (report["score"]["value"], report["parent_score"]["value"]) == (2.25, 1.0)
    assert (report["length"]["value"], report["parent_length"]["value"]) == (4, 8)
    assert len(report["samples"]) == 2
    assert json.loads(json.dumps(report)) == report | {"samples": json.loads(json.dumps(report["samples"]))}
