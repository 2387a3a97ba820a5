"""A run's score, KL, length and blind votes on one axis, and the warning where the score and the votes part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from labeler import alarm
from labeler.alarm import Alarm, Estimate, Point
from labeler.jobs import Job
from labeler.store import Store
from labeler.ui import page, plots

METHODS = ("ppo", "dpo", "sft")

EMPTY = (
    '<p class="empty">Nobody has voted blindly on this run yet. In Compare, put one of its checkpoints beside the '
    f"model it started from; from {alarm.FEWEST} votes on each of two checkpoints on, this page warns when "
    "people like the later one less while its score is higher.</p>"
)


def view(store: Store, job: Job, metrics: list[dict[str, Any]], samples: Sequence[Mapping[str, Any]]) -> str:
    """All of it as HTML; "" for a run without a policy, and before it has begun."""
    if job.method not in METHODS or not metrics:
        return ""
    votes = alarm.votes_of_run(store, job.id)
    points = alarm.points_of_run(metrics, samples, votes)
    if not points:
        return EMPTY if job.method == "ppo" else ""
    warnings = "".join(
        f'<div class="notice error" role="alert"><p>{told(found)}</p></div>' for found in _alarms(points)
    )
    calm = '<p class="muted">No alarm: nothing fell by more than two standard errors while the score rose.</p>'
    return f'<div class="over-optimisation">{warnings or calm}{_plot(metrics, points)}{_table(points)}</div>'


def _alarms(points: Sequence[Point]) -> list[Alarm]:
    return alarm.over_optimisation(points)


def told(found: Alarm) -> str:
    """A warning in words."""
    judge = "share of blind votes won" if found.what == "wins" else "score by the held-out reward model"
    return escape(
        f"Over-optimisation: from step {found.best_step} to step {found.step} the reward model's score rose by "
        f"{found.score_rise:.3g}, but the {judge} fell by {found.fall:.2f} ± {1.96 * found.error:.2f} (95%). Go back "
        f"to step {found.best_step}; next time raise beta or stop earlier, and label answers of the new policy."
    )


def _plot(metrics: list[dict[str, Any]], points: Sequence[Point]) -> str:
    named = [
        ("score", _first(metrics, "eval/score", "objective/score")),
        ("KL", _first(metrics, "eval/kl", "objective/kl")),
        ("length", plots.series(metrics, "response/length")),
        ("blind votes won", [(float(p.step), p.wins.mean) for p in points if p.wins]),
        ("held-out reward model", [(float(p.step), p.held_out.mean) for p in points if p.held_out]),
    ]
    lines = [(name, found) for name, found in named if found]
    latest = [plots.number(found[-1][1]) for _, found in lines]
    drawn = plots.overlay(
        "Score and what it stands for", [(name, plots.scaled(found)) for name, found in lines],
        "each line from its lowest (0) to its highest (1)", latest,
    )  # fmt: skip
    return f'<div class="curves large">{drawn}</div>'


def _first(metrics: list[dict[str, Any]], *names: str) -> plots.Points:
    return next((found for name in names if (found := plots.series(metrics, name))), [])


def _table(points: Sequence[Point]) -> str:
    titles = ["Step", "Score", "KL", "Length", "Blind votes won", "Held-out reward model"]
    body = [
        [str(p.step), _number(p.score), _number(p.kl), _number(p.length), _estimate(p.wins, 1), _estimate(p.held_out)]
        for p in points
    ]
    return page.table(titles, body, "Score and blind votes by step")


def _number(value: float | None) -> str:
    return "–" if value is None else plots.number(value)


def _estimate(found: Estimate | None, most: float = math.inf) -> str:
    if found is None:
        return "–"
    low, high = found.interval
    if most == 1:  # a share
        low, high = max(0.0, low), min(1.0, high)
    return f'{found.mean:.2f} <span class="muted">({low:.2f} to {high:.2f}, n = {found.n})</span>'
