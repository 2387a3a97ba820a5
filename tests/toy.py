"""A policy whose every answer can be listed, so that what is optimal is known: π* ∝ π_ref · exp(r / β)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import make_word_model
from training.base import Base
from training.evaluate import sequence_log_probs
from training.packs import Group

SPECIALS = ["<pad>", "<end>"]
WORDS = ["yes", "no", "one", "two"]


def make_enumerable_model(folder: Path, seed: int = 0) -> Path:
    """Write a random model that knows four words, an end and a pad; a prompt is its own words and nothing else."""
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return make_word_model(folder, SPECIALS + WORDS, pad="<pad>", width=64, spread=0.2, seed=seed, template=template)


def all_answers(base: Base, longest: int) -> list[list[int]]:
    """Token ids of every answer of at most `longest` tokens: it ends with the end token or is cut there."""
    (end,) = base.stop_ids
    others = [token for token in range(len(base.tokenizer)) if token != end]
    found: list[list[int]] = []
    begun: list[list[int]] = [[]]
    for _ in range(longest):
        found += [[*start, end] for start in begun]
        begun = [[*start, token] for start in begun for token in others]
    return found + begun


def log_policy(base: Base, adapter: str | None, prompt: Sequence[int], answers: Sequence[list[int]]) -> Tensor:
    """log π(y|x) (S,) of the listed answers, from one packed forward, in float64."""
    (found,) = sequence_log_probs(base, adapter, [Group(list(prompt), list(answers))], temperature=1.0)
    return torch.tensor(found, dtype=torch.float64)


def optimal_policy(log_reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π* (S,) of π* ∝ π_ref · exp(r / β) over the listed answers; arXiv:2305.18290, eq. 4."""
    return torch.log_softmax(log_reference + rewards / beta, dim=0)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p ‖ q) in nats over the listed answers (S,), each distribution brought to sum 1 over them."""
    log_p, log_q = torch.log_softmax(log_p, dim=0), torch.log_softmax(log_q, dim=0)
    return float((log_p.exp() * (log_p - log_q)).sum())
