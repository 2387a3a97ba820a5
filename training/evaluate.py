"""How good a checkpoint is: a reward model on held-out preferences, a policy on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.formats import read_prompts, read_rankings
from training.base import Base
from training.batches import encode_prompts, encode_rankings
from training.config import RewardConfig
from training.generate import sample_all, show_progress
from training.knobs import from_dict, knobs
from training.loop import token_log_probs
from training.packs import Group, Pack, per_response
from training.reward import reward_metrics
from training.reward_model import RewardModel, in_words_of, is_checkpoint, load_reward_model
from training.rollout import Sample
from training.run_folder import read_manifest


def evaluate_reward(
    model: RewardModel, data: Path | str, max_length: int, config: RewardConfig | None = None
) -> dict[str, Any]:
    """`accuracy`, `nll` (nats), `ece`, `margin`, `n` and the rest of `reward_metrics` on the rankings of a file."""
    groups, fit = encode_rankings(model.reader, read_rankings(data), max_length)
    return reward_metrics(groups, model.score(groups), config) | {"left_out": fit.left_out}


def trained_with(checkpoint: Path | str) -> RewardConfig:
    """How a reward model was trained: its `loss` is judged by its own likelihood. The defaults where nobody says."""
    if not is_checkpoint(checkpoint):
        return RewardConfig()
    stated, known = read_manifest(checkpoint)["config"], {knob.name for knob in knobs(RewardConfig)}
    return from_dict(RewardConfig, {name: value for name, value in stated.items() if name in known})


def best_of(scores: Sequence[float], n: int) -> float:
    """Expected score of the best of n draws, from N ≥ n samples, unbiased: the mean of the maximum over all subsets.

    The i-th smallest is the best of C(i-1, n-1) of the C(N, n) subsets (arXiv:2112.09332, appendix I).
    """
    ordered = sorted(scores)
    return sum(value * math.comb(i, n - 1) for i, value in enumerate(ordered)) / math.comb(len(ordered), n)


def best_of_kl(n: int) -> float:
    """KL(best-of-n ‖ policy) in nats: log n - (n-1)/n, arXiv:2009.01325, appendix G.3; an upper bound where samples of
    one prompt can coincide (arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_metrics(scores: Sequence[Sequence[float]], most: int) -> dict[str, float]:
    """Mean over prompts of the best score of n, and the KL that implies, for n = 1, 2, 4, ... and `most`."""
    sizes = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
    return {
        name: value
        for n in sizes
        for name, value in (
            (f"best-of-{n}/score", sum(best_of(found, n) for found in scores) / len(scores)),
            (f"best-of-{n}/kl", best_of_kl(n)),
        )
    }


@torch.no_grad()
def sequence_log_probs(
    base: Base, adapter: str | None, groups: Sequence[Group], temperature: float, tokens_per_forward: int = 768
) -> list[list[float]]:
    """log π(y|x) of every group's responses under an adapter, summed over tokens, in the groups' order."""

    def totals(pack: Pack) -> torch.Tensor:
        hidden = base.read(pack)[pack.predictors]
        return pack.sum_per_response(token_log_probs(base, hidden, pack.targets, temperature)[0])

    with base.using(adapter):
        return per_response(groups, tokens_per_forward, base.device, totals)


def evaluate_policy(
    base: Base,
    adapter: str | None,
    prompts: Sequence[Group],
    *,
    score: Callable[[Sequence[Group]], list[list[float]]] | None = None,
    num_completions: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[dict[str, float], list[list[Sample]], list[list[float]]]:
    """Sample from a policy and measure it. Returns (metrics, samples, raw scores).

    `objective/kl`: KL(π ‖ base) in nats a response, the mean over samples of log π - log π_base at the sampling
    temperature; `length` in tokens; `score` where scores of sampled groups are asked for.
    """
    samples = sample_all(
        base, [group.prompt for group in prompts], adapter=adapter, num_completions=num_completions,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, on_batch=show_progress("prompts sampled"),
    )  # fmt: skip
    groups = [Group(g.prompt, [s.ids for s in found], index=g.index) for g, found in zip(prompts, samples, strict=True)]
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
    found_scores = score(groups) if score else []
    if score:
        metrics["score"] = sum(map(sum, found_scores)) / len(flat)
    return metrics, samples, found_scores


def evaluate_policy_file(
    base: Base,
    checkpoint: str | None,
    data: Path | str,
    reward_model: str | None,
    max_new_tokens: int,
    seed: int,
    num_completions: int = 1,
) -> dict[str, Any]:
    """`evaluate_policy` on the prompts of a file; with a reward model also best-of-n from the same samples."""
    prompts = read_prompts(data)
    groups, fit = encode_prompts(base, prompts, base.context_length - max_new_tokens)
    model = load_reward_model(base, reward_model) if reward_model else None
    conversations = [prompt.messages for prompt in prompts]
    metrics, _, found = evaluate_policy(
        base,
        base.attach(checkpoint) if checkpoint else None,
        groups,
        score=(lambda sampled: model.score(in_words_of(model, base, sampled, conversations))) if model else None,
        num_completions=num_completions,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if found and num_completions > 1:
        metrics |= best_of_metrics(found, num_completions)
    return metrics | {"left_out": fit.left_out}
