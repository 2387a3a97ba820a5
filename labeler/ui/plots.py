"""Curves of a run as SVG: drawn on the server, coloured by the page's style sheet, so they fit light and dark.

All text that comes from a run is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from labeler.readings import Reading, reading

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 30
MAX_POINTS = 400
COLOURS = 6

Points = list[tuple[float, float]]
"""(step, value) pairs in the order of the steps."""


@dataclass(frozen=True)
class Panel:
    """One plot: metrics that share an axis, its unit, and one plain sentence on what good looks like."""

    title: str
    names: tuple[str, ...]
    unit: str
    good: str


PANELS: dict[str, tuple[Panel, ...]] = {
    "sft": (
        Panel(
            "Loss",
            ("loss", "eval/loss"),
            "nats per token",
            "Falls, then flattens. A held-out line that turns up means memorising: stop earlier.",
        ),
        Panel(
            "Token accuracy",
            ("accuracy", "eval/accuracy"),
            "share of tokens",
            "How often its first guess is the word people wrote; higher is better.",
        ),
    ),
    "reward": (
        Panel(
            "Agreement with people",
            ("accuracy", "eval/accuracy"),
            "share of comparisons",
            "Rises above 0.5, which is guessing. 0.6 to 0.75 is usual: people do not agree with each other more.",
        ),
        Panel(
            "Loss",
            ("loss", "eval/loss", "eval/nll"),
            "nats per comparison",
            "Falls below 0.69, which is guessing. A held-out line that turns up means memorising.",
        ),
        Panel(
            "Margin",
            ("margin", "eval/margin"),
            "score difference",
            "How far preferred answers score above the others; grows slowly.",
        ),
        Panel(
            "Agreement by length, held out",
            ("eval/accuracy/chosen-longer", "eval/accuracy/chosen-shorter"),
            "share of comparisons",
            "Alike is good. Far apart, the model has learned to like length.",
        ),
    ),
    "dpo": (
        Panel(
            "Agreement with people",
            ("rewards/accuracies", "eval/rewards/accuracies"),
            "share of comparisons",
            "Rises above 0.5: the policy has moved towards the preferred answers.",
        ),
        Panel(
            "Margin",
            ("rewards/margins", "eval/rewards/margins"),
            "nats × beta",
            "Grows. Very large values early on mean it strays: raise beta or lower the learning rate.",
        ),
        Panel(
            "Loss",
            ("loss", "eval/loss"),
            "nats per comparison",
            "Starts at 0.693 and falls. If it stays there, nothing is learned: raise the learning rate.",
        ),
        Panel(
            "Chosen and rejected",
            ("rewards/chosen", "rewards/rejected"),
            "nats × beta",
            "Both may fall; what counts is that chosen stays above rejected.",
        ),
        Panel(
            "Distance from the reference",
            ("eval/kl",),
            "nats per answer, held out",
            "Grows from 0. Where it shoots up the policy strays: raise beta or lower the learning rate.",
        ),
    ),
    "ppo": (
        Panel(
            "Score",
            ("objective/score", "eval/score"),
            "reward model's score",
            "Rises, then flattens. Read the answers too: a score can rise while answers get worse.",
        ),
        Panel(
            "Distance from the reference",
            ("objective/kl", "eval/kl"),
            "nats per answer",
            "Grows slowly from 0; a little below 0 is noise. Above some 10 to 20 expect odd text: raise beta.",
        ),
        Panel(
            "Answer length",
            ("response/length",),
            "tokens",
            "Should not run to the limit: then the reward model likes length, not quality.",
        ),
        Panel("Entropy", ("objective/entropy",), "nats per token", "Falls slowly. A sudden drop means repetition."),
        Panel("Clipped", ("policy/clipfrac",), "share of tokens", "Below about 0.2. Higher: lower the learning rate."),
        Panel("Value model", ("val/explained_variance",), "explained variance", "Rises from 0 towards 1."),
    ),
}
"""The key metrics of each method, the most telling first."""

SHORT_NAMES = {
    "eval/nll": "NLL, held out",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "eval/accuracy/chosen-longer": "the longer was chosen",
    "eval/accuracy/chosen-shorter": "the shorter was chosen",
}


def series(metrics: Iterable[dict[str, Any]], name: str) -> Points:
    """The finite values of one metric."""
    points = []
    for row in metrics:
        value, step = row.get(name), row.get("step")
        if isinstance(value, int | float) and isinstance(step, int | float) and math.isfinite(value):
            points.append((float(step), float(value)))
    return points


def key_curves(method: str, metrics: Sequence[dict[str, Any]]) -> str:
    """The method's key plots, those that have data; HTML."""
    figures = []
    for panel in PANELS.get(method, ()):
        lines = [(name, points) for name in panel.names if (points := series(metrics, name))]
        if lines:
            now = reading(method, panel.names[0], metrics)
            figures.append(_figure(panel.title, lines, panel.unit, panel.good, now))
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def other_curves(method: str, metrics: Sequence[dict[str, Any]]) -> str:
    """Every metric that the key plots leave out, one small plot each; HTML."""
    shown = {name for panel in PANELS.get(method, ()) for name in panel.names} | {"step", "time"}
    names = sorted({name for row in metrics for name in row} - shown)
    figures = [_figure(name, [(name, points)], "", "") for name in names if (points := series(metrics, name))]
    return f'<div class="curves small">{"".join(figures)}</div>' if figures else ""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them."""
    if not high > low:
        pad = abs(low) * 0.1
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def number(value: float) -> str:
    """Short, for an axis or a label: 0.6931, 12.3k, 4e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def tick_label(value: float, step: float) -> str:
    """A tick with as many digits as tell it from its neighbours."""
    if step >= 1 or step < 1e-4 or value == 0:
        return number(value)
    digits = next(digits for digits in range(1, 8) if abs(round(step, digits) - step) < step * 1e-6)
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most about `limit` points, the mean of neighbours, so that long runs stay quick to draw."""
    size = math.ceil(len(points) / limit)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def overlay(title: str, lines: list[tuple[str, Points]], unit: str = "", latest: Sequence[str] | None = None) -> str:
    """One plot whose lines have names of their own; `latest` is told beside them instead of their last values. HTML."""
    return _figure(title, lines, unit, "", label=str, latest=latest)


def scaled(points: Points) -> Points:
    """The same with its lowest value at 0 and its highest at 1, so that unlike things share an axis."""
    values = [value for _, value in points]
    low, size = min(values), max(values) - min(values)
    return [(step, (value - low) / size if size else 0.5) for step, value in points]


SIGNS = {"good": ("✓", "good"), "wait": ("…", "wait and see"), "bad": ("!", "look at this")}
"""A sign and, for those who cannot see it, a word beside each reading."""


def now_line(now: Reading) -> str:
    """A reading as a line of HTML."""
    sign, word = SIGNS[now.standing]
    mark = f'<b class="sign" role="img" aria-label="{word}">{sign}</b>'
    return f'<p class="now-{now.standing}">{mark} {escape(now.sentence)}</p>'


def _figure(
    title: str,
    lines: list[tuple[str, Points]],
    unit: str,
    good: str,
    now: Reading | None = None,
    label: Callable[[str], str] | None = None,
    latest: Sequence[str] | None = None,
) -> str:
    label = label or _short
    ends = latest or [number(points[-1][1]) for _, points in lines]
    legend = ""
    if len(lines) > 1:
        keys = [
            f'<span class="key key-{index % COLOURS}">{escape(label(name))} <b>{escape(ends[index])}</b></span>'
            for index, (name, _) in enumerate(lines)
        ]
        legend = f'<span class="keys">{"".join(keys)}</span>'
    else:
        legend = f'<span class="keys"><b>{escape(ends[0])}</b></span>'
    note = (now_line(now) if now else "") + (f'<p class="good">{escape(good)}</p>' if good else "")
    unit_text = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    return (
        f"<figure><figcaption><strong>{escape(title)}</strong>{unit_text}{legend}</figcaption>"
        f"{_svg(title, lines, label)}{note}</figure>"
    )


def plain_name(method: str, name: str) -> str:
    """A metric in words: the title of its key plot and the line in it ("Margin, held out"); else the name itself."""
    panel = next((panel for panel in PANELS.get(method, ()) if name in panel.names), None)
    if panel is None:
        return name
    alone = len(panel.names) == 1 or name in panel.names[:1]
    return panel.title if alone and name not in SHORT_NAMES else f"{panel.title}, {_short(name)}"


def _short(name: str) -> str:
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    return "held out" if name.startswith("eval/") else "training"


def _svg(title: str, lines: list[tuple[str, Points]], name_of: Callable[[str], str]) -> str:
    lines = [(name, thin(points)) for name, points in lines]
    steps = [step for _, points in lines for step, _ in points]
    values = [value for _, points in lines for _, value in points]
    x_low, x_high = min(steps), max(steps)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_ticks = ticks(min(values), max(values))
    y_low, y_high, step = y_ticks[0], y_ticks[-1], y_ticks[1] - y_ticks[0]

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick_label(tick, step)}</text>'
        )
    for tick in ticks(x_low, x_high, 5):
        if x_low <= tick <= x_high and tick == int(tick):
            parts.append(
                f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{number(tick)}</text>'
            )
    for index, (name, points) in enumerate(lines):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline class="line line-{index % COLOURS}" points="{path}"/>')
        dots = points if len(points) <= 40 else points[-1:]
        for step, value in dots:
            label = f"{escape(name_of(name))}, step {step:g}: {number(value)}"
            parts.append(
                f'<circle class="dot dot-{index % COLOURS}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5">'
                f"<title>{label}</title></circle>"
            )
    label = f"{title}, now {number(lines[0][1][-1][1])} at step {lines[0][1][-1][0]:g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
