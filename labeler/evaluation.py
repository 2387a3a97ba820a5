"""How good a checkpoint is, in numbers with their n and interval.

A reward model: how often it agrees with people on comparisons that it was not trained on. A policy: how its answers to
held-out prompts compare with its parent's, by a reward model; and how people voted between the two.

Intervals are of a bootstrap by prompt (`agreement.resampled`), since comparisons of one prompt hang together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.formats import read_demonstrations, read_prompts, read_rankings
from data.preferences import comparisons, split_by_prompt
from data.records import Demonstration, InputError, Message, Prompt, Ranking
from labeler.agreement import Figure, Floats, resampled
from labeler.quality import wilson
from labeler.store import Store, rows
from labeler.workspace import Workspace

BINS = 10
"""Of the calibration curve, over the confidence from 0.5 to 1."""
NOTHING_HELD_OUT = "its run held nothing out; train with a validation_fraction above 0 to measure it"


class Pair(NamedTuple):
    """One decided comparison as a reward model sees it.

    `difference`: score of the preferred minus score of the other. `longer`: characters that the preferred answer has
    more. `strength`: stated, in units of the score; 0 where nobody said. `distance`: ranks between them.
    """

    prompt: int
    difference: float
    longer: int
    strength: float
    distance: int


# -- what was held out -------------------------------------------------------------------------------------------------


def held_out(config: Mapping[str, Any], kind: str) -> Sequence[Any]:
    """The records that a run with this configuration did not train on. Raises InputError where there are none.

    `kind` is one of preferences, demonstrations and prompts; the split is the trainer's own.
    """
    readers: dict[str, Callable[[Path | str], Sequence[Any]]]
    readers = {"preferences": read_rankings, "demonstrations": read_demonstrations, "prompts": read_prompts}
    read = readers[kind]
    if config.get("validation_data"):
        return read(config["validation_data"])
    data = Path(str(config.get("data")))
    if not data.is_file():
        raise InputError(
            "the data that it was trained on are gone from this workspace, so what was held out is unknown"
        )
    fraction = float(config.get("validation_fraction") or 0)
    records = read(data)
    found: Sequence[Any] = split_by_prompt(records, fraction, int(config.get("seed") or 0), config.get("fold"))[1]
    if not len(found):
        raise InputError(NOTHING_HELD_OUT)
    return found


def check_held_out(config: Mapping[str, Any]) -> None:
    """Raises InputError where it is plain without reading the data that a run held nothing out."""
    if not config.get("validation_data") and not float(config.get("validation_fraction") or 0):
        raise InputError(NOTHING_HELD_OUT)


def prompt_of(record: Prompt | Ranking | Demonstration) -> list[Message]:
    """The messages that an answer is sampled for."""
    if isinstance(record, Demonstration):
        first = next((i for i, m in enumerate(record.messages) if m["role"] == "assistant"), len(record.messages))
        return list(record.messages[:first])
    return list((record.prompt if isinstance(record, Ranking) else record).messages)


# -- a reward model ----------------------------------------------------------------------------------------------------


def pairs_of(rankings: Sequence[Ranking], scores: Sequence[Sequence[float]]) -> list[Pair]:
    """The decided comparisons of rankings whose completions have these scores."""
    prompts: dict[str, int] = {}
    found = []
    for ranking, score in zip(rankings, scores, strict=True):
        number = prompts.setdefault(json.dumps(prompt_of(ranking)), len(prompts))
        for c in comparisons(ranking):
            if not c.tie:
                text, rank = ranking.completions, ranking.ranks
                distance = abs((rank[c.winner] or 0) - (rank[c.loser] or 0))
                longer = len(text[c.winner]) - len(text[c.loser])
                found.append(Pair(number, score[c.winner] - score[c.loser], longer, c.margin, distance))
    return found


def reward_report(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Accuracy overall, by strength and by length, and the calibration curve. Raises InputError without a pair.

    An equal score counts as half right. Every figure is {value, low, high, n}, n in comparisons.
    """
    if not pairs:
        raise InputError("what was held out holds no decided comparison, only ties; there is nothing to measure")
    stated = [pair for pair in pairs if pair.strength > 0]
    by_strength = (
        _split(stated, lambda pair: pair.strength, "strength") if stated
        else _split(pairs, lambda pair: pair.distance, "ranks apart")
    )  # fmt: skip
    longer = {
        "the longer was preferred": [p for p in pairs if p.longer > 0],
        "the shorter was preferred": [p for p in pairs if p.longer < 0],
    }
    return {
        "kind": "reward",
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "accuracy": asdict(accuracy(pairs)),
        "strength": {"stated": bool(stated), "groups": by_strength},
        "length": _split(pairs, lambda pair: abs(pair.longer), "characters apart"),
        "longer": [_group(name, found) for name, found in longer.items() if found],
        "calibration": calibration(pairs),
    }


def accuracy(pairs: Sequence[Pair]) -> Figure:
    """Share of the comparisons in which the preferred answer scores higher."""
    return _share([(p.prompt, _won(p.difference, 0)) for p in pairs])


def _share(found: Sequence[tuple[int, float]]) -> Figure:
    """The mean of values from 0 to 1, by prompt; n values.

    Where a resampling of prompts says nothing (one prompt, or all alike), Wilson's interval with a value a prompt.
    """
    figure, prompts = _mean(found), len({prompt for prompt, _ in found})
    if figure.value is None or (figure.low is not None and figure.low != figure.high):
        return figure
    return Figure(figure.value, *wilson(figure.value * prompts, prompts), figure.n)


def _mean(found: Sequence[tuple[int, float]]) -> Figure:
    """The mean of the values, by prompt; n values."""
    sums: dict[int, list[float]] = {}
    for prompt, value in found:
        entry = sums.setdefault(prompt, [0.0, 0.0])
        entry[0] += value
        entry[1] += 1
    table: Floats = np.array(list(sums.values()) or [[0.0, 0.0]])
    return resampled(table, lambda total: total[..., 0] / total[..., 1], len(found))


def _group(name: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"name": name, **asdict(accuracy(pairs))}


def _split(pairs: Sequence[Pair], value: Any, unit: str) -> list[dict[str, Any]]:
    """Groups by value: each value its own where there are up to four, else thirds (equal values share one)."""
    values = sorted({value(pair) for pair in pairs})
    if len(values) <= 4:
        return [_group(f"{v:g} {unit}", [p for p in pairs if value(p) == v]) for v in values]
    low, high = np.quantile([value(pair) for pair in pairs], [1 / 3, 2 / 3])
    edges = [-np.inf, low, high, np.inf]
    found = []
    for start, end in pairwise(edges):
        inside = [p for p in pairs if start < value(p) <= end]
        if inside:
            shown = [value(p) for p in inside]
            found.append(_group(f"{min(shown):g} to {max(shown):g} {unit}", inside))
    return found


def calibration(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For each bin of the confidence σ(|d|): its mean, and how often the higher scored answer was the preferred one."""
    confidence = [1 / (1 + float(np.exp(-min(abs(p.difference), 700)))) for p in pairs]
    found = []
    for number in range(BINS):
        inside = [
            (pair, sure)
            for pair, sure in zip(pairs, confidence, strict=True)
            if min(int((sure - 0.5) * 2 * BINS), BINS - 1) == number
        ]
        if inside:
            mean = sum(sure for _, sure in inside) / len(inside)
            found.append({"confidence": mean, **asdict(accuracy([pair for pair, _ in inside]))})
    return found


# -- a policy ----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """The checkpoint's and its parent's answer to one prompt, and what a reward model gives them."""

    prompt: list[Message]
    ours: str
    parents: str
    scores: Sequence[float]
    tokens: Sequence[int]


def policy_report(answers: Sequence[Answers], shown: int = 6) -> dict[str, Any]:
    """Win rate against the parent, scores and lengths with intervals, and the first few answers side by side."""
    wins = [_won(*each.scores) for each in answers]
    columns = {
        "win_rate": wins,
        "score": [each.scores[0] for each in answers],
        "parent_score": [each.scores[1] for each in answers],
        "length": [float(each.tokens[0]) for each in answers],
        "parent_length": [float(each.tokens[1]) for each in answers],
    }
    figures = {name: asdict((_share if name == "win_rate" else _mean)(list(enumerate(values))))
               for name, values in columns.items()}  # fmt: skip
    return {"kind": "policy", "prompts": len(answers), **figures,
            "samples": [each._asdict() for each in answers[:shown]]}  # fmt: skip


def _won(ours: float, theirs: float) -> float:
    return 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0


def votes_between(store: Store, first_id: int, second_id: int) -> tuple[Figure, int]:
    """How often people preferred the first checkpoint's answer to the second's, ties half; and how many tied.

    Of the blind rankings in force that hold an answer of each, as the Leaderboard counts them: no known answers, no
    repeats, no adjudications. n counts rankings; one of several answers of each is the mean of its pairs.
    """
    of = "SELECT tc.task_id FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id WHERE"
    found = rows(
        store.db,
        f"""SELECT r.prompt_id, r.completion_ids, r.ranks FROM latest_rankings AS r
            WHERE r.purpose = 'label' AND r.gold_ranks IS NULL AND NOT coalesce(r.all_bad, 0) AND r.source != 'chat'
            AND r.task_id IN ({of} c.checkpoint_id = ?) AND r.task_id IN ({of} c.checkpoint_id = ?)
            AND NOT EXISTS ({of} tc.task_id = r.task_id AND NOT coalesce(json_extract(c.sampling, '$.blind'), 1))""",
        [first_id, second_id],
    )
    said: list[tuple[int, float]] = []
    for row in found:
        made = rows(store.db, "SELECT id, checkpoint_id FROM completions WHERE id IN (SELECT value FROM json_each(?))",
                    [row["completion_ids"]])  # fmt: skip
        by_id = {each["id"]: each["checkpoint_id"] for each in made}
        placed = zip(json.loads(row["completion_ids"]), json.loads(row["ranks"]), strict=True)
        ranked = [(by_id.get(i), rank) for i, rank in placed if rank is not None]
        pairs = [
            _won(-ours, -theirs)  # rank 1 is the best
            for owner, ours in ranked if owner == first_id
            for other, theirs in ranked if other == second_id
        ]  # fmt: skip
        if pairs:
            said.append((row["prompt_id"], sum(pairs) / len(pairs)))
    return _share(said), sum(value == 0.5 for _, value in said)


# -- what is kept ------------------------------------------------------------------------------------------------------


def folder(workspace: Workspace, checkpoint_id: int) -> Path:
    """Where a checkpoint's evaluation is made and its result kept."""
    return workspace.folder / "evaluations" / str(checkpoint_id)


def result(workspace: Workspace, checkpoint_id: int) -> dict[str, Any] | None:
    """The last evaluation's result, or None where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder(workspace, checkpoint_id) / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found
