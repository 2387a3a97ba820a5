"""What more labels would buy: how well a reward model does with a fifth of them, two fifths, ... all of them.

The hidden states of the frozen base at the answers' ends are computed once; on them a linear Bradley-Terry head is
fitted to nested subsets of the prompts and judged on held-out prompts, for several splits. A head on frozen features
is weaker than a trained reward model, but it shows whether the curve still climbs, in minutes. The features are of the
base and not of a reward model, because that has seen the held-out labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.formats import read_rankings
from data.preferences import opening
from data.records import InputError
from training import losses
from training.base import Base
from training.batches import encode_rankings
from training.ensemble import PRIOR_SPREAD
from training.generate import show_progress
from training.packs import Group
from training.reward import Pairs, counted
from training.reward_model import read_ends

SUBSETS, SEEDS = 5, 3
HELD_OUT = 0.2
"""Share of the prompts that the heads are judged on."""
FEWEST_PROMPTS = 20


def learning_curve(base: Base, data: Path | str, max_length: int, most: int, seed: int = 0) -> dict[str, Any]:
    """Accuracy on held-out prompts by the share of the labels that was learned from.

    `prompts`, `comparisons` [SUBSETS]: how many were learned from (of comparisons the mean over the splits);
    `accuracy` [SUBSETS][SEEDS]; `n`: comparisons a split was judged on, on average; `read`: rankings that were looked
    at, of `rankings` (at most `most`, drawn at random). Ties are left out. Raises InputError where there are too few.
    """
    rankings = read_rankings(data)
    groups, fit = encode_rankings(base, rankings, max_length)
    order = np.random.default_rng(seed).permutation(len(groups))[:most]
    chosen = [groups[int(place)] for place in order]
    ends = read_ends(base, None, chosen, lambda h: h, on_progress=show_progress("answers read"))
    prompts: dict[tuple[str, ...], int] = {}
    of_group = [prompts.setdefault(_key(rankings[group.index]), len(prompts)) for group in chosen]
    curve = fit_curve(ends, chosen, np.array(of_group), seed)
    return curve | {"rankings": len(groups), "read": len(chosen), "left_out": fit.left_out}


def _key(record: Any) -> tuple[str, ...]:
    return tuple(message["content"] for message in opening(record))


def fit_curve(ends: Tensor, groups: Sequence[Group], of_group: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """`learning_curve` from last hidden states (M, d) of the groups' responses and each group's prompt (G,)."""
    pairs = Pairs(groups, ties=False)
    difference = (ends[pairs.winner] - ends[pairs.loser]).double()
    weight = pairs.weight.double()
    prompt = np.repeat(of_group, [len(counted(group, False)) for group in groups])
    count = len(set(prompt.tolist()))
    if count < FEWEST_PROMPTS:
        raise InputError(
            f"rankings of {count} prompts that prefer something are too few to say what more would buy; "
            f"collect at least {FEWEST_PROMPTS}"
        )
    names = np.array(sorted(set(prompt.tolist())))
    held, sizes = max(1, round(HELD_OUT * count)), list[int]()
    accuracy = [list[float]() for _ in range(SUBSETS)]
    learned = np.zeros(SUBSETS)
    judged = 0
    for split in range(SEEDS):
        drawn = np.random.default_rng([seed, split]).permutation(names)
        test, train = np.isin(prompt, drawn[:held]), drawn[held:]
        sizes = [math.ceil(len(train) * (part + 1) / SUBSETS) for part in range(SUBSETS)]
        judged += int(test.sum())
        for part, size in enumerate(sizes):
            own = np.isin(prompt, train[:size])
            head = _fit(difference[own], weight[own])
            score = difference[test] @ head
            right = (score > 0).double() + 0.5 * (score == 0).double()
            accuracy[part].append(float((right * weight[test]).sum() / weight[test].sum()))
            learned[part] += int(own.sum())
    return {
        "prompts": sizes,
        "comparisons": [round(total / SEEDS) for total in learned],
        "accuracy": accuracy,
        "n": round(judged / SEEDS),
    }


def _fit(difference: Tensor, weight: Tensor) -> Tensor:
    """The head (d,) of least Σ weight · -log σ(head · difference) under a Gaussian prior; differences (C, d) in fp64.

    Each feature is taken to its own scale; the prior makes a typical comparison uncertain by a logit.
    """
    scale = difference.square().mean(0).sqrt().clamp(min=1e-8)
    x = difference / scale
    x = x * (PRIOR_SPREAD / x.square().sum(1).mean().sqrt().clamp(min=1e-12))
    head = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)  # in units of the prior's spread
    optimizer = torch.optim.LBFGS([head], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = (weight * losses.bradley_terry(x @ head)).sum() + head.square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    return head.detach() / scale
