"""The over-optimisation alarm: the reward model's score goes on rising while what it stands for falls.

A policy trained against a reward model ends by pleasing the model instead of people (Gao et al., arXiv:2210.10760). The
score cannot show that. Two things can: blind votes of people on the run's checkpoints, and a reward model that had no
part in the training. The alarm goes off when the newest checkpoint lies more than two standard errors below the best
earlier one on either, with a higher score.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from labeler.store import Store, one, rows

FEWEST = 10
"""Votes, or scored texts, below which a step is not judged by them: so few say nothing of their own error."""
ERRORS = 2.0


class Estimate(NamedTuple):
    """A mean, its standard error, and how many observations it rests on."""

    mean: float
    error: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


@dataclass(frozen=True)
class Point:
    """A run at one of its steps. KL in nats an answer, length in tokens, `wins` a share of blind votes against what the
    run started from (ties count half), `held_out` the score of a reward model that had no part in the training."""

    step: int
    score: float | None = None
    kl: float | None = None
    length: float | None = None
    wins: Estimate | None = None
    held_out: Estimate | None = None


class Alarm(NamedTuple):
    """What fell, between which steps, by how much; `error` is the standard error of `fall`."""

    what: str  # "wins" or "held_out"
    best_step: int
    step: int
    fall: float
    error: float
    score_rise: float


def over_optimisation(points: Sequence[Point]) -> list[Alarm]:
    """The alarms of a run, at most one for each judge; points in the order of their steps.

    Compared is the newest judged point with the best earlier one that had a lower score. Because the best of several is
    a lucky one among equals, two standard errors cry wolf more often with more points: see the tests for how often.
    """
    found = []
    for what in ("wins", "held_out"):
        judged = [
            (point, estimate, point.score)
            for point in points
            if (estimate := _judged(point, what)) is not None and point.score is not None
        ]
        if not judged:
            continue
        last, now, score = judged[-1]
        earlier = [entry for entry in judged[:-1] if entry[2] < score]
        if not earlier:
            continue
        best, then, before = max(earlier, key=lambda entry: entry[1].mean)
        fall, error = then.mean - now.mean, math.hypot(then.error, now.error)
        if fall > ERRORS * error:
            found.append(Alarm(what, best.step, last.step, fall, error, score - before))
    return found


def _judged(point: Point, what: str) -> Estimate | None:
    estimate: Estimate | None = getattr(point, what)
    return estimate if estimate is not None and estimate.n >= FEWEST else None


# -- what people said --------------------------------------------------------------------------------------------------


class Vote(NamedTuple):
    """One blind ranking of a run's checkpoint beside what the run started from: the share of their answers' pairs that
    the checkpoint won, ties as half."""

    step: int
    prompt_id: int
    user_id: int
    outcome: float


def votes_of_run(store: Store, run_id: str) -> list[Vote]:
    """The votes in force between the run's checkpoints and the one it started from (or its base model).

    Blind ones: made in Compare with the names hidden, or in a labeling project, where they always are.
    """
    job = one(store.db, "SELECT parent_checkpoint_id FROM jobs WHERE id = ?", [run_id])
    if job is None:
        return []
    # from the run's few checkpoints on, by indexes: never through all rankings of the workspace
    place = "(SELECT key FROM json_each(r.completion_ids) WHERE value = {}.id)"
    rank = "(SELECT value FROM json_each(r.ranks) WHERE key = " + place + ")"
    sql = f"""SELECT r.event_id, r.prompt_id, r.user_id, c.step, {rank.format("m")} AS rank, {rank.format("o")} AS other
        FROM checkpoints AS c
        CROSS JOIN completions AS m ON m.checkpoint_id = c.id
        CROSS JOIN task_completions AS mine ON mine.completion_id = m.id
        CROSS JOIN task_completions AS others ON others.task_id = mine.task_id
        CROSS JOIN completions AS o ON o.id = others.completion_id AND o.checkpoint_id = :parent
        CROSS JOIN latest_rankings AS r ON r.task_id = mine.task_id
        WHERE c.run_id = :run AND r.gold_ranks IS NULL AND r.purpose = 'label' AND NOT coalesce(r.all_bad, 0)
            AND (r.source = 'task' OR (r.source = 'compare' AND json_extract(m.sampling, '$.blind')))
        ORDER BY r.event_id"""
    found = rows(store.db, sql, {"run": run_id, "parent": job["parent_checkpoint_id"]})
    said: dict[tuple[int, int, int, int], list[float]] = {}
    for row in found:
        if row["rank"] is not None and row["other"] is not None:
            key = (int(row["event_id"]), int(row["step"]), int(row["prompt_id"]), int(row["user_id"]))
            said.setdefault(key, []).append(_outcome(row["rank"], row["other"]))
    return [Vote(*key[1:], sum(pairs) / len(pairs)) for key, pairs in said.items()]


def _outcome(rank: int, other: int) -> float:
    return 0.5 if rank == other else float(rank < other)


def win_rates(votes: Iterable[Vote]) -> dict[int, Estimate]:
    """Step -> share of votes won. Votes on one prompt are one cluster: they are about the same few answers.

    The error is never below that of Agresti and Coull (1998), so that ten wins of ten are not certainty.
    """
    by_step: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_step[vote.step].append(vote)
    return {step: _share(found) for step, found in sorted(by_step.items())}


def _share(votes: Sequence[Vote]) -> Estimate:
    n = len(votes)
    mean = sum(vote.outcome for vote in votes) / n
    of_prompt: dict[int, float] = defaultdict(float)
    for vote in votes:
        of_prompt[vote.prompt_id] += vote.outcome - mean
    clusters = len(of_prompt)
    correction = clusters / (clusters - 1) if clusters > 1 else 1.0
    clustered = math.sqrt(correction * sum(value * value for value in of_prompt.values())) / n
    hedged = (mean * n + 2) / (n + 4)
    return Estimate(mean, max(clustered, math.sqrt(hedged * (1 - hedged) / (n + 4))), n)


# -- a run's points ----------------------------------------------------------------------------------------------------

SCORES = ("eval/score", "objective/score")
KLS = ("eval/kl", "objective/kl")


def points_of_run(
    metrics: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]], votes: Iterable[Vote]
) -> list[Point]:
    """The run at the steps that people voted on or that a held-out reward model judged, oldest first.

    Score and KL are held-out ones where those are measured, else means over the ten last steps up to the point, because
    one step's are of a handful of answers.
    """
    wins, held_out = win_rates(votes), _held_out(samples)
    return [
        Point(
            step,
            _at(metrics, SCORES, step),
            _at(metrics, KLS, step),
            _at(metrics, ("response/length",), step),
            wins.get(step),
            held_out.get(step),
        )
        for step in sorted({*wins, *held_out})
    ]


def _held_out(samples: Sequence[Mapping[str, Any]]) -> dict[int, Estimate]:
    by_step: dict[int, list[float]] = defaultdict(list)
    for row in samples:
        if "judge_score" in row:
            by_step[int(row["step"])].append(float(row["judge_score"]))
    found = {}
    for step, scores in by_step.items():
        n = len(scores)
        mean = sum(scores) / n
        if n > 1:
            spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1))
            found[step] = Estimate(mean, spread / math.sqrt(n), n)
    return found


def _at(metrics: Sequence[Mapping[str, Any]], names: Sequence[str], step: int, window: int = 10) -> float | None:
    """The first of these metrics that the run has, as it stood at a step."""
    for name in names:
        found = [float(row[name]) for row in metrics if row.get(name) is not None and row["step"] <= step]
        if found:
            late = found[-1:] if name.startswith("eval/") else found[-window:]
            return sum(late) / len(late)
    return None
