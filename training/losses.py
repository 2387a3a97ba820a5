"""The mathematics: pure functions of tensors. Shapes: C comparisons, B sequences, T steps, N tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class TokenLogProbs(torch.autograd.Function):
    """log p(target) and, if asked, the entropy, from hidden states through a frozen output layer, chunk by chunk.

    The gradient with respect to the hidden states is formed in the forward, so no (N, V) logits outlive their chunk:
    d log p(y) / d h = (W_y - Σ_v p_v W_v) / t, dH / d h = -Σ_v p_v (log p_v + H) W_v / t, with temperature t.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        want_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        """`hidden` (N, d), `weight` (V, d), `targets` (N,) -> log-probabilities (N,), entropies (N,), in nats, fp32."""
        log_probs = hidden.new_empty(len(targets), dtype=torch.float32)
        entropies = torch.zeros_like(log_probs)
        grad = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        grad_log_prob = torch.empty_like(hidden) if grad else None
        grad_entropy = torch.empty_like(hidden) if grad and want_entropy else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float() / temperature
            all_log_probs = torch.log_softmax(logits, dim=-1)
            del logits
            log_probs[part] = all_log_probs.gather(1, targets[part, None]).squeeze(1)
            if not grad and not want_entropy:
                continue
            p = all_log_probs.exp()
            if grad_log_prob is not None:
                grad_log_prob[part] = (weight[targets[part]] - p.to(weight.dtype) @ weight) / temperature
            if want_entropy:
                entropies[part] = -(p * all_log_probs).sum(-1)
                if grad_entropy is not None:
                    slope = p.mul_(all_log_probs.add_(entropies[part, None])).to(weight.dtype)
                    grad_entropy[part] = -(slope @ weight) / temperature
        ctx.save_for_backward(*(t for t in (grad_log_prob, grad_entropy) if t is not None))
        return log_probs, entropies

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Chain the stored slopes."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        total = grads[0][:, None].to(saved[0].dtype) * saved[0]
        if len(saved) > 1:
            total = total + grads[1][:, None].to(saved[1].dtype) * saved[1]
        return total, None, None, None, None, None, None


# -- preferences ---------------------------------------------------------------------------------------------


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


def dpo(difference: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss of each comparison, arXiv:2305.18290, eq. 7; smoothing: conservative DPO.

    `difference` (C,) = (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)), sums over response tokens.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * difference) - label_smoothing * logsigmoid(-beta * difference)


# -- policy gradient -----------------------------------------------------------------------------------------


def kl_shaped_rewards(score: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Rewards (B, T): -β kl_t at each token, and the score added at the last one. arXiv:2203.02155, eq. 2.

    `score` (B,), `kl` (B, T) = log π_old - log π_ref of the sampled tokens (k1), `lengths` (B,).
    """
    rewards = -beta * kl
    rows = torch.arange(len(score), device=score.device)
    rewards[rows, lengths - 1] += score
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) by generalised advantage estimation, arXiv:1506.02438, eq. 16.

    Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} - V_t, V after the last token is 0; returns = Â + V.
    λ = 1 gives rewards-to-go minus the baseline. `mask` (B, T) is 1 on response tokens, which come first.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        following = values[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the entries where `mask` is 1; 0 elsewhere."""
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def ppo_policy(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """-min(ρ Â, clip(ρ, 1 ± ε) Â) of each token, arXiv:1707.06347, eq. 7. `ratio` ρ = π / π_old."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """½ max((V - R)², (V_clipped - R)²) of each token, V_clipped within old ± clip_range (0: no clipping)."""
    loss = (values - returns).square()
    if clip_range > 0:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        loss = torch.maximum(loss, (clipped - returns).square())
    return 0.5 * loss


def k3(log_ratio: Tensor) -> Tensor:
    """A never negative estimate of KL(π ‖ π_ref): e^{-l} - 1 + l, l = log π - log π_ref of samples of π."""
    return torch.expm1(-log_ratio) + log_ratio


# -- how well a reward model knows ---------------------------------------------------------------------------


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
