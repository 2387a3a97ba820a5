"""A reward model that is used: the adapter, the head with its ONE output, and what normalises its scores."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from data.records import InputError
from training.base import Base
from training.run import read_manifest


def new_head(size: int, seed: int) -> nn.Linear:
    """A scalar head in fp32, weights N(0, σ) with σ a tenth of 1/√(d+1) (arXiv:2009.01325, appendix).

    At the full σ the untrained scores of the default model differ by 1.1 (standard deviation), and the first tenth of a
    run on a few hundred comparisons goes into unlearning that: NLL 0.95 before the first step instead of 0.70.
    """
    head = nn.Linear(size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=0.1 / math.sqrt(size + 1), generator=generator)
    return head


def load_head(checkpoint: Path | str) -> nn.Linear:
    """The score head of a reward model's checkpoint."""
    state = load_file(Path(checkpoint) / "adapter_model.safetensors")
    if "base_model.model.score.weight" not in state:
        raise InputError(f"{checkpoint}: is not a reward model (it has no score head)")
    weight = state["base_model.model.score.weight"].float()
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight.data.copy_(weight)
    return head


class Score:
    """A reward model on a base: its adapter, head, and normalisation."""

    def __init__(self, base: Base, checkpoint: Path | str) -> None:
        manifest = read_manifest(checkpoint)
        self.adapter = base.attach(checkpoint)
        self.head = load_head(checkpoint).to(base.device).requires_grad_(False)
        normalisation = manifest.get("score_normalisation") or {"mean": 0.0, "std": 1.0}
        self.mean, self.std = float(normalisation["mean"]), float(normalisation["std"])
