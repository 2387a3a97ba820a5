"""How far a committee of reward heads is from agreeing about a task, and from what a person said.

Notation: K completions, H heads; `ensemble` (K, H) holds each head's score of each completion. Query by committee:
Seung, Opper and Sompolinsky 1992; of ensembles, arXiv:1612.01474. A small margin is something else: of two answers that
are equally good the heads say 0.5 with one voice, and one more ranking teaches nothing (arXiv:1112.5745 calls the two
aleatoric and epistemic).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

CONFIDENT = 0.9
"""P above which a model that contradicts a person is called confident."""


def disagreement(ensemble: ArrayLike) -> float:
    """Standard deviation over the heads of P(i is better than j) = σ(r_i - r_j), a mean over pairs; from 0 to 0.5."""
    scores = np.asarray(ensemble, dtype=float)
    first, second = np.triu_indices(len(scores), 1)
    return float(_sigmoid(scores[first] - scores[second]).std(axis=1).mean())


def contradiction(ranks: Sequence[int | None], own: ArrayLike, ensemble: ArrayLike) -> float:
    """How sure the model is of the opposite of these ranks: the highest P(j is better than i) of a pair with i ranked
    above j, a mean over the heads, where the model's own scores (K,) and every head are on j's side; 0 where none is.
    """
    scores = np.column_stack([np.asarray(own, dtype=float), np.asarray(ensemble, dtype=float)])
    found = 0.0
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better is not None and worse is not None and better < worse and (scores[j] > scores[i]).all():
                found = max(found, float(_sigmoid(scores[j, 1:] - scores[i, 1:]).mean()))
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
