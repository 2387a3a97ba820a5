"""Supervised fine-tuning: the next-token loss on what the assistant says, and on nothing else.

Demonstrations are packed as everywhere (`training.batches`): several stand in one forward of `tokens_per_forward`, none
sees another, and none is cut or padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from data.formats import read_demonstrations
from training import processes
from training.base import Base
from training.batches import encode_demonstrations
from training.config import SFTConfig
from training.loop import Tally, fit, hold_out, load_policy, means, token_log_probs
from training.packs import Group, Pack, packs
from training.run import Run
from training.samples import Samples


class Imitation:
    """-log p of the assistant's tokens, a mean over the batch's tokens."""

    def __init__(self, base: Base, config: SFTConfig) -> None:
        self.base, self.config = base, config

    def denominator(self, groups: Sequence[Group]) -> float:
        """Tokens that are learned from."""
        return float(sum(sum(targets) for group in groups for targets in group.targets if targets))

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """Sum over the pack's tokens. `tokens` and `packing/fill` are of a forward: what it learns from, and the share
        of its room that is taken; what is not taken is not computed either.
        """
        hidden = self.base.read(pack)[pack.predictors]
        log_probs, _ = token_log_probs(self.base, hidden, pack.targets)
        taken = pack.input_ids.shape[1]
        fill = taken / max(taken, self.config.tokens_per_forward)
        return -log_probs.sum(), {"tokens": (len(pack.targets), 1), "packing/fill": (fill, 1)}

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """Mean loss over the held-out tokens, in nats."""
        tallies: list[Tally] = []
        for pack in packs(processes.share(groups), self.config.tokens_per_forward, self.base.device):
            loss, tally = self.loss(pack)
            tallies.append({"loss": (float(loss), tally["tokens"][0])})
        return means(processes.gather(tallies))

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def train(config: SFTConfig, resume: bool = False) -> dict[str, Any]:
    """Run SFT; returns the result that ends the command's output."""
    with Run(config, "sft", resume) as run:
        demonstrations, held_out = hold_out(config, read_demonstrations)
        base, state = load_policy(run, config)
        groups, fitted = encode_demonstrations(base, demonstrations, config.max_length, run.say)
        run.say(fitted.describe("demonstrations", config.max_length))
        held = encode_demonstrations(base, held_out, config.max_length)[0] if held_out else []
        samples = Samples(run, base, config, chain(held_out, demonstrations))
        return fit(run, config, base, Imitation(base, config), groups, held, fitted, resume=state, samples=samples)
