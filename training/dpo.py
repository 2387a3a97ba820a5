"""Direct preference optimisation, arXiv:2305.18290: the policy learns from the preferences, with no reward model.

Its implicit reward is r(x, y) = β (log π(y|x) - log π_ref(y|x)); the reference is the base with the adapter off, or the
frozen checkpoint that the policy starts from. Everything a reward model can be taught of pairs, ties included, can so
be taught to the policy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.formats import read_rankings
from data.records import InputError
from training import losses, processes
from training.base import Base
from training.batches import encode_rankings
from training.config import DPOConfig
from training.log_probs import kl_per_token
from training.loop import Tally, fit, hold_out, load_policy, means, reference_adapter, token_log_probs
from training.packs import Group, Pack, packs
from training.reference import ReferenceLogProbs, cache_file
from training.reward import Pairs, counted, outcome_losses, total_weight
from training.rollout import sample, uniforms
from training.run import Run
from training.samples import Samples


def pair_losses(config: DPOConfig, difference: Tensor, tie: Tensor) -> Tensor:
    """Loss (C,) of each comparison from its difference of log-ratios (C,), chosen minus rejected; `tie` (C,) is bool.

    With a model of ties the reward model's likelihoods at the difference of implicit rewards, arXiv:2409.17431.
    """
    beta, smoothing = config.beta, config.label_smoothing
    if config.loss == "robust":
        return losses.robust_dpo(difference, beta, smoothing)
    if config.loss == "ipo":
        return losses.ipo(difference, beta)
    if config.loss == "hinge":
        return losses.hinge(difference, beta)
    if config.ties == "ignore":
        return losses.dpo(difference, beta, smoothing)
    won, tied = outcome_losses(config)
    return torch.where(tie, tied(beta * difference), losses.smoothed(won, beta * difference, smoothing))


class DirectPreference:
    """DPO over all comparisons of each ranking; a ranking is one element of the batch."""

    def __init__(
        self, base: Base, config: DPOConfig, reference: str | None, known: ReferenceLogProbs | None = None
    ) -> None:
        self.base, self.config, self.reference = base, config, reference
        self.known = known or ReferenceLogProbs()
        self.ties = config.ties != "ignore"

    def denominator(self, groups: Sequence[Group]) -> float:
        """Weight of the rankings that say anything."""
        return total_weight(groups, self.ties)

    def log_probs(self, pack: Pack) -> Tensor:
        """log π(y|x) (M,), summed over each response's tokens, under the active adapter."""
        hidden = self.base.read(pack)[pack.predictors]
        return pack.sum_per_response(token_log_probs(self.base, hidden, pack.targets)[0])

    def reference_log_probs(self, pack: Pack) -> Tensor:
        """log π_ref(y|x) (M,)."""
        with torch.no_grad(), self.base.using(self.reference):
            return self.known.of(pack, self.log_probs)

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """Sum over the pack's rankings of the weighted mean over their comparisons."""
        log_probs, reference = self.log_probs(pack), self.reference_log_probs(pack)
        length = pack.sum_per_response(torch.ones_like(pack.targets, dtype=torch.float32))
        log_ratio = (log_probs - reference) / (length if self.config.length_normalised else 1)
        pairs = Pairs(pack.groups, self.ties, log_ratio.device)
        difference = log_ratio[pairs.winner] - log_ratio[pairs.loser]
        loss = pair_losses(self.config, difference, pairs.tie)
        imitation = -(log_probs / length)[pairs.winner].masked_fill(pairs.tie, 0)  # arXiv:2404.19733, eq. 1
        if self.config.sft_coefficient:
            loss = loss + self.config.sft_coefficient * imitation
        with torch.no_grad():
            reward, won, n = self.config.beta * log_ratio, pairs.winner[~pairs.tie], int((~pairs.tie).sum())
            chosen, rejected = reward[won], reward[pairs.loser[~pairs.tie]]
            tied = self.config.beta * difference[pairs.tie].abs()
            tally = {
                "rewards/accuracies": (float((chosen > rejected).sum()), n),
                "rewards/margins": (float((chosen - rejected).sum()), n),
                "rewards/chosen": (float(chosen.sum()), n),
                "rewards/rejected": (float(rejected.sum()), n),
                "rewards/tie_margins": (float(tied.sum()), len(tied)),
                "logps/chosen": (float(log_probs[won].sum()), n),
                "logps/rejected": (float(log_probs[pairs.loser[~pairs.tie]].sum()), n),
                "nll_loss": (float(imitation.sum()), n),
            }
        return (loss * pairs.weight).sum(), tally

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """The loss and the same metrics on held-out rankings, and how far the policy has gone from the reference."""
        tallies: list[Tally] = []
        for pack in packs(processes.share(groups), self.config.tokens_per_forward, self.base.device):
            loss, tally = self.loss(pack)
            weight = sum(group.weight for group in pack.groups if counted(group, self.ties))
            tallies.append(dict(tally) | {"loss": (float(loss), weight)})
        decided = sum(len(counted(group, ties=False)) for group in groups)
        return means(processes.gather(tallies)) | {"n": float(decided)} | self.kl(groups)

    def kl(self, groups: Sequence[Group]) -> dict[str, float]:
        """KL(π ‖ π_ref) in nats a response of at most `kl_max_new_tokens` tokens, over the first held-out prompts.

        One answer is sampled for each, with the same random numbers every time; along it the KL of each token's
        distribution is summed exactly, which is unbiased, never negative and varies less than the log-ratio of the
        sampled tokens (arXiv:2504.10637).
        """
        longest = self.config.kl_max_new_tokens
        fitting = (tuple(g.prompt) for g in groups if len(g.prompt) + longest <= self.base.context_length)
        prompts = list(enumerate(dict.fromkeys(fitting)))[: self.config.kl_prompts]
        mine, total = processes.share(prompts), 0.0
        if mine:
            random = np.stack([uniforms(self.config.seed, 0, i, 0, longest)[None] for i, _ in mine])
            found = sample(self.base, [prompt for _, prompt in mine], random, adapter="policy")
            answered = [Group(prompt, [answer.ids]) for (_, prompt), (answer,) in zip(mine, found, strict=True)]
            for pack in packs(answered, self.config.tokens_per_forward, self.base.device):
                policy = self.base.read(pack)[pack.predictors]
                with self.base.using(self.reference):
                    reference = self.base.read(pack)[pack.predictors]
                total += float(kl_per_token(self.base.logits, policy, reference).sum())
        return {"kl": processes.add_up({"kl": total})["kl"] / len(prompts)} if prompts else {}

    def state(self) -> dict[str, Any]:
        """The reference log-probabilities that any process has met."""
        return {"remembered": self.known.everybodys()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.known.known |= state["remembered"]


def train(config: DPOConfig, resume: bool = False) -> dict[str, Any]:
    """Run DPO; returns the result that ends the command's output."""
    with Run(config, "dpo", resume) as run:
        rankings, held_out = hold_out(config, read_rankings)
        base, state = load_policy(run, config)
        groups, fitted = encode_rankings(base, rankings, config.max_length, run.say)
        run.say(fitted.describe("rankings", config.max_length))
        ties = sum(c.tie for group in groups for c in group.comparisons)
        if ties and config.ties == "ignore":
            run.say(f"{ties} ties are passed over; --ties davidson or rao-kupper learns from them too")
            if all(c.tie for group in groups for c in group.comparisons):
                raise InputError(f"{config.data}: every comparison is a tie; set ties to davidson or rao-kupper")
        held = encode_rankings(base, held_out, config.max_length)[0] if held_out else []
        parent = config.from_checkpoint if config.reference == "parent" else None
        known = ReferenceLogProbs(cache_file(base, parent) if config.reference_cache else None, run.say)
        objective = DirectPreference(base, config, reference_adapter(base, config), known)
        samples = Samples(run, base, config, chain(held_out, rankings))
        result = fit(run, config, base, objective, groups, held, fitted, resume=state, samples=samples)
        known.save()
        return result
