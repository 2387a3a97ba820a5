"""The reward model: the base with an adapter and ONE output at the last token, fitted to human comparisons.

All K-choose-2 comparisons of a ranking are one element of the batch: each completion is read once, and the losses of
its pairs are averaged (arXiv:2203.02155, section 3.5), so a long ranking does not outweigh a pair. Plackett-Luce reads
the whole order instead (the best is chosen among all, the next among the rest, ...) and averages these choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.formats import read_rankings
from data.preferences import Comparison
from data.records import InputError
from training import losses, processes
from training.base import Base
from training.batches import encode_rankings
from training.config import DPOConfig, RewardConfig
from training.loop import Tally, fit, hold_out, load_policy
from training.packs import Group, Pack, pack, per_response
from training.reference import response_key
from training.reward_model import load_head, new_head, scores
from training.run import Run
from training.run_folder import read_manifest

OutcomeLoss = Callable[[Tensor], Tensor]


def counted(group: Group, ties: bool) -> list[Comparison]:
    """The comparisons that are learned from."""
    return [c for c in group.comparisons if ties or not c.tie]


def total_weight(groups: Sequence[Group], ties: bool) -> float:
    """Weight of the rankings that say anything; what a batch's loss is divided by."""
    return sum(group.weight for group in groups if counted(group, ties)) or 1.0


class Pairs:
    """The comparisons of groups as tensors over their M responses, which stand in a row; with `ties` also those nobody
    won. `weight` (C,): of a ranking's weight the share of each of its comparisons.
    """

    def __init__(self, groups: Sequence[Group], ties: bool = True, device: torch.device | None = None) -> None:
        listed, first = [], 0
        for group in groups:
            found = counted(group, ties)
            listed += [(first + c.winner, first + c.loser, c.tie, c.margin, group.weight / len(found)) for c in found]
            first += len(group.responses)
        columns = list(zip(*listed, strict=True)) or [()] * 5
        kinds = (torch.long, torch.long, torch.bool, torch.float32, torch.float32)
        self.winner, self.loser, self.tie, self.margin, self.weight = (
            torch.tensor(column, dtype=kind, device=device) for column, kind in zip(columns, kinds, strict=True)
        )


def outcome_losses(config: RewardConfig | DPOConfig) -> tuple[OutcomeLoss, OutcomeLoss]:
    """(loss of a win, loss of a tie) as functions of the difference in reward, under the configured model of ties."""
    return {
        "rao-kupper": (
            lambda d: losses.rao_kupper_win(d, config.tie_threshold),
            lambda d: losses.rao_kupper_tie(d, config.tie_threshold),
        ),
        "davidson": (
            lambda d: losses.davidson_win(d, config.tie_prevalence),
            lambda d: losses.davidson_tie(d, config.tie_prevalence),
        ),
    }.get(config.ties, (losses.bradley_terry, losses.half_win))


def pair_losses(config: RewardConfig, difference: Tensor, pairs: Pairs) -> Tensor:
    """Loss (C,) of each comparison from its score difference (C,)."""
    win, tie = outcome_losses(config)
    margin = pairs.margin if config.use_margin else 0.0
    won = losses.smoothed(lambda d: win(d - margin), difference, config.label_smoothing)
    return torch.where(pairs.tie, tie(difference), won)


def choice_losses(score: Tensor, pairs: Pairs, owner: Tensor, weight: Tensor) -> Tensor:
    """Loss (M,) of each response's choice among itself and those it won against or tied with; 0 where it had none.

    Without ties a ranking's choices are those of Plackett-Luce. Each of several tied is chosen from all of them and
    those below (Breslow 1974, for tied events in the same likelihood), which for a pair is half a win each way.
    `owner` (M,): the number of each response's ranking; `weight` (groups,): shared among a ranking's choices.
    """
    alternatives = torch.eye(len(score), dtype=torch.bool, device=score.device)
    alternatives[pairs.winner, pairs.loser] = True
    alternatives[pairs.loser[pairs.tie], pairs.winner[pairs.tie]] = True
    chooses = alternatives.sum(1) > 1
    choices = torch.zeros_like(weight).index_add(0, owner, chooses.to(weight.dtype)).clamp(min=1)
    return losses.plackett_luce(score, alternatives) * chooses * (weight / choices)[owner]


def preference_loss(config: RewardConfig, score: Tensor, groups: Sequence[Group]) -> Tensor:
    """Sum over the rankings of their weighted mean loss, from the scores (M,) of their responses in a row."""
    pairs = Pairs(groups, config.ties != "ignore", score.device)
    winner, loser = score[pairs.winner], score[pairs.loser]
    if config.loss == "plackett-luce":
        owner = [number for number, group in enumerate(groups) for _ in group.responses]
        weight = torch.tensor([group.weight for group in groups], dtype=score.dtype, device=score.device)
        loss = choice_losses(score, pairs, torch.tensor(owner, device=score.device), weight).sum()
    else:
        loss = (pair_losses(config, winner - loser, pairs) * pairs.weight).sum()
    if config.center_coefficient:  # arXiv:2312.09244
        loss = loss + config.center_coefficient * ((winner + loser).square() * pairs.weight).sum()
    return loss


class ResponseEnds:
    """Last hidden states at the ends of responses, computed once: for a trunk that does not learn.

    Each prompt is read with its responses alone, so that what is found does not depend on when it is asked for, and a
    resumed run repeats. Kept in the base's precision: 2 d bytes a response in bf16.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.known: dict[str, Tensor] = {}

    def of(self, found: Pack) -> Tensor:
        """(M, d) in fp32 of the pack's responses."""
        return torch.cat([self._of_group(group) for group in found.groups]).to(self.base.device).float()

    @torch.no_grad()
    def _of_group(self, group: Group) -> Tensor:
        key = response_key(group.prompt, [token for ids in group.responses for token in (len(ids), *ids)])
        if key not in self.known:
            alone = pack([group], self.base.device)
            self.known[key] = self.base.read(alone)[alone.last].cpu()
        return self.known[key]


class PreferenceLikelihood:
    """The likelihood of people's comparisons or rankings under the scores."""

    def __init__(self, base: Base, head: nn.Linear, config: RewardConfig) -> None:
        self.base, self.head, self.config = base, head, config
        self.ends = ResponseEnds(base) if config.train == "head" else None
        self.normalisation: dict[str, Any] = {"mean": 0.0, "std": 1.0}

    def denominator(self, groups: Sequence[Group]) -> float:
        """Weight of the rankings."""
        return total_weight(groups, self.config.ties != "ignore")

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """Sum over the pack's rankings of their weighted loss."""
        score = self.score(pack)
        loss = preference_loss(self.config, score, pack.groups)
        raw, pairs = score.detach(), Pairs(pack.groups, ties=False, device=score.device)
        decided = raw[pairs.winner] - raw[pairs.loser]
        spread = [float(part.std()) for part in raw.split([len(group.responses) for group in pack.groups])]
        return loss, {
            "accuracy": (float((decided > 0).sum()), len(decided)),
            "margin": (float(decided.sum()), len(decided)),
            "score/mean": (float(raw.sum()), len(raw)),
            "score/spread": (sum(spread), len(spread)),
        }

    def score(self, pack: Pack) -> Tensor:
        """Scores (M,) in fp32 of the pack's responses under the active adapter."""
        if self.ends:
            return self.head(self.ends.of(pack)).squeeze(-1)
        return scores(self.base, self.head, pack)

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """`reward_metrics` of held-out rankings; their scores are what normalises the model from now on."""
        found = processes.gather(self.scores(processes.share(groups)))
        self.refer(found, "held-out")
        return reward_metrics(groups, found, self.config)

    def scores(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every group's responses under the active adapter, in the groups' order."""
        return per_response(groups, self.config.tokens_per_forward, self.base.device, self.score)

    def refer(self, found: Sequence[Sequence[float]], samples: str) -> None:
        """Take these scores as the reference: PPO subtracts their mean and divides by their deviation."""
        flat = torch.tensor([value for values in found for value in values])
        std = max(float(flat.std()), 1e-6) if len(flat) > 1 else 1.0
        self.normalisation = {"mean": float(flat.mean()), "std": std, "samples": samples, "n": len(flat)}

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def reward_metrics(
    groups: Sequence[Group], found: Sequence[Sequence[float]], config: RewardConfig | None = None
) -> dict[str, float]:
    """How well scores agree with people; `found[g][k]` is the raw score of response k of group g.

    Over decided comparisons: `accuracy`, `nll` = mean -log σ(r_w - r_l) in nats and `ece`, both of Bradley-Terry
    whatever the loss, so that models compare; `margin`, the mean difference; `n`. `loss`: the model's own likelihood
    as in training, ties included. `score/mean`, `score/std` over all responses.

    Accuracy where the preferred answer is the longer or shorter one (`accuracy/chosen-longer`), and by terciles of the
    difference in length (tokens) and of the stated strength. How often the longer answer wins with people
    (`length/longer-wins`) and with the model (`length/longer-scored-higher`): a model above people has a length bias.
    `length/correlation`: of differences in score with differences in length, within prompts.
    """
    config = config or RewardConfig()
    score = torch.tensor([value for values in found for value in values])
    length = torch.tensor([float(len(ids)) for group in groups for ids in group.responses])
    loss = sum(float(preference_loss(config, torch.tensor(v), [g])) for g, v in zip(groups, found, strict=True))
    metrics = {"loss": loss / total_weight(groups, config.ties != "ignore"), "score/mean": float(score.mean())}
    metrics["score/std"] = float(score.std()) if len(score) > 1 else 0.0
    pairs = Pairs(groups, ties=False)
    difference, longer = score[pairs.winner] - score[pairs.loser], length[pairs.winner] - length[pairs.loser]
    correct, n = (difference > 0).float(), len(difference)
    if not n:
        return metrics | {"n": 0}
    metrics |= {
        "accuracy": float(correct.mean()),
        "nll": float(losses.bradley_terry(difference).mean()),
        "ece": losses.calibration_error(difference),
        "margin": float(difference.mean()),
        "n": n,
    }
    unequal = longer != 0
    for name, where in (("chosen-longer", longer > 0), ("chosen-shorter", longer < 0)):
        if where.any():
            metrics[f"accuracy/{name}"] = float(correct[where].mean())
    metrics |= terciles("accuracy/length-difference", longer.abs(), correct)
    stated = pairs.margin > 0
    metrics |= terciles("accuracy/strength", pairs.margin[stated], correct[stated])
    if unequal.any():
        same_sign = (difference * longer > 0)[unequal].float()
        metrics["length/longer-wins"] = float((longer > 0)[unequal].float().mean())
        metrics["length/longer-scored-higher"] = float(same_sign.mean())
        spread = difference.square().sum() * longer.square().sum()
        metrics["length/correlation"] = float((difference * longer).sum() / spread.sqrt()) if spread > 0 else 0.0
    return metrics


def terciles(name: str, value: Tensor, correct: Tensor) -> dict[str, float]:
    """Mean of `correct` (C,) over the low, middle and high thirds of `value` (C,); equal values share a third, and a
    third that this leaves empty is left out. Nothing where all values are equal.
    """
    if not len(value) or value.min() == value.max():
        return {}
    low, high = value.quantile(torch.tensor([1 / 3, 2 / 3], dtype=value.dtype))
    thirds = {"low": value <= low, "middle": (value > low) & (value <= high), "high": value > high}
    return {f"{name}-{third}": float(correct[where].mean()) for third, where in thirds.items() if where.any()}


def train(config: RewardConfig, resume: bool = False) -> dict[str, Any]:
    """Fit a reward model; returns the result that ends the command's output."""
    with Run(config, "reward", resume) as run:
        rankings, held_out = hold_out(config, read_rankings)
        base, state = load_policy(run, config)
        source = state["checkpoint"] if state else config.from_checkpoint
        continues = source is not None and read_manifest(source)["kind"] == "reward"
        head = load_head(source) if source and continues else new_head(base.hidden_size, config.seed)
        head.to(base.device)
        groups, fitted = encode_rankings(base, rankings, config.max_length, run.say)
        run.say(fitted.describe("rankings", config.max_length))
        if not any(counted(group, config.ties != "ignore") for group in groups):
            raise InputError(f"{config.data}: every comparison is a tie; set ties to half, davidson or rao-kupper")
        held = encode_rankings(base, held_out, config.max_length)[0] if held_out else []
        objective = PreferenceLikelihood(base, head, config)

        def manifest() -> dict[str, Any]:
            if not held:  # no reference samples set apart: the first of the training samples serve
                with torch.no_grad(), base.using("policy"):
                    objective.refer(objective.scores(groups[:64]), "training")
            return {"score_normalisation": objective.normalisation}

        return fit(run, config, base, objective, groups, held, fitted, head=head, resume=state, manifest=manifest)
