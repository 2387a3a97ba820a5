"""The mathematics of policy gradients: pure functions of tensors. Shapes: B episodes, T steps, N tokens, G groups of K.

`mask` (B, T) is 1 on the tokens of a response, which come first. `log_ratio` is log π - log π_ref of sampled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

# -- rewards and the KL ------------------------------------------------------------------------------------------------


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """KL(π ‖ π_ref) from samples of π, one number a token in nats: k1, k2 or k3 (Schulman 2020, "Approximating KL").

    k1 = l is unbiased but noisy, k2 = l²/2 biased and quiet, k3 = e^{-l} - 1 + l unbiased and never negative.
    """
    if estimator == "k1":
        return log_ratio
    return 0.5 * log_ratio.square() if estimator == "k2" else k3(log_ratio)


def k3(log_ratio: Tensor) -> Tensor:
    """A never negative estimate of KL(π ‖ π_ref): e^{-l} - 1 + l, l = log π - log π_ref of samples of π."""
    return torch.expm1(-log_ratio) + log_ratio


def kl_loss(log_ratio: Tensor, ratio: Tensor, estimator: str) -> Tensor:
    """A loss for each token whose expected gradient is that of KL(π ‖ π_ref); `ratio` ρ = π / π_old (arXiv:2510.01555).

    k2: sg(ρ) l²/2, because E_π[l ∇log π] = ∇KL. k3: ρ (e^{-l} - 1 + l), differentiated through ρ too; without ρ its
    gradient would be that of KL(π_ref ‖ π). k1 is none: E_π[∇l] = E_π[∇log π] = 0.
    """
    if estimator == "k2":
        return ratio.detach() * 0.5 * log_ratio.square()
    if estimator == "k3":
        return ratio * k3(log_ratio)
    raise ValueError(f"{estimator} has no gradient in expectation and cannot be a loss; use k2 or k3")


def at_last_token(score: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Rewards (B, T = width) with `score` (B,) at the last of each row's `lengths` (B,) tokens and 0 before."""
    rewards = torch.zeros(len(score), width, dtype=score.dtype, device=score.device)
    return rewards.scatter_(1, lengths[:, None] - 1, score[:, None])


def kl_shaped_rewards(score: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Rewards (B, T): the score less β kl_t at each token. arXiv:2203.02155, eq. 2.

    `score` (B,) goes to the last token; a `score` (B, T) is a reward that comes along the way. `kl` (B, T), `lengths`
    (B,).
    """
    if score.dim() == 1:
        score = at_last_token(score, lengths, kl.shape[1])
    return score - beta * kl


def adapt_beta(beta: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """β for the next update: β (1 + e n / h), e = clip(KL / target - 1, ±0.2). arXiv:1909.08593, section 2.2.

    `kl` and `target` are nats an episode; the paper's K_β is n / h, episodes of an update over the horizon.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


# -- advantages --------------------------------------------------------------------------------------------------------


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = Σ_l γ^l r_{t+l} (B, T), 0 off the mask."""
    found = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = (rewards[:, t] + gamma * running) * mask[:, t]
        found[:, t] = running
    return found


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) by generalised advantage estimation, arXiv:1506.02438, eq. 16.

    Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} - V_t, V after the last token is 0; returns = Â + V.
    λ = 1 gives rewards-to-go minus the baseline.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages = rewards_to_go((rewards + gamma * following - values) * mask, mask, gamma * lam)
    return advantages, advantages + values


def leave_one_out(returns: Tensor) -> Tensor:
    """Each return (G, K) minus the mean of the others in its group: RLOO, arXiv:2402.14740, eq. 8."""
    others = (returns.sum(1, keepdim=True) - returns) / (returns.shape[1] - 1)
    return returns - others


def group_normalised(returns: Tensor) -> Tensor:
    """Each return (G, K) in standard deviations (K - 1) from its group's mean: GRPO, arXiv:2402.03300, section 4.1.2.

    1e-4 is added to the deviation, so a group that agrees teaches nothing.
    """
    return (returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-4)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the entries where `mask` is 1; 0 elsewhere."""
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


# -- losses, one number a token ----------------------------------------------------------------------------------------


def ppo_policy(ratio: Tensor, advantages: Tensor, clip_range: float, dual_clip: float = 0.0) -> Tensor:
    """-min(ρ Â, clip(ρ, 1 ± ε) Â) of each token, arXiv:1707.06347, eq. 7. `ratio` ρ = π / π_old.

    A `dual_clip` c > 1 bounds it by -c Â where Â < 0 (arXiv:1912.09729, eq. 5), where a huge ρ would rule the batch.
    """
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    if dual_clip > 0:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    return -gain


def importance(ratio: Tensor, advantages: Tensor) -> Tensor:
    """-ρ Â of each token: the surrogate before clipping, arXiv:1707.06347, eq. 6."""
    return -ratio * advantages


def reinforce(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-Â log π of each token (Williams 1992): right for samples of this very policy only."""
    return -advantages * log_probs


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """½ max((V - R)², (V_clipped - R)²) of each token, V_clipped within old ± clip_range (0: no clipping)."""
    loss = (values - returns).square()
    if clip_range > 0:
        loss = torch.maximum(loss, (_clipped_value(values, old_values, clip_range) - returns).square())
    return 0.5 * loss


def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Where the clipped square of `ppo_value` is the larger one, so that nothing is learned (bool)."""
    if not clip_range:
        return torch.zeros_like(values, dtype=torch.bool)
    clipped = _clipped_value(values, old_values, clip_range)
    beyond = (values - old_values).abs() > clip_range  # within the range `clipped` is the value but for its rounding
    return beyond & ((clipped - returns).square() > (values - returns).square())


def _clipped_value(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    return old_values + (values - old_values).clamp(-clip_range, clip_range)
