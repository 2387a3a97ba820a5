"""From rewards to advantages: what the old policy said in one update, and what its episodes are worth.

The tables of a rollout hold ALL episodes of the update in every process, in the order of the prompts: means, deviations
and running statistics are then the same whatever the packing and however many processes share the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training import policy_gradient
from training.config import PPOConfig


class Episode(NamedTuple):
    """One answer of T tokens: a number a token, on the CPU."""

    log_probs: Tensor  # log π_old
    reference: Tensor  # log π_ref
    values: Tensor  # V_old
    entropies: Tensor
    rewards: Tensor  # raw: before normalisation and KL
    ended: bool  # came to its end token


class Rollout:
    """Tables (B, T) of an update's episodes, `samples_per_prompt` rows a prompt; 0 off the mask."""

    def __init__(self, episodes: Sequence[Episode], device: torch.device) -> None:
        def table(name: str) -> Tensor:
            return pad_sequence([getattr(e, name) for e in episodes], batch_first=True).to(device)

        self.log_probs, self.reference, self.values = table("log_probs"), table("reference"), table("values")
        self.entropies, self.rewards = table("entropies"), table("rewards")
        self.lengths = torch.tensor([len(e.log_probs) for e in episodes], device=device)
        self.ended = torch.tensor([float(e.ended) for e in episodes], device=device)
        self.here = torch.arange(self.rewards.shape[1], device=device) < self.lengths[:, None]  # (B, T) bool
        self.mask = self.here.float()
        self.advantages = torch.zeros_like(self.values)
        self.returns = torch.zeros_like(self.values)

    @property
    def scores(self) -> Tensor:
        """(B,) raw reward of each episode."""
        return self.rewards.sum(1)

    def tokens(self, table: Tensor, rows: Tensor) -> Tensor:
        """The entries (N,) of a table (B, T) that are tokens of the episodes `rows` (M,), one episode after another."""
        return table[rows][self.here[rows]]


@dataclass
class Running:
    """What one update hands to the next beside the weights; part of a checkpoint's state."""

    beta: float
    count: int = 0  # scores so far, their mean, and their summed squared distance from it
    mean: float = 0.0
    squares: float = 0.0

    def see(self, scores: Tensor) -> None:
        """Take scores (B,) into the running mean and deviation (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        values = scores.double()
        new, mean = len(values), float(values.mean())
        total, shift = self.count + new, mean - self.mean
        self.squares += float((values - mean).square().sum()) + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.count = total

    @property
    def std(self) -> float:
        """Deviation of the scores so far; 1 where they do not differ."""
        found = math.sqrt(self.squares / max(1, self.count - 1))
        return found if found > 1e-6 else 1.0

    def state(self) -> dict[str, Any]:
        """Numbers for the checkpoint."""
        return dict(vars(self))


def shaped_rewards(rollout: Rollout, config: PPOConfig, running: Running, mean: float, std: float) -> Tensor:
    """Rewards (B, T) as they are learned from: normalised by `mean` and `std`, clipped, less penalty and KL."""
    if config.normalise_rewards == "running":
        running.see(rollout.scores)
        mean, std = running.mean, running.std
    elif config.normalise_rewards == "none":
        mean, std = 0.0, 1.0
    width = rollout.rewards.shape[1]
    centre = torch.full_like(rollout.ended, mean)  # the mean of whole scores is taken off once, at the end
    rewards = (rollout.rewards - policy_gradient.at_last_token(centre, rollout.lengths, width)) / std
    if config.reward_clip:
        rewards = rewards.clamp(-config.reward_clip, config.reward_clip)
    penalty = config.missing_eos_penalty * (1 - rollout.ended)
    rewards = rewards - policy_gradient.at_last_token(penalty, rollout.lengths, width)
    if config.kl_placement == "loss":
        return rewards
    kl = policy_gradient.kl_estimate(rollout.log_probs - rollout.reference, config.kl_estimator)
    return policy_gradient.kl_shaped_rewards(rewards, kl, rollout.lengths, running.beta)


def advantages_and_returns(rewards: Tensor, rollout: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """(weight of each token's gradient, what the critic should have said), both (B, T), before whitening."""
    mask = rollout.mask
    if config.advantage == "gae":
        return policy_gradient.gae(rewards, rollout.values, mask, config.gamma, config.lam)
    to_go = policy_gradient.rewards_to_go(rewards, mask, config.gamma)
    if config.advantage == "rewards-to-go":
        return to_go, to_go
    if config.advantage == "baseline" and config.baseline == "value":
        return to_go - rollout.values * mask, to_go
    whole = to_go[:, 0]
    if config.advantage == "baseline":
        group = whole.view(-1, config.samples_per_prompt)
        compare = {"leave-one-out": policy_gradient.leave_one_out, "group-normalised": policy_gradient.group_normalised}
        whole = compare[config.baseline](group).view(-1)
    return whole[:, None] * mask, to_go


def estimate_advantages(
    rollout: Rollout, config: PPOConfig, running: Running, score_mean: float, score_std: float
) -> dict[str, float]:
    """Fill in the rollout's advantages and returns, and adapt β for the next update; returns the rollout's metrics."""
    rewards = shaped_rewards(rollout, config, running, score_mean, score_std)
    advantages, returns = advantages_and_returns(rewards, rollout, config)
    if config.whiten_advantages:
        advantages = policy_gradient.whiten(advantages, rollout.mask)
    rollout.advantages, rollout.returns = advantages, returns
    metrics = rollout_metrics(rollout) | {
        "objective/rlhf_reward": float(rewards.sum(1).mean()),
        "objective/beta": running.beta,
    }
    if config.uses_critic:
        values, targets = rollout.values[rollout.here], returns[rollout.here]
        variance = float(targets.var()) if len(targets) > 1 else 0.0
        metrics["val/mean"] = float(values.mean())
        metrics["val/explained_variance"] = float(1 - (targets - values).var() / variance) if variance > 0 else 0.0
    if config.kl_target:
        kl = metrics["objective/kl"]
        running.beta = policy_gradient.adapt_beta(running.beta, kl, config.kl_target, len(rewards), config.kl_horizon)
    return metrics


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over episodes (over tokens for the entropy): raw score, KL in nats an episode, length, how many ended."""
    log_ratio = (rollout.log_probs - rollout.reference) * rollout.mask
    return {
        "objective/score": float(rollout.scores.mean()),
        "objective/kl": float(log_ratio.sum(1).mean()),
        "objective/kl_k3": float(policy_gradient.k3(log_ratio).sum(1).mean()),
        "objective/entropy": float((rollout.entropies * rollout.mask).sum() / rollout.mask.sum()),
        "response/length": float(rollout.lengths.float().mean()),
        "response/ended": float(rollout.ended.mean()),
    }
