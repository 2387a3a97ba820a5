"""How good a checkpoint is: a reward model on held-out preferences, a policy on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.formats import read_prompts, read_rankings
from training.base import Base
from training.batches import Group, Pack, encode_prompts, encode_rankings, per_response
from training.config import RewardConfig
from training.generate import sample_all, score_groups, show_progress
from training.loop import token_log_probs
from training.reward import BradleyTerry, reward_metrics
from training.reward_model import Score
from training.rollout import Sample


def evaluate_reward(base: Base, checkpoint: Path | str, data: Path | str, max_length: int) -> dict[str, Any]:
    """`accuracy`, `nll` (nats), `ece`, `margin` and `n` on the decided comparisons of a file."""
    groups, fit = encode_rankings(base, read_rankings(data), max_length)
    score = Score(base, checkpoint)
    objective = BradleyTerry(base, score.head, RewardConfig())
    with torch.no_grad(), base.using(score.adapter):
        difference, _ = objective.differences(groups)
    return reward_metrics(difference) | {"left_out": fit.left_out}


@torch.no_grad()
def sequence_log_probs(
    base: Base, adapter: str | None, groups: Sequence[Group], temperature: float, tokens_per_forward: int = 768
) -> list[list[float]]:
    """log π(y|x) of every group's responses under an adapter, summed over tokens, in the groups' order."""

    def totals(pack: Pack) -> torch.Tensor:
        hidden = base.hidden(**pack.inputs())[0, pack.predictors]
        return pack.sum_per_response(token_log_probs(base, hidden, pack.targets, temperature)[0])

    with base.using(adapter):
        return per_response(groups, tokens_per_forward, base.device, totals)


def evaluate_policy(
    base: Base,
    adapter: str | None,
    prompts: Sequence[Group],
    *,
    score: Score | None = None,
    num_completions: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[dict[str, float], list[list[Sample]], list[list[float]]]:
    """Sample from a policy and measure it. Returns (metrics, samples, raw scores).

    `objective/kl`: KL(π ‖ base) in nats a response, the mean over samples of log π - log π_base at the sampling
    temperature; `length` in tokens; `score` where a reward model is given.
    """
    samples = sample_all(
        base, [group.prompt for group in prompts], adapter=adapter, num_completions=num_completions,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, on_batch=show_progress("prompts sampled"),
    )  # fmt: skip
    groups = [Group(g.prompt, [s.ids for s in found]) for g, found in zip(prompts, samples, strict=True)]
    flat = [s for found in samples for s in found]
    metrics = {
        "n": float(len(flat)),
        "length": sum(len(s.ids) for s in flat) / len(flat),
        "ended": sum(s.finish_reason == "stop" for s in flat) / len(flat),
    }
    ours = sequence_log_probs(base, adapter, groups, temperature)
    reference = sequence_log_probs(base, None, groups, temperature)
    pairs = [(a, b) for x, y in zip(ours, reference, strict=True) for a, b in zip(x, y, strict=True)]
    metrics["objective/kl"] = sum(a - b for a, b in pairs) / len(pairs)
    found_scores = score_groups(base, score, groups) if score else []
    if score:
        metrics["score"] = sum(map(sum, found_scores)) / len(flat)
    return metrics, samples, found_scores


def evaluate_policy_file(
    base: Base, checkpoint: str | None, data: Path | str, reward_model: str | None, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """`evaluate_policy` on the prompts of a file."""
    groups, fit = encode_prompts(base, read_prompts(data), base.context_length - max_new_tokens)
    metrics, _, _ = evaluate_policy(
        base,
        base.attach(checkpoint) if checkpoint else None,
        groups,
        score=Score(base, reward_model) if reward_model else None,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    return metrics | {"left_out": fit.left_out}
