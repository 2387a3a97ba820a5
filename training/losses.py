"""The mathematics of preferences: pure functions of tensors. Shapes: C comparisons, M completions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(difference: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log P(winner ≻ loser) = -log σ(r_w - r_l - m), elementwise. Bradley & Terry 1952; margin: arXiv:2307.09288."""
    return -logsigmoid(difference - margin)


def half_win(difference: Tensor) -> Tensor:
    """A tie as half a win each way: -½ log σ(d) - ½ log σ(-d); its minimum log 2 is at d = 0."""
    return -0.5 * (logsigmoid(difference) + logsigmoid(-difference))


def rao_kupper_win(difference: Tensor, tau: float) -> Tensor:
    """-log P(i ≻ j) = -log σ(d - τ). Rao & Kupper 1967, with threshold θ = e^τ."""
    return -logsigmoid(difference - tau)


def rao_kupper_tie(difference: Tensor, tau: float) -> Tensor:
    """-log P(tie) = -log[(e^{2τ} - 1) σ(d - τ) σ(-d - τ)]. Rao & Kupper 1967; the three outcomes sum to 1."""
    return -(math.log(math.expm1(2 * tau)) + logsigmoid(difference - tau) + logsigmoid(-difference - tau))


def davidson_win(difference: Tensor, nu: float) -> Tensor:
    """-log P(i ≻ j) = -log[e^{d/2} / (ν + e^{d/2} + e^{-d/2})]. Davidson 1970; ν → 0 is Bradley-Terry."""
    return _davidson_total(difference, nu) - difference / 2


def davidson_tie(difference: Tensor, nu: float) -> Tensor:
    """-log P(tie) = -log[ν / (ν + e^{d/2} + e^{-d/2})]. Davidson 1970; the three outcomes sum to 1."""
    return _davidson_total(difference, nu) - math.log(nu)


def _davidson_total(difference: Tensor, nu: float) -> Tensor:
    half = difference / 2
    return torch.stack([torch.full_like(half, math.log(nu)), half, -half]).logsumexp(0)


def smoothed(loss: Callable[[Tensor], Tensor], difference: Tensor, label_smoothing: float) -> Tensor:
    """(1 - ε) loss(d) + ε loss(-d): the expected loss where a share ε of the labels is the wrong way round."""
    if not label_smoothing:
        return loss(difference)
    return (1 - label_smoothing) * loss(difference) + label_smoothing * loss(-difference)


def plackett_luce(score: Tensor, alternatives: Tensor) -> Tensor:
    """-log P(i is chosen from its alternatives) = log Σ_{j ∈ A_i} e^{r_j} - r_i, for each of the completions.

    `score` (M,); `alternatives` (M, M), True at [i, j] where j ∈ A_i; i belongs to A_i. With A_i the completions
    ranked i or lower, the sum over i is the negative log-likelihood of the ranking: Luce 1959, Plackett 1975.
    """
    return score.masked_fill(~alternatives, -torch.inf).logsumexp(-1) - score


def dpo(difference: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss of each comparison, arXiv:2305.18290, eq. 7; smoothing: conservative DPO.

    `difference` (C,) = (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)), sums over response tokens.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * difference) - label_smoothing * logsigmoid(-beta * difference)


def calibration_error(difference: Tensor, bins: int = 10) -> float:
    """Expected calibration error of P(winner) = σ(d) over equal bins of the confidence σ(|d|), in [0, 1].

    `difference` (C,): score of the preferred minus score of the other. arXiv:1706.04599, eq. 3.
    """
    confidence = torch.sigmoid(difference.abs())
    correct = (difference > 0).float()
    bucket = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for number in range(bins):
        inside = bucket == number
        if inside.any():
            error += float(inside.float().mean() * (confidence[inside].mean() - correct[inside].mean()).abs())
    return error
