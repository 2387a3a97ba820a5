"""The reward model: the base with an adapter and ONE output at the last token, fitted to human comparisons.

All K-choose-2 comparisons of a ranking are one element of the batch: each completion is read once, and the losses of
its pairs are averaged (arXiv:2203.02155, section 3.5), so a long ranking does not outweigh a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.formats import read_rankings
from data.preferences import Comparison
from training import losses
from training.base import Base
from training.batches import Group, Pack, encode_rankings, per_response
from training.config import RewardConfig
from training.loop import Tally, fit, hold_out, load_policy
from training.reward_model import load_head, new_head
from training.run import Run, read_manifest


def scores(base: Base, head: nn.Linear, pack: Pack) -> Tensor:
    """Scores (M,) in fp32: the head on the last token of each response."""
    return head(base.hidden(**pack.inputs())[0, pack.last].float()).squeeze(-1)


def counted(group: Group, ties: bool) -> list[Comparison]:
    """The comparisons that are learned from."""
    return [c for c in group.comparisons if ties or not c.tie]


def total_weight(groups: Sequence[Group], ties: bool) -> float:
    """Weight of the rankings that say anything; what a batch's loss is divided by."""
    return sum(group.weight for group in groups if counted(group, ties)) or 1.0


class Pairs:
    """The comparisons of a pack as tensors over its responses; with `ties` also those that nobody won."""

    def __init__(self, pack: Pack, ties: bool = True) -> None:
        row = {member: i for i, member in enumerate(pack.members)}
        listed = [(g, group, c) for g, group in enumerate(pack.groups) for c in counted(group, ties)]
        device = pack.input_ids.device
        self.winner = torch.tensor([row[g, c.winner] for g, _, c in listed], dtype=torch.long, device=device)
        self.loser = torch.tensor([row[g, c.loser] for g, _, c in listed], dtype=torch.long, device=device)
        self.tie = torch.tensor([c.tie for *_, c in listed], dtype=torch.bool, device=device)
        self.margin = torch.tensor([c.margin for *_, c in listed], dtype=torch.float32, device=device)
        weights = [group.weight / len(counted(group, ties)) for _, group, _ in listed]
        self.weight = torch.tensor(weights, dtype=torch.float32, device=device)


class BradleyTerry:
    """-log σ(r_winner - r_loser) over the comparisons of each ranking; ties as configured."""

    def __init__(self, base: Base, head: nn.Linear, config: RewardConfig) -> None:
        self.base, self.head, self.config = base, head, config
        self.score_mean, self.score_std = 0.0, 1.0

    def denominator(self, groups: Sequence[Group]) -> float:
        """Weight of the rankings."""
        return total_weight(groups, self.config.ties != "ignore")

    def pair_losses(self, difference: Tensor, pairs: Pairs) -> Tensor:
        """Loss (C,) of each comparison from its score difference (C,)."""
        margin = pairs.margin if self.config.use_margin else 0.0
        if self.config.ties == "rao-kupper":
            tau = self.config.tie_threshold
            won = losses.rao_kupper_win(difference - margin, tau)
            return torch.where(pairs.tie, losses.rao_kupper_tie(difference, tau), won)
        won = losses.bradley_terry(difference, margin)
        return torch.where(pairs.tie, losses.half_win(difference), won)

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """Sum over the pack's rankings of the weighted mean over their comparisons."""
        score = scores(self.base, self.head, pack)
        pairs = Pairs(pack, self.config.ties != "ignore")
        winner, loser = score[pairs.winner], score[pairs.loser]
        loss = self.pair_losses(winner - loser, pairs)
        if self.config.center_coefficient:
            loss = loss + self.config.center_coefficient * (winner + loser).square()
        decided = (winner - loser).detach()[~pairs.tie]
        tally = {
            "accuracy": (float((decided > 0).sum()), len(decided)),
            "margin": (float(decided.sum()), len(decided)),
            "score/mean": (float(score.detach().sum()), len(score)),
        }
        return (loss * pairs.weight).sum(), tally

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """Accuracy, NLL (nats), calibration error and margin over the decided comparisons, and the scores' spread."""
        difference, score = self.differences(groups)
        self.score_mean = float(score.mean())
        self.score_std = max(float(score.std()) if len(score) > 1 else 1.0, 1e-6)
        return reward_metrics(difference) | {"score/mean": self.score_mean, "score/std": self.score_std}

    def differences(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """(score differences of all decided comparisons, scores of all responses)."""
        found = per_response(
            groups, self.config.tokens_per_forward, self.base.device, lambda pack: scores(self.base, self.head, pack)
        )
        decided = [
            values[c.winner] - values[c.loser]
            for group, values in zip(groups, found, strict=True)
            for c in group.comparisons
            if not c.tie
        ]
        return torch.tensor(decided), torch.tensor([value for values in found for value in values])

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def reward_metrics(difference: Tensor) -> dict[str, float]:
    """Metrics from the score differences (C,) of decided comparisons, preferred minus other."""
    if not len(difference):
        return {"n": 0}
    return {
        "accuracy": float((difference > 0).float().mean()),
        "nll": float(losses.bradley_terry(difference).mean()),
        "ece": losses.calibration_error(difference),
        "margin": float(difference.mean()),
        "n": len(difference),
    }


def train(config: RewardConfig, resume: bool = False) -> dict[str, Any]:
    """Fit a reward model; returns the result that ends the command's output."""
    with Run(config, "reward", resume) as run:
        rankings, held_out = hold_out(config, read_rankings)
        base, state = load_policy(run, config)
        source = state["checkpoint"] if state else config.from_checkpoint
        continues = source is not None and read_manifest(source)["kind"] == "reward"
        head = load_head(source) if source and continues else new_head(base.hidden_size, config.seed)
        head.to(base.device)
        groups, fitted = encode_rankings(base, rankings, config.max_length)
        run.say(fitted.describe("rankings", config.max_length))
        held = encode_rankings(base, held_out, config.max_length)[0] if held_out else []
        objective = BradleyTerry(base, head, config)

        def normalisation() -> dict[str, Any]:
            if not held:  # no reference samples set apart: the first of the training samples serve
                with torch.no_grad(), base.using("policy"):
                    objective.evaluate(groups[:64])
            return {"score_normalisation": {"mean": objective.score_mean, "std": objective.score_std}}

        return fit(run, config, base, objective, groups, held, head=head, resume=state, manifest=normalisation)
