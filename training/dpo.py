"""Direct preference optimisation, arXiv:2305.18290: the policy learns from the preferences, with no reward model.

Its implicit reward is r(x, y) = β (log π(y|x) - log π_ref(y|x)); the reference is the base with the adapter off, or the
frozen checkpoint that the policy starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.formats import read_rankings
from training import losses
from training.base import Base
from training.batches import Group, Pack, encode_rankings, packs
from training.config import DPOConfig
from training.loop import Tally, fit, hold_out, load_policy, means, reference_adapter, token_log_probs
from training.reward import Pairs, counted, total_weight
from training.run import Run


class DirectPreference:
    """DPO over all decided comparisons of each ranking; a ranking is one element of the batch."""

    def __init__(self, base: Base, config: DPOConfig, reference: str | None) -> None:
        self.base, self.config, self.reference = base, config, reference
        self.remembered: dict[tuple[bool, int], Tensor] = {}  # reference log-probabilities of each group's responses
        self.held = False

    def denominator(self, groups: Sequence[Group]) -> float:
        """Weight of the rankings that decide anything."""
        return total_weight(groups, ties=False)

    def log_probs(self, pack: Pack) -> Tensor:
        """log π(y|x) (M,), summed over each response's tokens, under the active adapter."""
        hidden = self.base.hidden(**pack.inputs())[0, pack.predictors]
        return pack.sum_per_response(token_log_probs(self.base, hidden, pack.targets)[0])

    def reference_log_probs(self, pack: Pack) -> Tensor:
        """log π_ref(y|x) (M,). First computed in the policy's own layout, so that step 0 is exact; then remembered."""
        keys = [(self.held, group.index) for group in pack.groups]
        if not all(key in self.remembered for key in keys):
            with torch.no_grad(), self.base.using(self.reference):
                found = self.log_probs(pack)
            for number, key in enumerate(keys):
                rows = [i for i, (group, _) in enumerate(pack.members) if group == number]
                self.remembered.setdefault(key, found[rows].cpu())
        return torch.cat([self.remembered[key] for key in keys]).to(pack.input_ids.device)

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """Sum over the pack's rankings of the weighted mean over their comparisons."""
        log_probs, reference = self.log_probs(pack), self.reference_log_probs(pack)
        log_ratio = log_probs - reference
        pairs = Pairs(pack.groups, ties=False, device=log_ratio.device)
        difference = log_ratio[pairs.winner] - log_ratio[pairs.loser]
        loss = losses.dpo(difference, self.config.beta, self.config.label_smoothing)
        with torch.no_grad():
            reward, n = self.config.beta * log_ratio, len(difference)
            chosen, rejected = reward[pairs.winner], reward[pairs.loser]
            tally = {
                "rewards/accuracies": (float((chosen > rejected).sum()), n),
                "rewards/margins": (float((chosen - rejected).sum()), n),
                "rewards/chosen": (float(chosen.sum()), n),
                "rewards/rejected": (float(rejected.sum()), n),
                "logps/chosen": (float(log_probs[pairs.winner].sum()), n),
                "logps/rejected": (float(log_probs[pairs.loser].sum()), n),
            }
        return (loss * pairs.weight).sum(), tally

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """The loss and the same metrics on held-out rankings."""
        self.held = True
        tallies: list[Tally] = []
        for pack in packs(groups, self.config.tokens_per_forward, self.base.device):
            loss, tally = self.loss(pack)
            weight = sum(group.weight for group in pack.groups if counted(group, ties=False))
            tallies.append(dict(tally) | {"loss": (float(loss), weight)})
        self.held = False
        return means(tallies)

    def state(self) -> dict[str, Any]:
        """The reference log-probabilities met so far."""
        return {"remembered": self.remembered}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.remembered = state["remembered"]


def train(config: DPOConfig, resume: bool = False) -> dict[str, Any]:
    """Run DPO; returns the result that ends the command's output."""
    with Run(config, "dpo", resume) as run:
        rankings, held_out = hold_out(config, read_rankings)
        base, state = load_policy(run, config)
        groups, fitted = encode_rankings(base, rankings, config.max_length)
        run.say(fitted.describe("rankings", config.max_length))
        undecided = sum(c.tie for group in groups for c in group.comparisons)
        if undecided:
            run.say(f"{undecided} ties teach DPO nothing and are passed over")
        held = encode_rankings(base, held_out, config.max_length)[0] if held_out else []
        objective = DirectPreference(base, config, reference_adapter(base, config))
        return fit(run, config, base, objective, groups, held, resume=state)
