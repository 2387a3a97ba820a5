"""Bradley-Terry strengths from comparisons, and how far they can be trusted. Plain data in, numpy only.

P(i beats j) = σ(θ_i - θ_j + β x): θ are strengths in log-odds, x is how much longer i's answer was, β what length alone
is worth (style control, as LMArena does it); a tie is half a win for each. θ and β have a weak prior N(0, PRIOR_SD²),
so that a checkpoint that won everything has a finite strength.

Votes on one prompt hang together, and so do those of one person. A variance is therefore that of a bootstrap by prompt,
plus that by annotator, less that by ranking, which is in both (Cameron, Gelbach and Miller: Robust Inference with
Multi-way Clustering, 2011). Bradley and Terry: Rank Analysis of Incomplete Block Designs (1952).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.intp]

PRIOR_SD = 3.0
"""Of a strength, in log-odds. Weak: ten votes against one outweigh it."""
DRAWS = 400
"""Bootstrap samples behind a variance."""
FEWEST = 5
"""Prompts or annotators below which resampling them says nothing; also wins or losses: with fewer (ties apart),
resampling does not see what might have been, and the variance of the likelihood is the least that is said."""
CONFIDENCE = 0.95
STEPS, LARGEST_STEP = 200, 2.0
CELLS = 8_000_000
"""Numbers held at once while resampling."""


@dataclass(frozen=True)
class Comparisons:
    """V comparisons of M checkpoints, which are numbered from 0. Every array is (V,).

    outcome: 1 where `first` won, 0.5 for a tie. longer: of the first answer, see `longer`. prompt, annotator and
    ranking number what the comparison belongs to.
    """

    first: Ints
    second: Ints
    outcome: Floats
    weight: Floats
    longer: Floats
    prompt: Ints
    annotator: Ints
    ranking: Ints
    count: int


@dataclass(frozen=True)
class Estimate:
    """Parameters (P,), of which the last is β where length was controlled, and their covariances (P, P): of the
    likelihood, of a bootstrap by ranking, and of those by prompt and by annotator, with how many there are less 1.
    `few` (M,) marks checkpoints with few wins or losses."""

    parameters: Floats
    model: Floats
    ranking: Floats
    clustered: tuple[tuple[Floats, int], ...]
    few: NDArray[np.bool_]

    def variance(self, contrast: Floats) -> float:
        """Of contrast @ parameters."""
        return max(self._clustered(contrast), self._model(contrast))

    def half_width(self, contrast: Floats) -> float:
        """Of the 95% interval."""
        model = quantile(None) * self._model(contrast) ** 0.5
        return max(quantile(self._degrees(contrast)) * self._clustered(contrast) ** 0.5, model)

    def _clustered(self, contrast: Floats) -> float:
        alone = _of(self.ranking, contrast)
        return max(alone, alone + sum(_of(covariance, contrast) - alone for covariance, _ in self.clustered))

    def _degrees(self, contrast: Floats) -> float | None:
        """Of freedom (Satterthwaite): few where much of the variance is known from few people or prompts."""
        alone = _of(self.ranking, contrast)
        spread = sum(max(0.0, _of(each, contrast) - alone) ** 2 / degrees for each, degrees in self.clustered)
        return self._clustered(contrast) ** 2 / spread if spread else None

    def _model(self, contrast: Floats) -> float:
        """The likelihood's variance, where resampling says nothing or too little."""
        few = not self.clustered or bool(self.few[contrast[: len(self.few)] != 0].any())
        return _of(self.model, contrast) if few else 0.0


def _of(covariance: Floats, contrast: Floats) -> float:
    return float(contrast @ covariance @ contrast)


def longer(first: Floats, second: Floats) -> Floats:
    """How much longer the first is, from characters: 3 (a - b) / (a + b), so that 1 is twice as long. In hundredths."""
    return np.round(3 * (first - second) / np.maximum(first + second, 1), 2)


def estimate(votes: Comparisons, control_length: bool = False, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Strengths and covariances; always the same for the same votes.

    Annotators are resampled where there are FEWEST or more, prompts likewise; without either the covariance is the
    likelihood's.
    """
    design, rows = kinds(votes, control_length)
    won, weight = votes.weight * votes.outcome, votes.weight
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(len(design)))

    def sums(per_vote: Floats) -> Floats:
        return np.add.reduceat(per_vote[..., order], starts, axis=-1)

    wins, total = sums(won)[None], sums(weight)[None]
    found = fit(design, wins, total, votes.count)
    curvature = _curvature(design, total, sigmoid(found @ design.T), votes.count, PRIOR_SD)[0]
    random = np.random.default_rng(seed)

    def resampled(cluster: Ints) -> Floats:
        groups = int(cluster.max()) + 1
        drawn, size = [], max(1, CELLS // len(cluster))
        for start in range(0, draws, size):
            part = min(size, draws - start)
            picked = random.integers(groups, size=(part, groups)) + groups * np.arange(part)[:, None]
            times = np.bincount(picked.reshape(-1), minlength=part * groups).reshape(part, groups)[:, cluster]
            samples = np.repeat(found, part, axis=0)
            wins, total = sums(times * won), sums(times * weight)
            drawn.append(fit(design, wins, total, votes.count, samples, precision=1e-4))  # Newton's: the next is 1e-8
        return np.atleast_2d(np.cov(np.concatenate(drawn), rowvar=False)) * groups / max(groups - 1, 1)

    clusters = [one for one in (votes.prompt, votes.annotator) if len(one) and one.max() + 1 >= FEWEST]
    first, second = (votes.outcome == 1) * weight, (votes.outcome == 0) * weight
    beat = np.bincount(votes.first, first, votes.count) + np.bincount(votes.second, second, votes.count)
    lost = np.bincount(votes.first, second, votes.count) + np.bincount(votes.second, first, votes.count)
    return Estimate(
        found[0],
        np.linalg.inv(curvature),
        resampled(votes.ranking) if clusters else np.zeros_like(curvature),
        tuple((resampled(cluster), int(cluster.max())) for cluster in clusters),
        np.minimum(lost, beat) < FEWEST,
    )


def kinds(votes: Comparisons, control_length: bool) -> tuple[Floats, Ints]:
    """The kinds of comparison there are, (R, P): +1 and -1 for who meets, then x; and which each vote is (V,)."""
    x = votes.longer if control_length else np.zeros(len(votes.longer))
    cells = np.stack([votes.first.astype(float), votes.second.astype(float), x], 1)
    unique, rows = np.unique(cells, axis=0, return_inverse=True)
    design = np.zeros((len(unique), votes.count + 1))
    every = np.arange(len(unique))
    design[every, unique[:, 0].astype(int)] = 1
    design[every, unique[:, 1].astype(int)] = -1
    design[:, -1] = unique[:, 2]
    return design if control_length else design[:, :-1], rows.reshape(-1)


def fit(
    design: Floats,
    wins: Floats,
    total: Floats,
    count: int,
    start: Floats | None = None,
    prior_sd: float = PRIOR_SD,
    precision: float = 1e-10,
) -> Floats:
    """The most likely parameters (B, P) of B sets of votes at once, by Newton's method with short steps.

    design (R, P): the kinds of comparison; wins, total (B, R): their weight. The first `count` parameters are
    strengths, of mean 0 also without a prior (prior_sd infinite). It stops where no step is longer than `precision`.
    """
    found = np.zeros((len(wins), design.shape[1])) if start is None else start.copy()
    for _ in range(STEPS):
        chance = sigmoid(found @ design.T)
        slope = (wins - total * chance) @ design - found / prior_sd**2
        step = np.linalg.solve(_curvature(design, total, chance, count, prior_sd), slope[..., None])[..., 0]
        step = np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        found += step
        if np.abs(step).max() < precision:
            break
    return found


def _curvature(design: Floats, total: Floats, chance: Floats, count: int, prior_sd: float) -> Floats:
    """Minus the second derivative (B, P, P) of the log posterior, with the mean strength held."""
    parameters = design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    held = np.eye(parameters) / prior_sd**2
    held[:count, :count] += 1 / count
    return ((total * chance * (1 - chance)) @ squares).reshape(-1, parameters, parameters) + held


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x), also far from 0."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def quantile(degrees: float | None) -> float:
    """Student's t for a 95% interval with so many degrees of freedom; the normal one without (Abramowitz 26.7.5)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    if degrees is None:
        return z
    degrees = max(degrees, FEWEST - 1)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
