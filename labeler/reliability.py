"""How reliable each annotator is, fitted from who agrees with whom: what training can weight rankings by.

Bradley-Terry with one inverse temperature per annotator (after Chen et al., Pairwise Ranking Aggregation in a
Crowdsourced Setting, WSDM 2013): P(a prefers i to j) = σ(β_a (θ_i - θ_j)), θ ~ N(0, 1), β_a ~ N(m, 1), m ~ N(1, 1). Of
more than two completions it is Plackett-Luce: the best is chosen of all, the next of the rest. β = 0 is guessing.

A task has few rankings, so its θ are not estimated but integrated out: each task is weighed over the same draws from
the prior, and EM climbs the likelihood of the β alone. Fitting θ as well would let everybody agree with themselves.
Dawid and Skene's model of votes (1979), which knows no θ, is here as a check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlite_utils import Database

from labeler import opinions
from labeler.agreement import Figure, Floats, Ranks, Tasks, votes

DRAWS = 256
"""Draws of θ that a task's likelihood is averaged over."""
MOST = 9
"""Completions a task may have."""
ITERATIONS, TOLERANCE, LONGEST = 60, 1e-3, 0.5
KNOWN = 6.0
"""β of answers that are known (gold, adjudications): not fitted."""
CHUNK = 500
"""Rankings, or choices, whose draws are worked on at once: 500 x 256 numbers fit the processor's cache."""


@dataclass(frozen=True)
class Reliability:
    """An annotator's fitted reliability.

    `right`: the share of pairs they would order rightly, 0.5 is guessing; n counts the choices it rests on, on tasks
    that somebody else ranked too. `weight` is 2 `right` - 1, from 0 (guessing, or worse) to 1.
    """

    beta: float
    right: Figure
    weight: float


@dataclass(frozen=True)
class _Choices:
    """Choices (C,), ordered by kind: the numbers of kind and annotator; which completion was taken, out of which
    (C, MOST); and how much it counts."""

    kind: NDArray[np.int64]
    annotator: NDArray[np.int64]
    taken: NDArray[np.int64]
    offered: NDArray[np.bool_]
    share: Floats


@dataclass(frozen=True)
class _Rankings:
    """Rankings (R,), ordered by task: the numbers of task, kind and annotator.

    A kind is all rankings in which one annotator gave the same ranks: few among many, so likelihoods are of kinds.
    """

    task: NDArray[np.int64]
    kind: NDArray[np.int64]
    annotator: NDArray[np.int64]
    choices: _Choices


def fit(tasks: Tasks, known: Mapping[Any, float] | None = None) -> dict[Any, Reliability]:
    """Reliability of everybody in `tasks` (task -> annotator -> ranks), besides those whose β is `known`."""
    known = known or {}
    names = sorted({name for said in tasks.values() for name in said}, key=str)
    number = {name: index for index, name in enumerate(names)}
    data = _flatten([said for said in tasks.values() if len(said) >= 2], number)
    beta = np.array([known.get(name, 1.0) for name in names], dtype=float)
    free = np.array([name not in known for name in names], dtype=bool)
    if not free.any():
        return {}
    theta = _draws()
    for _ in range(ITERATIONS):
        mean = (beta[free].sum() + 1.0) / (free.sum() + 1.0)  # of all, with N(1, 1) beforehand
        gradient, curvature, information = _expectations(data, beta, theta)
        # Newton's step, but at most twice EM's own (by the curvature alone): up to there EM still converges; and a
        # short one, since far out the likelihood is so flat that a whole one would fly to the other side
        step = (gradient - (beta - mean)) / (np.maximum(information, curvature / 2) + 1.0)
        step = np.where(free, step.clip(-LONGEST, LONGEST), 0.0)
        beta = beta + step
        if np.abs(step).max() < TOLERANCE:
            break
    _, _, information = _expectations(data, beta, theta)
    error = 1 / np.sqrt(np.maximum(information, 0.0) + 1.0)
    choices = np.bincount(data.choices.kind)[data.kind]  # of each ranking
    counts = np.bincount(data.annotator, choices, len(names))
    return {name: _reliability(beta[i], error[i], int(counts[i])) for name, i in number.items() if free[i]}


def _reliability(beta: float, error: float, n: int) -> Reliability:
    value, low, high = (share_right(beta + side * 1.96 * error) for side in (0, -1, 1))
    return Reliability(float(beta), Figure(value, low, high, n), min(1.0, max(0.0, 2 * value - 1)))


def share_right(beta: float) -> float:
    """E σ(β|d|) over differences d ~ N(0, 2) of two completions: how many pairs are ordered rightly."""
    differences = np.linspace(0, 8, 400)
    density = np.exp(-(differences**2) / 4)
    return float((density / density.sum()) @ (1 / (1 + np.exp(-beta * differences))))


def _draws() -> Floats:
    """θ (MOST, DRAWS) from its prior, each with its opposite: the same for every task and call."""
    half = np.random.default_rng(0).standard_normal((MOST, DRAWS // 2), dtype=np.float32)
    half /= np.sqrt((half**2).mean(1, keepdims=True))
    return np.concatenate([half, -half], axis=1)


def _flatten(tasks: list[Mapping[Any, Ranks]], number: Mapping[Any, int]) -> _Rankings:
    """The rankings that say something, and the choices that each kind of them is made of."""
    kinds: dict[tuple[int, tuple[int | None, ...]], int] = {}
    said = [
        (task, kinds.setdefault((number[name], tuple(ranks)), len(kinds)), number[name])
        for task, of_task in enumerate(tasks)
        for name, ranks in of_task.items()
        if len([rank for rank in ranks if rank is not None]) > 1
    ]
    found = [(kind, name, *choice) for (name, ranks), kind in kinds.items() for choice in _choices(ranks)]
    columns = list(zip(*found, strict=True)) or [()] * 5
    of_kind, annotators, taken = (np.array(column, dtype=np.int64) for column in columns[:3])
    offers = np.array(columns[3], dtype=bool).reshape(-1, MOST)
    choices = _Choices(of_kind, annotators, taken, offers, np.array(columns[4], dtype=float))
    task, kind, annotator = np.array(said, dtype=np.int64).reshape(-1, 3).T
    return _Rankings(task, kind, annotator, choices)


def _choices(ranks: tuple[int | None, ...]) -> Iterator[tuple[int, list[bool], float]]:
    """What was taken, out of which (MOST), and how much that counts.

    Of completions that tie each is taken once while all of them are offered; where they are the last ones, one of those
    choices says nothing, so each counts that much less.
    """
    for taken, rank in enumerate(ranks):
        if rank is not None:
            offered = [other is not None and other >= rank for other in ranks]
            tied, last = ranks.count(rank), sum(offered) == ranks.count(rank)
            if sum(offered) > 1:
                yield taken, offered + [False] * (MOST - len(ranks)), (tied - 1) / tied if last else 1.0


def _expectations(data: _Rankings, beta: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each annotator: the gradient and curvature of the expected log-likelihood, and the observed information.

    Information by Louis (1982): the expected curvature less the variance of the gradient over what is not seen.
    """
    log_likelihood, slope, curve = _kind_terms(data.choices, beta, theta)
    sums = np.zeros((3, len(beta)))
    for part in _parts(data.task):
        starts = np.flatnonzero(np.diff(data.task[part], prepend=-1))
        kind, who = data.kind[part], data.annotator[part]
        fits = np.add.reduceat(log_likelihood[kind], starts)
        posterior = np.exp(fits - fits.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)  # (tasks, DRAWS)
        seen = posterior[np.repeat(np.arange(len(starts)), np.diff([*starts, len(kind)]))]
        whole = slope[kind]
        gradient, curvature = np.einsum("rs,rs->r", seen, whole), np.einsum("rs,rs->r", seen, curve[kind])
        variance = np.einsum("rs,rs,rs->r", seen, whole, whole) - gradient**2
        for total, terms in zip(sums, (gradient, curvature, curvature - variance), strict=True):
            total += np.bincount(who, terms, len(beta))
    return sums[0], sums[1], sums[2]


def _kind_terms(choices: _Choices, beta: Floats, theta: Floats) -> Floats:
    """Of each kind of ranking and draw (3, kinds, DRAWS): what `_choice_terms` has of its choices, together."""
    found = np.empty((3, int(choices.kind.max(initial=-1)) + 1, theta.shape[1]), theta.dtype)
    for part in _parts(choices.kind):
        terms = _choice_terms(_Choices(*(column[part] for column in vars(choices).values())), beta, theta)
        kinds = choices.kind[part]
        for total, of_choice in zip(found, terms, strict=True):
            total[kinds[0] : kinds[-1] + 1] = np.add.reduceat(of_choice, np.flatnonzero(np.diff(kinds, prepend=-1)))
    return found


def _choice_terms(part: _Choices, beta: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each choice and draw (C, DRAWS): the log-likelihood, and its first and minus second derivative by β."""
    own = beta[part.annotator, None].astype(theta.dtype)
    share = part.share[:, None].astype(theta.dtype)
    total, first, second = np.zeros((3, len(part.share), theta.shape[1]), theta.dtype)
    for k, score in enumerate(theta):
        offered = np.flatnonzero(part.offered[:, k])
        if len(offered):
            odds = np.exp(own[offered] * score)
            total[offered] += odds
            odds *= score
            first[offered] += odds
            odds *= score
            second[offered] += odds
    taken, mean = theta[part.taken], first / total
    return share * (own * taken - np.log(total)), share * (taken - mean), share * (second / total - mean**2)


def _parts(number: NDArray[np.int64]) -> Iterator[slice]:
    """Pieces of about CHUNK, cut where the number changes."""
    start = 0
    while start < len(number):
        last = number[min(start + CHUNK, len(number)) - 1]
        end = int(np.searchsorted(number, last, side="right"))
        yield slice(start, end)
        start = end


def dawid_skene(tasks: Tasks, iterations: int = 50) -> dict[Any, float]:
    """The share of pairs each annotator votes rightly on, by Dawid and Skene's EM with one number per annotator.

    Each pair that two or more voted on has a true vote (better, tie, worse); an annotator gives it with their
    probability, and each of the others with half of the rest.
    """
    names = sorted({name for said in tasks.values() for name in said}, key=str)
    number = {name: index for index, name in enumerate(names)}
    units = []
    for said in tasks.values():
        if len(said) >= 2:
            unit = np.full((len(names), len(votes(next(iter(said.values()))))), np.nan)
            for name, ranks in said.items():
                unit[number[name]] = votes(ranks)
            units.append(unit)
    if not units:
        return {}
    table = np.concatenate(units, axis=1)  # (annotators, pairs)
    gave = np.stack([table == value for value in (-1, 0, 1)], axis=2).astype(float)
    right, prior = np.full(len(names), 0.7), np.full(3, 1 / 3)
    for _ in range(iterations):
        log_right, log_wrong = np.log(right), np.log((1 - right) / 2)
        spoke = gave.sum(2, keepdims=True)
        log_posterior = np.log(prior) + np.einsum("apv,a->pv", gave, log_right - log_wrong)
        log_posterior += np.einsum("apv,a->pv", spoke, log_wrong)
        posterior = np.exp(log_posterior - log_posterior.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        prior = posterior.mean(0)
        hits, total = np.einsum("apv,pv->a", gave, posterior), spoke.sum((1, 2))
        right = np.clip((hits + 1) / (total + 2), 1e-3, 1 - 1e-3)  # one hit and one miss beforehand
    return {name: float(right[i]) for name, i in number.items()}


GOLD = "known answer"
NEWEST = 20_000
"""Rankings that a project's fit looks at: more make it no better, only slower."""


def of_project(db: Database, project_id: int, high_water: int | None = None) -> dict[int, Reliability]:
    """The reliability of everybody who ranked in the project, by user id; as of the event `high_water`, if given."""
    tasks: dict[int, dict[int | str, Ranks]] = {}
    for said in opinions.read(db, project_id, high_water, NEWEST):
        if said.purpose == "repeat" or said.all_bad:
            continue
        ranked = tasks.setdefault(said.task_id, {})
        ranked[GOLD if said.purpose == "adjudicate" else said.user_id] = said.ranks
        if said.gold is not None:
            ranked[GOLD] = said.gold
    found = fit(tasks, {GOLD: KNOWN})
    return {user_id: one for user_id, one in found.items() if isinstance(user_id, int)}


def weights(db: Database, project_id: int, high_water: int | None = None) -> dict[int, float]:
    """What to multiply the weight of each annotator's rankings by, from 0 (guessing) to 1; user id -> weight.

    Whoever shares no task with anybody gets the weight of the average annotator. Rounded, so that a snapshot made again
    with another version of numpy has the same bytes.
    """
    return {user_id: round(one.weight, 4) for user_id, one in of_project(db, project_id, high_water).items()}
