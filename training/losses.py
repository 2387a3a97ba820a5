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


# In DPO's losses `difference` (C,) is (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)): log-probabilities
# summed over the response's tokens, or averaged where the caller normalises by length. β · difference is then a
# difference of rewards as above.


def dpo(difference: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log σ(β d), arXiv:2305.18290, eq. 7; with smoothing conservative DPO (E. Mitchell 2023)."""
    return smoothed(bradley_terry, beta * difference, label_smoothing)


def robust_dpo(difference: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """[(1 - ε) L(d) - ε L(-d)] / (1 - 2ε) with L(d) = -log σ(β d) and ε < ½, arXiv:2403.00409.

    Its expectation over labels of which a share ε is the wrong way round is L of the right ones.
    """
    right, wrong = bradley_terry(beta * difference), bradley_terry(-beta * difference)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo(difference: Tensor, beta: float) -> Tensor:
    """(d - 1 / (2β))², arXiv:2310.12036, eq. 17, where β is called τ. Of sums, as there; some libraries average."""
    return (difference - 1 / (2 * beta)).square()


def hinge(difference: Tensor, beta: float) -> Tensor:
    """max(0, 1 - β d): SLiC's loss (arXiv:2305.10425) of log-ratios to the reference (arXiv:2309.06657)."""
    return torch.relu(1 - beta * difference)


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
