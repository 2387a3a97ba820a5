"""What a run computes, counted before it is started: forwards, sampled tokens, checkpoints. Without torch.

It follows the loops of `training` (fit, dpo, ppo): the same split, the same batches in kind, the same packing. Lengths
are in tokens, worked out from characters, because a page must not load a tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.preferences import split_by_prompt
from data.records import Demonstration, Ranking
from labeler.before import Material
from training.config import DPOConfig, PolicyConfig, PPOConfig, RewardConfig, TrainingConfig
from training.prices import Sizes, features, forwards

Floats = NDArray[np.floating[Any]]
BATCHES = 12
"""Batches that are packed to learn what an average one holds."""


@dataclass
class Lengths:
    """How characters become tokens (`training.speed.tokens_of`), and the lengths in tokens of answers, for PPO."""

    per_character: float
    template: float
    shared: int
    answers: Sequence[int] = ()

    def of(self, text: str) -> int:
        """Tokens of a text."""
        return math.ceil(len(text) * self.per_character)

    def sizes(self, record: Any) -> Sizes:
        """Of a ranking, a demonstration or a prompt."""
        if isinstance(record, Ranking):
            ranked = zip(record.completions, record.ranks, strict=True)
            responses = [self.of(text) + 1 for text, rank in ranked if rank is not None]
            return self._prompt(record.prompt.messages), responses
        if isinstance(record, Demonstration):
            first = next(i for i, m in enumerate(record.messages) if m["role"] == "assistant" and i >= 0)
            first = max(first, record.first_target)
            return self._prompt(record.messages[:first]), [
                sum(self.of(m["content"]) + 1 for m in record.messages[first:])
            ]
        return self._prompt(record.messages), []

    def _prompt(self, messages: Sequence[Any]) -> int:
        return round(self.template) + sum(self.of(message["content"]) for message in messages)


@dataclass
class Work:
    """What a run computes, summed over its steps. `learn` and `read` are sums of `training.prices.features`.

    `tokens`: what is learned from, which decides whether compiling pays. `largest`: tokens of the largest forward.
    `decode_steps`, `decode_rows`: steps of decoding, and sequences summed over them. `adapters`: those that learn.
    """

    rows: int
    steps: int
    updates: int
    tokens: float
    largest: float
    learn: Floats
    read: Floats
    saves: int
    decode_steps: float = 0.0
    decode_rows: float = 0.0
    adapters: int = 1


def count(config: TrainingConfig, found: Material, lengths: Lengths) -> Work | None:
    """The work of a run with that config on that material; None where nothing of it fits."""
    sides = split_by_prompt(found.records, config.validation_fraction, config.seed, config.fold)
    room = config.max_length - (config.max_new_tokens if isinstance(config, PPOConfig) else 0)
    train, held = ([size for size in map(lengths.sizes, side) if _longest(size) <= room] for side in sides)
    if not train:
        return None
    scale = found.total / len(found.records)
    counting = _ppo if isinstance(config, PPOConfig) else _fit
    work = counting(config, train, held, scale, lengths)
    if isinstance(config, PolicyConfig):
        _sample(work, config, [*held, *train], lengths)
    return work


def _longest(size: Sizes) -> int:
    return size[0] + max(size[1], default=0)


def _every(total: int, *intervals: int) -> int:
    """In how many of the steps 1 to total one of the intervals, or the end, is reached."""
    return len({total, *(step for interval in intervals for step in range(interval, total + 1, interval))})


class _Reader:
    """Sums of features over forwards of groups."""

    def __init__(self, config: TrainingConfig, lengths: Lengths) -> None:
        self.limit, self.shared = config.tokens_per_forward, lengths.shared
        self.largest = 0.0

    def __call__(self, groups: Sequence[Sizes], targets: bool = True) -> Floats:
        found = np.array([features(row, targets, self.shared) for row in forwards(groups, self.limit, self.shared)])
        self.largest = max(self.largest, *found[:, 1]) if len(found) else self.largest
        return found.sum(0) if len(found) else np.zeros(4)


def _batches(groups: Sequence[Sizes], size: int, seed: int) -> list[list[Sizes]]:
    """A few batches of that size, as an epoch would have them."""
    order = np.random.default_rng(seed).permutation(len(groups))
    whole = [order[start : start + size] for start in range(0, len(order), size)][:BATCHES]
    return [[groups[i] for i in batch] for batch in whole]


def _sample(work: Work, config: PolicyConfig, prompts: Sequence[Sizes], lengths: Lengths) -> None:
    """Add what `training.samples` lets the policy say on the way."""
    count = min(config.sample_prompts, len(prompts))
    if not count:
        return
    times = _every(work.steps, config.sample_every or max(1, work.steps // 10)) + 1
    drawn = np.random.default_rng(config.seed).choice(lengths.answers or [config.sample_max_new_tokens], (64, count))
    answers = np.minimum(drawn, config.sample_max_new_tokens)
    work.decode_steps += float(answers.max(1).mean()) * times
    work.decode_rows += float(answers.sum(1).mean()) * times
    prefill = np.array(features([(size[0], []) for size in prompts[:count]], False, lengths.shared))
    if isinstance(config, PPOConfig):  # they are scored too
        prefill = prefill + np.array(features([(size[0], [int(answers.mean())]) for size in prompts[:count]], False))
    work.read = work.read + prefill * times


def _fit(config: TrainingConfig, train: list[Sizes], held: list[Sizes], scale: float, lengths: Lengths) -> Work:
    """`training.loop.fit` for SFT, reward model and DPO."""
    count = round(len(train) * scale)
    per_epoch = math.ceil(count / config.batch_size)
    total = config.max_steps or max(1, math.ceil(config.epochs * per_epoch))
    save_every, eval_every = (interval or max(1, total // 10) for interval in (config.save_every, config.eval_every))
    targets, read = not isinstance(config, RewardConfig), _Reader(config, lengths)
    batches = _batches(train, config.batch_size, config.seed)
    learn = np.mean([read(batch, targets) for batch in batches], axis=0)
    read([max(train, key=lambda size: size[0] + sum(size[1]))])  # its forward is the largest there can be
    evaluation = read(held, targets) * scale
    evaluations = _every(total, save_every, eval_every) + 1
    work = Work(
        rows=count,
        steps=total,
        updates=total,
        tokens=float(np.mean([size[0] + sum(size[1]) for size in train])) * min(config.batch_size, count) * total,
        largest=read.largest,
        learn=learn * total,
        read=evaluation * evaluations if held else np.zeros(4),
        saves=_every(total, save_every),
    )
    if isinstance(config, RewardConfig):
        if config.train == "head":  # every ranking is read once, alone
            ones = sum((np.array(features([size], False)) for size in [*train, *held]), np.zeros(4)) * scale
            work.learn, work.read = np.zeros(4), ones * min(1.0, total / per_epoch)
        elif not held:
            work.read = read(train[:64], False) * work.saves
    if isinstance(config, DPOConfig):
        work.read = work.read + learn * min(total, per_epoch) + evaluation  # the reference, once
        prompts = min(config.kl_prompts, len(held))
        if prompts:
            answered: list[Sizes] = [(size[0], [config.kl_max_new_tokens]) for size in held[:prompts]]
            work.decode_steps = float(config.kl_max_new_tokens * evaluations)
            work.decode_rows = work.decode_steps * prompts
            work.read = (
                work.read + (2 * read(answered) + read([(size[0], []) for size in held[:prompts]], False)) * evaluations
            )
    return work


def _ppo(config: TrainingConfig, train: list[Sizes], held: list[Sizes], scale: float, lengths: Lengths) -> Work:
    """`training.ppo`: sample, score, read by policy, reference and critic, learn from it several times."""
    assert isinstance(config, PPOConfig)
    count, per_update = round(len(train) * scale), max(1, config.prompts_per_update)
    total = config.max_steps or max(1, math.ceil(config.epochs * math.ceil(count / per_update)))
    save_every, eval_every = (interval or max(1, total // 10) for interval in (config.save_every, config.eval_every))
    random, read = np.random.default_rng(config.seed), _Reader(config, lengths)
    known = np.array([min(length, config.max_new_tokens) for length in lengths.answers] or [config.max_new_tokens])
    own_critic = config.uses_critic and config.value_model == "adapter"

    def play(prompts: Sequence[Sizes], minibatches: int) -> tuple[Floats, Floats, float, float]:
        """(read once with targets, the same without, steps of decoding, its sequences) of one rollout."""
        answers = random.choice(known, size=(len(prompts), config.samples_per_prompt))
        groups: list[Sizes] = [(size[0], list(map(int, own))) for size, own in zip(prompts, answers, strict=True)]
        size = math.ceil(len(groups) / min(minibatches, len(groups)))
        slices = [groups[start : start + size] for start in range(0, len(groups), size)]
        asked = sum((read(part) for part in slices), np.zeros(4))
        scored = sum((read(part, False) for part in slices), np.zeros(4))
        prefill = np.array(features([(size[0], []) for size in prompts], False, lengths.shared))
        return asked, scored + prefill, float(answers.max()), float(answers.sum())

    played = [play(batch, config.minibatches) for batch in _batches(train, per_update, config.seed)]
    asked = np.mean([each[0] for each in played], axis=0)
    scored = np.mean([each[1] for each in played], axis=0)
    steps, rows = (float(np.mean([each[part] for each in played])) for part in (2, 3))
    passes = config.ppo_epochs * (2 if own_critic else 1)
    reads = 2 * asked + scored + (scored if own_critic else 0)
    work = Work(
        rows=count,
        steps=total,
        updates=total * config.ppo_epochs * config.minibatches,
        tokens=(config.max_new_tokens / 2 + float(np.mean([size[0] for size in train])))
        * config.batch_size * config.ppo_epochs * total,
        largest=read.largest,
        learn=asked * passes * total,
        read=reads * total,
        saves=_every(total, save_every),
        decode_steps=steps * total,
        decode_rows=rows * total,
        adapters=2 if own_critic else 1,
    )  # fmt: skip
    if held:
        evaluations = _every(total, save_every, eval_every) + 1
        asked, scored, steps, rows = play(held, 1)
        work.read = work.read + (2 * asked + scored) * evaluations
        work.decode_steps += steps * evaluations
        work.decode_rows += rows * evaluations
    return work
