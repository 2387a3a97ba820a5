"""How far annotators agree: figures with an interval and the number they rest on. Plain data in, numpy only.

A ranking of K completions says something about each of its K(K-1)/2 pairs: the first is better (-1), they tie (0), the
second is better (1), or nothing (nan) where one was not ranked. Percent and alpha are of these votes; Kendall's tau-b
is of whole rankings. Intervals are of a bootstrap by task, since the votes on one task hang together.

Krippendorff: Content Analysis (2018), chapter 12. Kendall: The treatment of ties in ranking problems (1945).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ranks = Sequence[int | None]
Tasks = Mapping[Any, Mapping[Any, Ranks]]
"""Task -> annotator -> ranks of the task's completions, all in the same order. Both keys are whatever names them."""

VALUES = np.array([-1.0, 0.0, 1.0])
"""What a vote can be, in order."""
LEVELS = ("nominal", "ordinal", "interval")
DRAWS = 400
"""Bootstrap samples behind an interval."""
CONFIDENCE = 0.95
KEPT = 2_000
"""Tasks up to which the draws are kept: 1.6 MB."""
FEWEST = 2
"""Tasks without which there is no interval."""


@dataclass(frozen=True)
class Figure:
    """An estimate with its 95% interval and the number it rests on. `value` is None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Agreement:
    """How far people agree on the tasks that at least two of them ranked.

    `percent`: share of pairs of votes that are the same. `nominal`, `ordinal`, `interval`: Krippendorff's alpha of the
    votes. `tau`: mean Kendall's tau-b of two rankings of one task; `undefined` counts the pairs of rankings that have
    none, because one of the two ties all that both ranked. n counts pairs of votes for `percent`, votes for alpha,
    pairs of rankings for `tau`.
    """

    percent: Figure
    nominal: Figure
    ordinal: Figure
    interval: Figure
    tau: Figure
    undefined: int
    tasks: int


def votes(ranks: Ranks) -> Floats:
    """The votes (K(K-1)/2,) of a ranking, pairs in the order of `itertools.combinations`; not to be written to."""
    return _votes(tuple(ranks))


@lru_cache(maxsize=4096)  # there are many rankings, but few different ones
def _votes(ranks: tuple[int | None, ...]) -> Floats:
    values = np.array([np.nan if rank is None else float(rank) for rank in ranks])
    first, second = np.triu_indices(len(values), 1)
    return np.sign(values[first] - values[second])


def tau_b(first: Floats, second: Floats) -> float | None:
    """Kendall's tau-b of two rankings, from their votes; None where either ties all that both ranked."""
    both = ~(np.isnan(first) | np.isnan(second))
    x, y = first[both], second[both]
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else None


def coincidences(units: Floats, values: Floats = VALUES) -> Floats:
    """Krippendorff's coincidence matrix (V, V) of units (raters, units), nan where somebody said nothing.

    A unit with m values gives each ordered pair of them 1/(m - 1); one with a single value gives nothing.
    """
    counts = np.stack([(units == value).sum(0) for value in values], 1).astype(float)  # (units, V)
    total = counts.sum(1)
    paired = counts[total >= 2]
    shares = paired / (total[total >= 2, None] - 1)
    return shares.T @ paired - np.diag(shares.sum(0))


def alpha_of(matrix: Floats, level: str, values: Floats = VALUES) -> Floats:
    """Krippendorff's alpha of coincidence matrices (..., V, V): 1 - observed / expected disagreement.

    nan where all votes are the same: then nothing could have disagreed.
    """
    totals = matrix.sum(-1)
    n = totals.sum(-1)
    if level == "ordinal":
        ranks = totals.cumsum(-1) - totals / 2  # δ = n_c/2 + those between + n_k/2
        distance = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    elif level == "interval":
        distance = np.subtract.outer(values, values) ** 2
    elif level == "nominal":
        distance = 1.0 - np.eye(len(values))
    else:
        raise ValueError(f"unknown level {level!r}; use one of {', '.join(LEVELS)}")
    observed = (matrix * distance).sum((-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * distance).sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (n - 1) * observed / expected, np.nan)


def alpha(units: Floats, level: str = "nominal") -> float | None:
    """Krippendorff's alpha of any numbers (raters, units), nan where missing; None where it is not defined."""
    values = np.unique(units[~np.isnan(units)])
    found = float(alpha_of(coincidences(units, values), level, values))
    return None if np.isnan(found) else found


_PERCENT, _TAU, _UNDEFINED, _MATRIX = slice(0, 2), slice(2, 4), 4, slice(5, None)


def statistics_of(rankings: Sequence[Ranks]) -> Floats:
    """What one task adds to the sums that all figures are made of, from the rankings of two or more people.

    [same votes, pairs of votes, sum of tau-b, pairs with one, pairs without, 9 coincidences]; not to be written to.
    """
    return _statistics(tuple(tuple(ranks) for ranks in rankings))


@lru_cache(maxsize=65536)
def _statistics(rankings: tuple[tuple[int | None, ...], ...]) -> Floats:
    said = np.stack([votes(ranks) for ranks in rankings])
    found = np.zeros(5 + len(VALUES) ** 2)
    for first, second in combinations(said, 2):
        both = ~(np.isnan(first) | np.isnan(second))
        found[_PERCENT] += (first[both] == second[both]).sum(), both.sum()
        if both.any():
            tau = tau_b(first, second)
            found[_TAU] += (0.0, 0.0) if tau is None else (tau, 1.0)
            found[_UNDEFINED] += tau is None
    found[_MATRIX] = coincidences(said).ravel()
    return found


def resampled(sums: Floats, of: Callable[[Floats], Floats], n: int, drawn: Floats | None = None) -> Figure:
    """`of` the column sums of `sums` (tasks, statistics), with a percentile interval of a bootstrap by task.

    `of` maps (..., statistics) to (...). `drawn` are sums of `bootstrap`, where there are some already.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(of(sums.sum(0)))
        if not np.isfinite(value):
            return Figure(None, n=n)
        if len(sums) < FEWEST:
            return Figure(value, n=n)
        values = of(bootstrap(sums) if drawn is None else drawn)
    values = values[np.isfinite(values)]
    if len(values) < DRAWS / 2:
        return Figure(value, n=n)
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(value, float(low), float(high), n)


def bootstrap(sums: Floats) -> Floats:
    """Column sums (DRAWS, statistics) over as many tasks as there are, drawn with replacement; always the same ones."""
    tasks = len(sums)
    if tasks <= KEPT:
        return _kept_counts(tasks) @ sums
    return np.concatenate([counts @ sums for counts in _counts(tasks)])


def _counts(tasks: int) -> Iterator[NDArray[np.int64]]:
    """How often each task is drawn (DRAWS, tasks), in pieces that fit into memory."""
    random, even = np.random.default_rng(0), np.full(tasks, 1 / max(tasks, 1))
    size = max(1, 4_000_000 // max(tasks, 1))
    for start in range(0, DRAWS, size):
        yield random.multinomial(tasks, even, size=min(size, DRAWS - start))


@lru_cache(
    maxsize=64
)  # drawing them takes longer than all else; periods are of one size, and so are one person's signs
def _kept_counts(tasks: int) -> NDArray[np.uint16]:
    return np.concatenate(list(_counts(tasks))).astype(np.uint16)


def summarise(sums: Floats) -> Agreement:
    """All figures from the rows of `statistics_of` (tasks, 14)."""
    sums = sums.reshape(-1, 5 + len(VALUES) ** 2)
    total = sums.sum(0)
    drawn = bootstrap(sums) if len(sums) >= FEWEST else sums

    def ratio(part: slice) -> Callable[[Floats], Floats]:
        return lambda s: s[..., part.start] / s[..., part.start + 1]

    def coefficient(level: str) -> Figure:
        side = len(VALUES)

        def of(s: Floats) -> Floats:
            return alpha_of(s[..., _MATRIX].reshape(*s.shape[:-1], side, side), level)

        return resampled(sums, of, round(total[_MATRIX].sum()), drawn)

    return Agreement(
        percent=resampled(sums, ratio(_PERCENT), int(total[1]), drawn),
        nominal=coefficient("nominal"),
        ordinal=coefficient("ordinal"),
        interval=coefficient("interval"),
        tau=resampled(sums, ratio(_TAU), int(total[3]), drawn),
        undefined=int(total[_UNDEFINED]),
        tasks=int((sums[:, 1] > 0).sum()),
    )


def agreement(tasks: Tasks) -> Agreement:
    """Agreement of all annotators on all tasks."""
    shared = [list(said.values()) for said in tasks.values() if len(said) >= 2]
    return summarise(np.array([statistics_of(rankings) for rankings in shared]))


def between(tasks: Tasks) -> dict[tuple[Any, Any], Agreement]:
    """Agreement of each two annotators on the tasks that both ranked, most shared tasks first."""
    found: dict[tuple[Any, Any], list[Floats]] = {}
    for said in tasks.values():
        for first, second in combinations(sorted(said, key=str), 2):
            found.setdefault((first, second), []).append(statistics_of([said[first], said[second]]))
    pairs = sorted(found.items(), key=lambda item: -len(item[1]))
    return {pair: summarise(np.array(sums)) for pair, sums in pairs}


def over_time(tasks: Tasks, period: Mapping[Any, int]) -> dict[int, Agreement]:
    """Agreement of the tasks of each period (a week's number, say, or the hundred a task belongs to), in order."""
    groups: dict[int, dict[Any, Mapping[Any, Ranks]]] = {}
    for task, said in tasks.items():
        groups.setdefault(period[task], {})[task] = said
    return {number: agreement(groups[number]) for number in sorted(groups)}
