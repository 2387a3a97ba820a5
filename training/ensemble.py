"""How sure a reward model is: a committee of linear heads on its last hidden states, beside its own head.

Each is fitted to a resample of the people's rankings, drawn by prompt with replacement, under a Gaussian prior whose
centre is drawn, too: around the model's own head, so wide that a typical comparison is uncertain by a logit. Where
people said much, all are pulled to the same answer; where they said nothing, each keeps its own draw. With a fixed
centre the heads would agree exactly where nothing is known. Bootstrapped heads with randomised priors:
arXiv:1806.03335; the same as approximate posterior samples: arXiv:1810.05546; ensembles for uncertainty:
arXiv:1612.01474. The adapter is not resampled, so answers that it does not tell apart stay undisputed.

The own head is no member: it is what the others vary around, and one that was trained shortly or on other data would
differ from all of them everywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from data.formats import read_rankings
from data.preferences import opening
from data.records import InputError
from training.batches import encode_rankings
from training.config import RewardConfig
from training.evaluate import trained_with
from training.generate import show_progress
from training.reward import Pairs, counted, pair_losses
from training.reward_model import Score

PRIOR_SPREAD = 1.0
"""Standard deviation of the prior over the difference of a typical comparison, in logits."""


def committee(model: Score, checkpoint: Path | str, head_data: Path | str, count: int, seed: int = 0) -> Tensor:
    """Weights (count, d) of the heads, fitted to the rankings of a file as the checkpoint's own head was."""
    config = trained_with(checkpoint)
    rankings = read_rankings(head_data)
    groups, fit = encode_rankings(model.reader, rankings, config.max_length)
    print(fit.describe("rankings for the heads", config.max_length), file=sys.stderr, flush=True)
    pairs = Pairs(groups, config.ties != "ignore")
    if not len(pairs.winner):
        raise InputError(f"{head_data}: every comparison is a tie, so no head can be fitted; name other --head-data")
    prompts: dict[tuple[str, ...], int] = {}
    prompt = [
        prompts.setdefault(tuple(message["content"] for message in opening(rankings[group.index])), len(prompts))
        for group in groups
        for _ in counted(group, config.ties != "ignore")
    ]
    ends = model.read(groups, lambda hidden: hidden, on_progress=show_progress("answers to learn from read"))
    return fit_heads(ends, pairs, torch.tensor(prompt), model.head.weight[0], count, config, seed)


def fit_heads(
    ends: Tensor,
    pairs: Pairs,
    prompt: Tensor,
    own: Tensor,
    count: int,
    config: RewardConfig | None = None,
    seed: int = 0,
) -> Tensor:
    """Weights (count, d) in fp32 of heads around `own` (d,).

    `ends` (M, d): last hidden states; `pairs` of them; `prompt` (C,): the number of each pair's prompt, 0, 1, ...
    The loss is that of `config`, of which each prompt counts as often as it was drawn.
    """
    config, ends, own = config or RewardConfig(), ends.double().cpu(), own.detach().double().cpu()
    differences = ends[pairs.winner] - ends[pairs.loser]
    spread = PRIOR_SPREAD / float(differences.square().sum(1).mean().sqrt().clamp(min=1e-12))
    random = torch.Generator().manual_seed(seed)
    prompts = int(prompt.max()) + 1
    heads = []
    for _ in range(count):
        drawn = torch.randint(prompts, (prompts,), generator=random).bincount(minlength=prompts)
        centre = own + spread * torch.randn(own.shape, generator=random, dtype=own.dtype)
        heads.append(fit_head(differences, pairs, drawn[prompt] * pairs.weight, centre, spread, config))
    return torch.stack(heads).float()


def fit_head(
    differences: Tensor, pairs: Pairs, weight: Tensor, centre: Tensor, spread: float, config: RewardConfig
) -> Tensor:
    """The head (d,) of least Σ weight · loss + |head - centre|² / (2 spread²); convex in all models of ties."""
    step = torch.zeros_like(centre, requires_grad=True)  # in units of the prior's spread
    at_centre = differences @ centre
    optimizer = torch.optim.LBFGS([step], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        difference = at_centre + spread * (differences @ step)
        total = (weight * pair_losses(config, difference, pairs)).sum() + step.square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    return centre + spread * step.detach()
