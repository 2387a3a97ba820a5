"""What a forward holds and what that costs: the arithmetic by which `training.speed` measures and others estimate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Sizes = tuple[int, Sequence[int]]
"""A group's tokens: of its prompt, and of each of its responses."""


def features(groups: Sequence[Sizes], targets: bool = True, shared: int = 0) -> list[float]:
    """What one forward holds: [1, tokens, pairs of tokens that look at each other, tokens asked for].

    `shared`: tokens that all prompts begin with, which are read once.
    """
    tokens = sum(prompt + sum(responses) for prompt, responses in groups) - shared * max(0, len(groups) - 1)
    pairs = sum(prompt**2 / 2 + sum(r * (prompt + r / 2) for r in responses) for prompt, responses in groups)
    return [1.0, tokens, pairs, sum(sum(responses) for _, responses in groups) if targets else 0.0]


def forwards(groups: Sequence[Sizes], limit: int, shared: int = 0) -> Iterator[list[Sizes]]:
    """The groups of each forward of at most `limit` tokens, as `training.packs.packs` fills them."""
    rows: list[list[Sizes]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda group: -(group[0] + sum(group[1]))):
        length = group[0] + sum(group[1])
        place = next((number for number, left in enumerate(room) if length - shared <= left), None)
        if place is None:
            rows.append([group])
            room.append(limit - length)
        else:
            rows[place].append(group)
            room[place] -= length - shared
    yield from rows


def prices(held: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Prices, none below 0, whose sum over what each forward held comes closest to its seconds, relatively.

    What comes out below 0 is left out, and the rest is fitted again.
    """
    took = np.array(seconds, dtype=float)
    rows = np.array(held, dtype=float) / took[:, None]
    kept, found = list(range(rows.shape[1])), np.zeros(rows.shape[1])
    while kept:
        scale = rows[:, kept].max(0).clip(min=1e-12)
        solved = np.linalg.lstsq(rows[:, kept] / scale, np.ones(len(rows)), rcond=None)[0]
        if (solved >= 0).all():
            found[kept] = solved / scale
            break
        del kept[int(solved.argmin())]
    return [float(value) for value in found]
