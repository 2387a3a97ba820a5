"""What a lead needs to trust the labels: agreement, known answers, and signs that somebody does not read.

Each sign is a suspicion: a score with its interval and the number it rests on, near 0 for a person who reads. It is a
reason to look at someone's rankings, never a verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import combinations
from math import sqrt

import numpy as np
from sqlite_utils import Database

from labeler import agreement, opinions, reliability
from labeler.agreement import Agreement, Figure, Floats
from labeler.opinions import Opinion, Ranks
from labeler.store import rows

NEWEST = 10_000
"""Rankings that the page looks at: more would take longer than a person waits."""
FEWEST = 10
"""Rankings below which nobody is suspected."""
IN_MATRIX = 12
"""Annotators in the matrix of pairs: those with the most rankings."""
PERIOD = 100
"""About as many tasks to a point of the curve, where the work took less than four weeks."""
WEEK = 7 * 24 * 3600
LEAST_SPREAD = 0.25
"""Of the annotators' typical speed, in log units: in a team of one pace, 25% faster is no sign of anything."""

SIGNS = {
    "position": "the first card wins too often",
    "pattern": "the same ranks in the order of the screen, again and again",
    "speed": "much faster than the others for as much text",
    "random": "agrees with the others as somebody who guesses would",
}


@dataclass(frozen=True)
class Suspicion:
    """One sign. `score`: see the functions below; `seen` says it in words; `state` is fine, look or few (too few to
    say)."""

    score: Figure
    seen: str
    state: str


@dataclass(frozen=True)
class Annotator:
    """One person's figures. `others`, `gold` and `retest` are shares of votes that are the same: as the others', as the
    known answer, as their own before."""

    user_id: int
    name: str
    rankings: int
    others: Figure
    gold: Figure
    retest: Figure
    reliability: Figure
    seconds: float | None
    suspicions: dict[str, Suspicion]


@dataclass(frozen=True)
class Quality:
    """A project's figures. `pairs` are those of the annotators with the most rankings; `periods` are titled."""

    overall: Agreement
    gold: Figure
    retest: Figure
    annotators: list[Annotator] = field(default_factory=list)
    pairs: dict[tuple[int, int], Agreement] = field(default_factory=dict)
    periods: list[tuple[str, Agreement]] = field(default_factory=list)
    rankings: int = 0
    cut: bool = False


def measure(db: Database, project_id: int, limit: int = NEWEST) -> Quality:
    """Everything the Quality page shows, from the newest `limit` rankings in force."""
    said = opinions.read(db, project_id, limit=limit)
    lengths = characters(db, [one for one in said if one.purpose == "label"])
    return _measure(tuple(said), tuple(lengths.items()), len(said) == limit)


@lru_cache(maxsize=4)  # until somebody says something new; by content, since names and known answers change too
def _measure(said: tuple[Opinion, ...], lengths: tuple[tuple[int, int], ...], cut: bool) -> Quality:
    labels = [one for one in said if one.purpose == "label"]
    tasks = opinions.by_task(labels)
    people = Counter(one.user_id for one in labels)
    most = {user_id for user_id, _ in people.most_common(IN_MATRIX)}
    among = {task: {a: r for a, r in ranked.items() if a in most} for task, ranked in tasks.items()}
    gold, retest = _against_gold(labels), _against_oneself(said)
    return Quality(
        overall=agreement.agreement(tasks),
        gold=agreement.agreement({key: pair for found in gold.values() for key, pair in found.items()}).percent,
        retest=agreement.agreement({key: pair for found in retest.values() for key, pair in found.items()}).percent,
        annotators=_annotators(labels, dict(lengths), gold, retest),
        pairs=agreement.between(among),
        periods=_periods(labels, tasks),
        rankings=len(labels),
        cut=cut,
    )


_Pairs = dict[int, dict[tuple[int, int], dict[str, Ranks]]]
"""User id -> (user, task) -> two rankings to compare."""


def _against_gold(labels: Sequence[Opinion]) -> _Pairs:
    found: _Pairs = defaultdict(dict)
    for one in labels:
        if one.gold is not None and not one.all_bad:
            found[one.user_id][one.user_id, one.task_id] = {"said": one.ranks, "known": one.gold}
    return found


def _against_oneself(said: Sequence[Opinion]) -> _Pairs:
    first = {(one.user_id, one.task_id): one for one in said if one.purpose == "label" and not one.all_bad}
    found: _Pairs = defaultdict(dict)
    for one in said:
        before = first.get((one.user_id, one.task_id))
        if one.purpose == "repeat" and before is not None and not one.all_bad:
            found[one.user_id][one.user_id, one.task_id] = {"said": before.ranks, "again": one.ranks}
    return found


def _annotators(labels: Sequence[Opinion], length: dict[int, int], gold: _Pairs, retest: _Pairs) -> list[Annotator]:
    of_person: dict[int, list[Opinion]] = defaultdict(list)
    for one in labels:
        of_person[one.user_id].append(one)
    shared = _with_others(labels)
    spread = _pool([one.shown for one in labels if one.seen])
    speeds = speed_scores({user: _paces(own, length) for user, own in of_person.items()})
    reliable = reliability.fit(opinions.by_task(labels))
    found = []
    for user_id, own in of_person.items():
        seen = [one.shown for one in own if one.seen]
        same = shared.get(user_id, np.zeros((0, 4)))
        suspicions = {
            "position": position(seen),
            "pattern": pattern(seen, spread),
            "speed": speeds[user_id],
            "random": guessing(same),
        }
        seconds = [one.seconds for one in own if one.seconds is not None]
        fitted = reliable.get(user_id)
        found.append(
            Annotator(
                user_id,
                own[0].name,
                len(own),
                agreement.resampled(same, lambda s: s[..., 0] / s[..., 1], int(same[:, 1].sum())),
                agreement.agreement(gold.get(user_id, {})).percent,
                agreement.agreement(retest.get(user_id, {})).percent,
                fitted.right if fitted is not None and fitted.right.n else Figure(None),
                float(np.median(seconds)) if seconds else None,
                suspicions,
            )
        )
    return sorted(found, key=lambda one: (-sum(s.state == "look" for s in one.suspicions.values()), one.name.lower()))


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    share = hits / n
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def _above(hits: float, n: int, expected: float) -> Figure:
    """A share above what is expected: 0 as expected, 1 always."""
    low, high = wilson(hits, n)
    value, low, high = ((share - expected) / (1 - expected) for share in (hits / n, low, high))
    return Figure(value, low, high, n)


def _state(score: Figure, least: float) -> str:
    if score.n < FEWEST or score.low is None:
        return "few"
    return "look" if score.low > least else "fine"


def position(shown: Sequence[Ranks]) -> Suspicion:
    """Whether the first card is ranked best too often, from ranks in the order of the screen.

    Cards are shuffled, so of m ranked cards the first should be best once in m; shared first places count in part.
    The score is 0 there and 1 where the first card always wins.
    """
    hits, expected, n = 0.0, 0.0, 0
    for ranks in shown:
        ranked = [rank for rank in ranks if rank is not None]
        if len(ranked) >= 2 and ranks[0] is not None:
            hits += (ranks[0] == min(ranked)) / ranked.count(min(ranked))
            expected += 1 / len(ranked)
            n += 1
    if not n:
        return Suspicion(Figure(None), "no order of cards is known", "few")
    score = _above(hits, n, expected / n)
    return Suspicion(score, f"first card best in {hits / n:.0%}, {expected / n:.0%} expected", _state(score, 0.05))


@lru_cache(maxsize=4096)
def dense(ranks: Ranks) -> Ranks:
    """The same order with ranks 1, 2, ...: [2, 5, None, 2] is [1, 2, None, 1]."""
    place = {rank: number for number, rank in enumerate(sorted({r for r in ranks if r is not None}), 1)}
    return tuple(None if rank is None else place[rank] for rank in ranks)


def _pool(shown: Sequence[Ranks]) -> Floats:
    """How often each pattern of ranks would be seen if everybody's rankings met cards in any order: shares (P,)."""
    random = np.random.default_rng(0)
    counts: Counter[Ranks] = Counter()
    for ranks in shown[-5000:]:
        for _ in range(4):
            counts[dense(tuple(ranks[i] for i in random.permutation(len(ranks))))] += 1
    shares = np.array(sorted(counts.values(), reverse=True), dtype=float)
    return shares / shares.sum() if len(shares) else np.ones(1)


def pattern(shown: Sequence[Ranks], pool: Floats) -> Suspicion:
    """Whether one pattern of ranks, in the order of the screen, comes again too often.

    The score compares the share of the commonest pattern with what as many rankings drawn from `pool` would have: 0 is
    that share, 1 is always the same.
    """
    if not shown:
        return Suspicion(Figure(None), "no order of cards is known", "few")
    counts, n = Counter(dense(ranks) for ranks in shown), len(shown)
    commonest, times = counts.most_common(1)[0]
    drawn = np.random.default_rng(0).multinomial(n, pool, size=200).max(1) / n
    expected = min(float(drawn.mean()), 0.99)
    shares = np.array(list(counts.values())) / n
    entropy = float(-(shares * np.log2(shares)).sum())
    said = " ".join("–" if rank is None else str(rank) for rank in commonest)
    score = _above(times, n, expected)
    text = f"{said} in {times / n:.0%}, {expected:.0%} expected; entropy {entropy:.1f} bits"
    return Suspicion(score, text, _state(score, 0.1))


def characters(db: Database, labels: Sequence[Opinion]) -> dict[int, int]:
    """How long the completions of each task are together."""
    found = rows(
        db,
        """SELECT tc.task_id, sum(length(c.text)) AS characters FROM task_completions AS tc
            JOIN completions AS c ON c.id = tc.completion_id
            WHERE tc.task_id BETWEEN ? AND ? GROUP BY tc.task_id""",
        [min((one.task_id for one in labels), default=0), max((one.task_id for one in labels), default=0)],
    )
    return {row["task_id"]: row["characters"] for row in found}


def _paces(own: Sequence[Opinion], length: dict[int, int]) -> Floats:
    """(n, 2): seconds and characters of the tasks whose time is known."""
    known = [(one.seconds, max(1, length.get(one.task_id, 1))) for one in own if one.seconds is not None]
    return np.array(known, dtype=float).reshape(-1, 2)


def speed_scores(paces: dict[int, Floats]) -> dict[int, Suspicion]:
    """Whether somebody is much faster than the others, given how long the texts are; `paces` from `_paces`.

    Log seconds are fitted by a line in log characters over everybody; a person's typical deviation is the median of
    theirs. The score is how many robust standard deviations (1.4826 x the median absolute deviation between people)
    they are faster than the median person; 3 is far.
    """
    timed = {user: np.log(pace) for user, pace in paces.items() if len(pace)}
    nothing = Suspicion(Figure(None), "time not known", "few")
    if not timed:
        return dict.fromkeys(paces, nothing)
    everything = np.concatenate(list(timed.values()))
    length = everything[:, 1] - everything[:, 1].mean()
    slope = float(length @ everything[:, 0] / max(length @ length, 1e-9))
    faster = {user: slope * pace[:, 1] - pace[:, 0] for user, pace in timed.items()}
    medians = np.array([np.median(values) for values in faster.values()])
    middle = float(np.median(medians))
    scale = max(1.4826 * float(np.median(np.abs(medians - middle))), LEAST_SPREAD)
    found = dict.fromkeys(paces, nothing)
    random = np.random.default_rng(0)
    for user, values in faster.items():
        drawn = np.median(values[random.integers(len(values), size=(200, len(values)))], axis=1)
        low, high = (np.quantile(drawn, [0.025, 0.975]) - middle) / scale
        score = Figure(float((np.median(values) - middle) / scale), float(low), float(high), len(values))
        seconds = float(np.median(paces[user][:, 0]))
        times = float(np.exp(np.median(values) - middle))
        pace = "as fast" if abs(times - 1) < 0.1 else f"{times:.1f} times as fast"
        pace = f"{1 / times:.1f} times as slow" if times < 0.9 else pace
        found[user] = Suspicion(score, f"{seconds:.0f} s a task, {pace} as the others", _state(score, 3.0))
    return found


def _with_others(labels: Sequence[Opinion]) -> dict[int, Floats]:
    """User id -> (tasks, 4): votes that were the same as another's, votes compared, and of those where neither tied
    the agreeing less the opposed, and how many."""
    found: dict[int, list[Floats]] = defaultdict(list)
    for said in opinions.by_task(labels).values():
        sums = {user: np.zeros(4) for user in said}
        for first, second in combinations(said, 2):
            row = _common(said[first], said[second])
            sums[first] += row
            sums[second] += row
        for user, row in sums.items():
            if row[1]:
                found[user].append(row)
    return {user: np.array(listed) for user, listed in found.items()}


@lru_cache(maxsize=65536)
def _common(first: Ranks, second: Ranks) -> Floats:
    x, y = agreement.votes(first), agreement.votes(second)
    both = ~(np.isnan(x) | np.isnan(y))
    product = x[both] * y[both]
    return np.array([(x[both] == y[both]).sum(), both.sum(), product.sum(), np.abs(product).sum()])


def guessing(same: Floats) -> Suspicion:
    """Whether somebody agrees with the others no more than by chance; `same` from `_with_others`.

    Of votes where neither tied: 0 where all agree, 1 where as many are opposed (a guess), above 1 where more are.
    It is suspected where chance lies within the interval: with few votes that means no more than that.
    """
    figure = agreement.resampled(same, lambda s: 1 - s[..., 2] / s[..., 3], len(same))
    if figure.value is None:
        return Suspicion(Figure(None, n=len(same)), "no task shared with others", "few")
    agree = 1 - figure.value / 2
    state = "few" if figure.high is None or figure.n < FEWEST else "look" if figure.high >= 1 else "fine"
    return Suspicion(figure, f"same side as another in {agree:.0%}, guessing gives 50%", state)


def _periods(labels: Sequence[Opinion], tasks: agreement.Tasks) -> list[tuple[str, Agreement]]:
    """By week, where the work took four or more; else by the hundred tasks. A task counts when it was last ranked."""
    last = {one.task_id: one for one in labels if len(tasks.get(one.task_id, ())) >= 2}
    weeks = {task: int(one.created_at // WEEK) for task, one in last.items()}
    shared = {task: tasks[task] for task in last}
    if len(set(weeks.values())) >= 4:
        found = agreement.over_time(shared, weeks)
        return [(date.fromtimestamp(week * WEEK).isoformat(), figures) for week, figures in found.items()]
    order = sorted(last, key=lambda task: last[task].event_id)
    groups = max(1, round(len(order) / PERIOD))  # of one size, since a last one of three tasks would tell nothing
    bounds = [len(order) * group // groups for group in range(groups + 1)]
    of_group = {task: group for group in range(groups) for task in order[bounds[group] : bounds[group + 1]]}
    found = agreement.over_time(shared, of_group)
    return [(f"tasks {bounds[group] + 1} to {bounds[group + 1]}", one) for group, one in found.items()]
