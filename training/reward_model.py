"""A reward model that is used: one trained here, on the shared base, or any sequence classifier with one label.

Both read tokenised groups and answer with raw fp32 scores; which tokenizer and chat template they read by is `reader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.records import InputError, Message
from training.base import Base
from training.chat_template import decode, encode_prompt, encode_response
from training.models import load_classifier
from training.packs import Group, Pack, per_response
from training.run_folder import read_manifest


class RewardModel(Protocol):
    """What scores completions, for PPO, `score` and `evaluate`."""

    reader: Base
    """Whose tokenizer, chat template and context length the groups are encoded with."""
    mean: float
    std: float
    """Normalised score = (raw - mean) / std; 0 and 1 where the model says nothing of it."""

    def score(self, groups: Sequence[Group], tokens_per_forward: int = 768) -> list[list[float]]:
        """Raw scores of every group's responses, in the groups' order."""


def load_reward_model(base: Base, name: str) -> RewardModel:
    """A checkpoint of ours as an adapter of `base`; a folder or hub name of a classifier as a model beside it."""
    if is_checkpoint(name):
        return Score(base, name)
    return Classifier(name, "bf16" if base.model.dtype == torch.bfloat16 else "fp32", str(base.device))


def is_checkpoint(name: Path | str) -> bool:
    """Whether `name` is a checkpoint of ours, not a model in its own right."""
    return (Path(name) / "manifest.json").exists()


def in_words_of(
    model: RewardModel, base: Base, groups: Sequence[Group], conversations: Sequence[Sequence[Message]]
) -> list[Group]:
    """Groups that `base` sampled, as `model` reads them; `conversations[group.index]` is the prompt of a group.

    The very tokens where both read alike, else the prompt in the model's own template and the responses' text.
    """
    if model.reader is base:
        return list(groups)
    return [
        Group(
            encode_prompt(model.reader, conversations[group.index]),
            [encode_response(model.reader, decode(base, ids), ids[-1] in base.stop_ids) for ids in group.responses],
            index=group.index,
        )
        for group in groups
    ]


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


def scores(base: Base, head: nn.Linear, pack: Pack) -> Tensor:
    """Scores (M,) in fp32: the head on the last token of each response."""
    return head(base.read(pack)[pack.last].float()).squeeze(-1)


class Score:
    """A reward model trained here: its adapter on the shared base, its head, and its normalisation."""

    def __init__(self, base: Base, checkpoint: Path | str) -> None:
        manifest = read_manifest(checkpoint)
        self.reader = base
        self.adapter: str | None = base.attach(checkpoint)
        self.head = load_head(checkpoint).to(base.device).requires_grad_(False)
        normalisation = manifest.get("score_normalisation") or {"mean": 0.0, "std": 1.0}
        self.mean, self.std = float(normalisation["mean"]), float(normalisation["std"])

    @torch.no_grad()
    def score(self, groups: Sequence[Group], tokens_per_forward: int = 768) -> list[list[float]]:
        """Raw scores of every group's responses, in the groups' order."""
        base = self.reader
        with base.using(self.adapter):
            return per_response(groups, tokens_per_forward, base.device, lambda pack: scores(base, self.head, pack))

    def read(
        self,
        groups: Sequence[Group],
        look: Callable[[Tensor], Tensor],
        tokens_per_forward: int = 768,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """What `look` makes of last hidden states, (m, d) in fp32 to (m, ...), for all responses in a row (M, ...)."""
        return read_ends(self.reader, self.adapter, groups, look, tokens_per_forward, on_progress)


@torch.no_grad()
def read_ends(
    base: Base,
    adapter: str | None,
    groups: Sequence[Group],
    look: Callable[[Tensor], Tensor],
    tokens_per_forward: int = 768,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What `look` makes of last hidden states under an adapter, (m, d) in fp32 to (m, ...), for all responses in a row
    (M, ...). `on_progress` hears how many of how many were read."""
    found, done = list[Tensor](), 0
    total = sum(len(group.responses) for group in groups)

    def keep(pack: Pack) -> Tensor:
        nonlocal done
        found.append(look(base.read(pack)[pack.last].float()).cpu())
        first, done = done, done + len(found[-1])
        if on_progress:
            on_progress(done, total)
        return torch.arange(first, done)

    with base.using(adapter):
        places = per_response(groups, tokens_per_forward, base.device, keep)
    return torch.cat(found)[[int(place) for row in places for place in row]]


class Classifier:
    """Any AutoModelForSequenceClassification with one label, by its own tokenizer and chat template.

    The sequence ends at the end token (or the last token of a response that was cut), where the score is read: padding
    goes to the right and is a token of its own, because transformers reads at the last token that is not padding.
    """

    mean, std = 0.0, 1.0

    def __init__(self, name: str, dtype: str = "auto", device: str = "auto") -> None:
        self.reader = load_classifier(name, dtype, device)

    @torch.no_grad()
    def score(self, groups: Sequence[Group], tokens_per_forward: int = 768) -> list[list[float]]:
        """Raw scores of every group's responses, in the groups' order; sequences of like length share a forward."""
        sequences = [(g, k, [*group.prompt, *ids]) for g, group in enumerate(groups)
                     for k, ids in enumerate(group.responses)]  # fmt: skip
        sequences.sort(key=lambda entry: len(entry[2]))
        found = [[0.0] * len(group.responses) for group in groups]
        pad, device = int(self.reader.tokenizer.pad_token_id), self.reader.device
        while sequences:
            width = len(sequences[-1][2])
            rows = [sequences.pop() for _ in range(min(len(sequences), max(1, tokens_per_forward // width)))]
            ids = torch.tensor([s + [pad] * (width - len(s)) for *_, s in rows], device=device)
            mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for *_, s in rows], device=device)
            with self.reader.lock:
                logits = self.reader.model(input_ids=ids, attention_mask=mask).logits.float()
            for (g, k, _), value in zip(rows, logits[:, 0].tolist(), strict=True):
                found[g][k] = value
        return found
