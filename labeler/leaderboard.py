"""Which checkpoint people prefer: standings from every blind human comparison of checkpoints.

A ranking of K answers compares each two of them that come from different checkpoints. It counts as K - 1 votes, shared
evenly by its pairs. "All bad" compares nothing. Known answers, repeats and adjudications are left out: they are made to
test or to settle, not as one more opinion. The statistics are in bradley_terry.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from statistics import NormalDist

import numpy as np
from sqlite_utils import Database

from labeler import bradley_terry
from labeler.agreement import Figure
from labeler.bradley_terry import CONFIDENCE, Comparisons, Estimate, Floats, Ints
from labeler.store import rows

POINTS = 400 / math.log(10)
"""Points, as in chess, for a strength in log-odds: 100 points ahead win 64% of the votes, 400 points 91%."""
POWER = 0.8
"""The chance with which the further votes that are named would separate two checkpoints."""
MOST_VOTES = 100_000
"""Further votes above which two checkpoints count as equal."""
NO_PROJECT = 0
"""Stands for the votes that belong to no project: those of Compare."""

Matrix = dict[tuple[int, int], tuple[float, int]]
"""(a, b) -> how many votes a won against b, a tie as half, and how many there were."""


@dataclass(frozen=True)
class Vote:
    """One comparison of two checkpoints by one person. outcome: 1 where `first` was better, 0 where `second` was, 0.5
    for a tie. lengths: characters of the two answers. ranking: the event it came from."""

    prompt_id: int
    annotator_id: int
    first: int
    second: int
    outcome: float
    ranking: int
    weight: float = 1.0
    lengths: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Standing:
    """A checkpoint's place. `strength` is in points ahead of the anchor, with an interval of that difference, `n` the
    votes it was in; None where no chain of votes leads to the anchor. `controlled`: the same at equal length. `rank`: 1
    more than the checkpoints that are better beyond chance. `one_sided`: it won or lost all its votes, so that its
    strength rests on the prior."""

    checkpoint_id: int
    strength: Figure
    controlled: Figure
    rank: int | None
    wins: float
    one_sided: bool


@dataclass(frozen=True)
class Gap:
    """Two neighbours. `points`: how far apart, `n` the votes between the two. `votes_needed`: further votes between
    them, each on a new prompt, that would separate them in 80% of cases were the gap as it is; 0 where it is clear,
    None above MOST_VOTES."""

    better: int
    worse: int
    points: Figure
    votes_needed: int | None


@dataclass(frozen=True)
class Standings:
    """All there is to say. length: what an answer twice as long gains, in points; None
    where all are of one length."""

    anchor: int | None = None
    places: tuple[Standing, ...] = ()
    gaps: tuple[Gap, ...] = ()
    matrix: Matrix = field(default_factory=dict)
    length: Figure | None = None
    votes: int = 0
    rankings: int = 0
    prompts: int = 0
    annotators: int = 0


def votes(db: Database, project_id: int | None = None, blind_only: bool = True) -> list[Vote]:
    """Every comparison of two checkpoints in force, oldest first; of one project, if given (NO_PROJECT: of none).

    With `blind_only`, without those of Compare and Chat in which the names were in view.
    """
    where, params = "", []
    if project_id is not None:
        where, params = "AND r.project_id IS ?", [project_id or None]
    found = rows(
        db,
        f"""SELECT r.event_id, r.prompt_id, r.user_id, r.source, r.completion_ids, r.ranks,
                (SELECT json_group_array(json_array(c.id, c.checkpoint_id, length(c.text),
                    coalesce(json_extract(c.sampling, '$.blind'), 1)))
                    FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id
                    WHERE tc.task_id = r.task_id) AS completions
            FROM latest_rankings AS r
            WHERE r.purpose = 'label' AND r.gold_ranks IS NULL AND NOT r.all_bad {where} AND r.task_id IN (
                SELECT tc.task_id FROM completions AS c JOIN task_completions AS tc ON tc.completion_id = c.id
                WHERE c.checkpoint_id IS NOT NULL GROUP BY tc.task_id HAVING count(DISTINCT c.checkpoint_id) > 1)
            ORDER BY r.event_id""",
        params,
    )
    cast: list[Vote] = []
    for row in found:
        known = {one[0]: one[1:] for one in json.loads(row["completions"])}
        blind = row["source"] != "chat" and all(blind for _, _, blind in known.values())
        if blind or not blind_only:
            cast.extend(_pairs(row, known))
    return cast


def _pairs(row: dict, known: dict[int, Sequence[int]]) -> Iterable[Vote]:
    ranked = [
        (rank, *known[completion][:2])
        for completion, rank in zip(json.loads(row["completion_ids"]), json.loads(row["ranks"]), strict=True)
        if rank is not None and known[completion][0] is not None
    ]
    for (rank, first, length), (other, second, other_length) in combinations(ranked, 2):
        if first != second:
            outcome = 0.5 if rank == other else float(rank < other)
            ids = row["prompt_id"], row["user_id"], first, second, outcome, row["event_id"]
            yield Vote(*ids, weight=2 / len(ranked), lengths=(length, other_length))


def standings(cast: Sequence[Vote], anchor: int | None = None, draws: int = bradley_terry.DRAWS) -> Standings:
    """Where everybody stands, the strongest first; strengths are differences to `anchor` (the checkpoint in most votes
    where it is None or was never compared)."""
    if not cast:
        return Standings()
    met = Counter(one for vote in cast for one in (vote.first, vote.second))
    if anchor is None or anchor not in met:
        anchor = max(met, key=lambda one: (met[one], -one))
    names = connected(cast, anchor)
    among = [vote for vote in cast if vote.first in names]
    table = tabulate(among, names)
    plain = bradley_terry.estimate(table, draws=draws)
    controlled = bradley_terry.estimate(table, control_length=True, draws=draws)
    matrix = _matrix(cast)
    won = {one: sum(wins for (a, _), (wins, _) in matrix.items() if a == one) for one in met}
    order = sorted(range(len(names)), key=lambda i: -plain.parameters[i])
    reference = names.index(anchor)
    places = [
        Standing(
            names[i],
            _points(plain, _contrast(plain, i, reference), met[names[i]]),
            _points(controlled, _contrast(controlled, i, reference), met[names[i]]),
            1 + sum(_clear(plain, other, i) for other in order),
            won[names[i]],
            won[names[i]] in (0, met[names[i]]),
        )
        for i in order
    ]
    apart = [
        Standing(one, Figure(None, n=met[one]), Figure(None, n=met[one]), None, won[one], False)
        for one in sorted(met)
        if one not in names
    ]
    weight = np.zeros(len(controlled.parameters))
    weight[-1] = 1
    varied = bool(np.any(table.longer))
    return Standings(
        anchor,
        tuple(places + apart),
        tuple(_gap(plain, names, better, worse, matrix) for better, worse in pairwise(order)),
        matrix,
        _points(controlled, weight, len(among)) if varied else None,
        len(cast),
        len({vote.ranking for vote in cast}),
        len({vote.prompt_id for vote in cast}),
        len({vote.annotator_id for vote in cast}),
    )


def connected(cast: Sequence[Vote], start: int) -> list[int]:
    """The checkpoints that votes connect with this one, directly or over others, in order of their ids."""
    beside: dict[int, set[int]] = {}
    for vote in cast:
        beside.setdefault(vote.first, set()).add(vote.second)
        beside.setdefault(vote.second, set()).add(vote.first)
    found, ahead = {start}, [start]
    while ahead:
        new = beside.get(ahead.pop(), set()) - found
        found |= new
        ahead.extend(new)
    return sorted(found)


def tabulate(cast: Sequence[Vote], names: Sequence[int]) -> Comparisons:
    """The votes as arrays; checkpoints are numbered as in `names`, and the lower number comes first."""
    number = {name: i for i, name in enumerate(names)}
    turned = np.array([number[vote.first] > number[vote.second] for vote in cast])
    pairs = np.array([[number[vote.first], number[vote.second]] for vote in cast], dtype=np.intp)
    outcome = np.array([vote.outcome for vote in cast], dtype=float)
    lengths = np.array([vote.lengths for vote in cast], dtype=float)
    more = bradley_terry.longer(lengths[:, 0], lengths[:, 1])

    def groups(values: Iterable[int]) -> Ints:
        return np.unique(np.fromiter(values, dtype=np.int64), return_inverse=True)[1].astype(np.intp).reshape(-1)

    return Comparisons(
        pairs.min(1),
        pairs.max(1),
        np.where(turned, 1 - outcome, outcome),
        np.array([vote.weight for vote in cast], dtype=float),
        np.where(turned, -more, more),
        groups(vote.prompt_id for vote in cast),
        groups(vote.annotator_id for vote in cast),
        groups(vote.ranking for vote in cast),
        len(names),
    )


def _matrix(cast: Sequence[Vote]) -> Matrix:
    found: Matrix = {}
    for vote in cast:
        for pair, outcome in (
            ((vote.first, vote.second), vote.outcome),
            ((vote.second, vote.first), 1 - vote.outcome),
        ):
            wins, n = found.get(pair, (0.0, 0))
            found[pair] = wins + outcome, n + 1
    return found


def _contrast(found: Estimate, better: int, worse: int) -> Floats:
    weights = np.zeros(len(found.parameters))
    weights[better] += 1
    weights[worse] -= 1
    return weights


def _points(found: Estimate, contrast: Floats, n: int) -> Figure:
    value, half = POINTS * float(contrast @ found.parameters), POINTS * found.half_width(contrast)
    return Figure(value, value - half, value + half, n)


def _clear(found: Estimate, better: int, worse: int) -> bool:
    """Whether one is better than another beyond chance."""
    contrast = _contrast(found, better, worse)
    return float(contrast @ found.parameters) > found.half_width(contrast)


def _gap(found: Estimate, names: Sequence[int], better: int, worse: int, matrix: Matrix) -> Gap:
    contrast = _contrast(found, better, worse)
    ahead, variance = float(contrast @ found.parameters), found.variance(contrast)
    needed: int | None = 0
    if not _clear(found, better, worse):
        needed = votes_needed(ahead, variance)
    _, direct = matrix.get((names[better], names[worse]), (0.0, 0))
    return Gap(names[better], names[worse], _points(found, contrast, direct), needed)


def votes_needed(ahead: float, variance: float) -> int | None:
    """Further votes between two checkpoints that are `ahead` (log-odds) apart, known to this variance, after which the
    difference would be clear with the chance POWER; None above MOST_VOTES.

    A vote adds p(1 - p) to the precision of a difference, and that has to reach ((z_0.975 + z_POWER) / ahead)².
    """
    normal = NormalDist()
    precision = ((normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) / max(ahead, 1e-9)) ** 2
    chance = 1 / (1 + math.exp(-ahead))
    needed = max(1.0, (precision - 1 / variance) / (chance * (1 - chance)))
    return math.ceil(needed) if needed <= MOST_VOTES else None
