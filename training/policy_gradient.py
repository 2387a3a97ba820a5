"""The mathematics of policy gradients: pure functions of tensors. Shapes: B sequences, T steps, N tokens."""

from __future__ import annotations

import torch
from torch import Tensor


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
