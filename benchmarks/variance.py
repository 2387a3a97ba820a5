"""The variance of the policy-gradient estimate on the real model, by its weight: what each step of the derivation buys.

At fixed weights the same prompts are answered again and again. Each repetition gives one estimate of the gradient for
every choice of weight, all from the same samples: the whole return, rewards-to-go, rewards-to-go minus V(s), and
GAE(γ, λ). Its variance is the trace of the covariance over the repetitions. The critic is fitted before, on samples of
its own. The reward is paid token by token, or its sum at the end.

    python -m benchmarks.variance --output docs/variance.png
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.formats import read_prompts
from training import policy_gradient
from training.advantages import Episode, Rollout, advantages_and_returns
from training.base import Base
from training.batches import encode_prompts
from training.chat_template import decode
from training.config import DEFAULT_MODEL, PPOConfig
from training.loop import token_log_probs
from training.models import load_base
from training.packs import Group, packs
from training.ppo import rollout
from training.processes import set_threads

WEIGHTS: dict[str, dict[str, Any]] = {
    "whole return": {"advantage": "return"},
    "rewards-to-go": {"advantage": "rewards-to-go"},
    "minus V(s)": {"advantage": "baseline"},
    "GAE(1, 0.95)": {"advantage": "gae", "lam": 0.95},
}
PLACES = ("at the end", "along the way")
RESAMPLES = 5000


def plain_words(
    prompts: Sequence[Any], completions: Sequence[str], tokens: Sequence[Sequence[str]]
) -> list[list[float]]:
    """A reward along the way, for `--reward-function benchmarks.variance:plain_words`: each letter costs 1."""
    return [[-float(sum(map(str.isalpha, token))) for token in words] for words in tokens]


def main() -> int:
    """Measure, print one JSON object, draw; returns the exit status."""
    parser = argparse.ArgumentParser(description="Variance of the policy gradient, by the weight of each token.")
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    parser.add_argument("--data", default="data/prompts/seed.jsonl")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of one estimate, an answer each")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=40, help="estimates of the gradient")
    parser.add_argument("--warm-up", type=int, default=32, help="answers to each prompt that the critic is fitted on")
    parser.add_argument("--layers", type=int, default=2, help="the last layers, whose LoRA weights the gradient is of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("variance.png"))
    options = parser.parse_args()
    set_threads(options.num_threads)
    torch.manual_seed(options.seed)
    base = load_base(options.base_model)
    config = PPOConfig(
        lora_layers=options.layers, max_new_tokens=options.max_new_tokens, seed=options.seed, batch_size=16
    )
    base.new_adapter("policy", config)
    prompts, _ = encode_prompts(base, read_prompts(options.data)[: options.prompts], 512)
    warm = answers(base, config, prompts, options.warm_up, first_update=1)
    say(f"{sum(len(g.responses) for g in warm)} answers for the critic")
    features, letters, lengths = look(base, warm)
    centre = float(letters.mean())
    spread = float(torch.stack([part.sum() for part in (letters - centre).split(lengths)]).std())
    critics, explained = {}, {}
    for place in PLACES:
        paid = [pay((part - centre) / spread, place) for part in letters.split(lengths)]
        targets = torch.cat([part.flip(0).cumsum(0).flip(0) for part in paid])
        critics[place], explained[place] = fit(features, targets, lengths)
        say(f"critic, reward {place}: explains {explained[place]:.3f} of the variance of returns it was not fitted on")
    found = gradients(base, config, prompts, options.repetitions, critics, centre, spread)
    result = {
        "model": base.name, "dtype": str(base.model.dtype).removeprefix("torch."),
        "prompts": len(prompts), "max_new_tokens": options.max_new_tokens,
        "repetitions": options.repetitions, "warm_up_answers": sum(len(g.responses) for g in warm),
        "parameters": sum(p.numel() for p in base.adapter_parameters("policy")),
        "explained_variance": explained,
        "variance": {place: compare(found[place], options.seed) for place in PLACES},
    }  # fmt: skip
    draw(result, options.output)
    print(json.dumps(result, indent=1))
    return 0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def answers(base: Base, config: PPOConfig, prompts: Sequence[Group], count: int, first_update: int) -> list[Group]:
    """`count` sampled answers to each prompt, as groups, in the order of the prompts."""
    found = [Group(p.prompt, [], index=p.index) for p in prompts]
    at_once = PPOConfig(**vars(config) | {"samples_per_prompt": 8, "minibatches": 1})
    for update in range(first_update, first_update + -(-count // 8)):
        for group, samples in zip(found, rollout(base, at_once, prompts, update), strict=True):
            group.responses = [*group.responses, *(s.ids for s in samples)][:count]
    return found


def token_letters(base: Base, groups: Sequence[Group]) -> list[Tensor]:
    """The unscaled reward of each token, one tensor a response."""
    responses = [ids for group in groups for ids in group.responses]
    tokens = [[str(base.tokenizer.decode([i])) for i in ids] for ids in responses]
    texts = [decode(base, ids) for ids in responses]
    return [torch.tensor(row) for row in plain_words([None] * len(texts), texts, tokens)]


def pay(rewards: Tensor, place: str) -> Tensor:
    """Rewards (T,) where they are earned, or all of them at the last token."""
    if place == "along the way":
        return rewards
    total = torch.zeros_like(rewards)
    total[-1] = rewards.sum()
    return total


# -- the critic --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def look(base: Base, groups: Sequence[Group]) -> tuple[Tensor, Tensor, list[int]]:
    """(hidden states before each token (N, d) in fp32, their unscaled rewards (N,), lengths of the answers)."""
    features, letters, lengths = [], [], []
    for group in groups:
        for start in range(0, len(group.responses), 8):
            part = Group(group.prompt, group.responses[start : start + 8], index=group.index)
            (row,) = packs([part], 2048, base.device)
            with base.using("policy"):
                features.append(base.read(row)[row.predictors].float())
            letters += token_letters(base, [part])
            lengths += [len(ids) for ids in part.responses]
    return torch.cat(features), torch.cat(letters), lengths


def fit(features: Tensor, targets: Tensor, lengths: list[int]) -> tuple[torch.nn.Linear, float]:
    """(the linear head of least squared error, the share of variance it explains on every fifth answer left out).

    The ridge is the one that explains most of those; the head that is returned is fitted to all.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    out = owner % 5 == 0
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    y = targets.double()

    def solve(rows: Tensor, ridge: float) -> Tensor:
        penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0
        return torch.linalg.solve(x[rows].T @ x[rows] + penalty, x[rows].T @ y[rows])

    def explains(ridge: float) -> float:
        return float(1 - (y[out] - x[out] @ solve(~out, ridge)).var() / y[out].var())

    ridge = max((10.0**power for power in range(0, 8)), key=explains)
    weights = solve(torch.ones_like(out), ridge).float()
    head = torch.nn.Linear(features.shape[1], 1).requires_grad_(False)
    head.weight.copy_(weights[None, :-1])
    head.bias.copy_(weights[-1:])
    return head, explains(ridge)


# -- the gradient ------------------------------------------------------------------------------------------------------


def gradients(
    base: Base,
    config: PPOConfig,
    prompts: Sequence[Group],
    repetitions: int,
    critics: dict[str, torch.nn.Linear],
    centre: float,
    spread: float,
) -> dict[str, dict[str, Tensor]]:
    """For each place of the reward and each weight the estimates (repetitions, parameters)."""
    base.set_trainable("policy")
    parameters = base.adapter_parameters("policy")
    parameters = [p for p in parameters if p.requires_grad]
    played = answers(base, config, prompts, repetitions, first_update=10_000)
    configs = {name: PPOConfig(**settings) for name, settings in WEIGHTS.items()}
    found: dict[str, dict[str, list[Tensor]]] = {place: {name: [] for name in WEIGHTS} for place in PLACES}
    for number in range(repetitions):
        groups = [Group(g.prompt, [g.responses[number]], index=g.index) for g in played]
        totals = {(place, name): torch.zeros(0) for place in PLACES for name in WEIGHTS}
        for row in packs(groups, 1024, base.device):
            with base.using("policy"):
                hidden = base.read(row)[row.predictors]
                log_probs, _ = token_log_probs(base, hidden, row.targets)
            lengths = [len(group.responses[0]) for group in row.groups]
            letters = token_letters(base, row.groups)
            for place in PLACES:
                values = critics[place](hidden.detach().float()).squeeze(-1).split(lengths)
                nothing = torch.zeros(len(row.targets)).split(lengths)
                rewards = [pay((part - centre) / spread, place) for part in letters]
                episodes = Rollout(
                    [Episode(z, z, v, z, r, True) for z, v, r in zip(nothing, values, rewards, strict=True)],
                    base.device,
                )
                for name, weight in configs.items():
                    table, _ = advantages_and_returns(episodes.rewards, episodes, weight)
                    weights = episodes.tokens(table, torch.arange(len(lengths)))
                    loss = policy_gradient.reinforce(log_probs, weights).sum() / len(groups)
                    parts = torch.autograd.grad(loss, parameters, retain_graph=True)
                    flat = torch.cat([part.reshape(-1) for part in parts])
                    totals[place, name] = flat + totals[place, name] if len(totals[place, name]) else flat
        for (place, name), total in totals.items():
            found[place][name].append(total)
        if (number + 1) % 8 == 0:
            say(f"{number + 1} of {repetitions} gradients")
    return {place: {name: torch.stack(rows) for name, rows in by.items()} for place, by in found.items()}


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare(estimates: dict[str, Tensor], seed: int) -> dict[str, dict[str, Any]]:
    """For each weight its variance over the whole return's and over that of the weight before it, with 95% intervals.

    Percentile bootstrap over the repetitions, the same resamples for all weights. `cosine` is that of the mean gradient
    to the whole return's: a biased weight may point elsewhere.
    """
    draws = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    first = next(iter(estimates.values())).double()
    count = len(first)
    weights = draws.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    spreads: list[np.ndarray] = []
    for name, rows in estimates.items():
        gram = (rows.double() @ rows.double().T).numpy()
        resampled = (weights @ gram.diagonal() - ((weights @ gram) * weights).sum(1) / count) / (count - 1)
        exact = (gram.trace() - gram.sum() / count) / (count - 1)
        spreads.append(np.concatenate([[exact], resampled]))
        mean = rows.double().mean(0)
        found[name] = {
            "variance": exact,
            "of whole return": ratio(spreads[-1], spreads[0]),
            "of the one before": ratio(spreads[-1], spreads[max(0, len(spreads) - 2)]),
            "squared norm of the mean": float(mean @ mean) - exact / count,
            "cosine": float(torch.cosine_similarity(mean, first.mean(0), dim=0)),
        }
    return found


def ratio(above: np.ndarray, below: np.ndarray) -> list[float]:
    """[ratio, low, high]: the first entries are the measured ones, the rest resampled."""
    values = above / below
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return [round(float(v), 4) for v in (values[0], low, high)]


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of the variances, relative to the whole return's, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, place in zip(axes, PLACES, strict=True):
        rows = [result["variance"][place][name]["of whole return"] for name in WEIGHTS]
        middle = [row[0] for row in rows]
        errors = [[row[0] - row[1] for row in rows], [row[2] - row[0] for row in rows]]
        axis.bar(list(WEIGHTS), middle, yerr=errors, capsize=4, color="#4c72b0")
        axis.set(title=f"Reward {place}")
        axis.tick_params(axis="x", labelrotation=20)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("variance of the gradient\n(whole return = 1)")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
