"""What an episode of PPO is rewarded with: a reward model's score at its end, or a function of the user's."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.records import InputError, Prompt
from training.base import Base
from training.chat_template import decode
from training.config import PPOConfig
from training.packs import Group
from training.reward_model import in_words_of, load_reward_model


class Reward(NamedTuple):
    """Rewards of answers, and the mean and standard deviation that normalise an answer's sum of them."""

    of: Callable[[Sequence[Group], Sequence[Prompt]], list[list[Tensor]]]
    """For each group and each response k its raw rewards (T,), a number a token; records[group.index] is the prompt."""
    mean: float = 0.0
    std: float = 1.0


def load_reward(base: Base, config: PPOConfig) -> Reward:
    """The reward that the config names. Raises InputError where it names none, or one that cannot be had."""
    if config.reward_model:
        return by_model(base, config.reward_model, config)
    if config.reward_function:
        return Reward(_by_function(base, config.reward_function))
    raise InputError("PPO needs a reward: name a checkpoint with --reward-model, or --reward-function module:function")


def by_model(base: Base, name: str, config: PPOConfig) -> Reward:
    """The scores of the reward model of that name."""
    model = load_reward_model(base, name)

    def score(groups: Sequence[Group], records: Sequence[Prompt]) -> list[list[Tensor]]:
        read = in_words_of(model, base, groups, [record.messages for record in records])
        found = model.score(read, config.tokens_per_forward)
        return [
            [_at_end(value, ids) for value, ids in zip(values, group.responses, strict=True)]
            for values, group in zip(found, groups, strict=True)
        ]

    return Reward(score, model.mean, model.std)


def _by_function(base: Base, name: str) -> Callable[[Sequence[Group], Sequence[Prompt]], list[list[Tensor]]]:
    """function(prompts, completions[, tokens]): for each completion a number, or a list of one a token."""
    function = _import(name)
    wants_tokens = len(inspect.signature(function).parameters) > 2

    def call(groups: Sequence[Group], records: Sequence[Prompt]) -> list[list[Tensor]]:
        responses = [ids for group in groups for ids in group.responses]
        prompts = [list(records[group.index].messages) for group in groups for _ in group.responses]
        given: list[Any] = [prompts, [decode(base, ids) for ids in responses]]
        if wants_tokens:
            given.append([[base.tokenizer.decode([i]) for i in ids] for ids in responses])
        values = list(function(*given)) if responses else []
        if len(values) != len(responses):
            raise InputError(f"{name} returned {len(values)} rewards for {len(responses)} completions")
        found = iter([_checked(name, value, ids) for value, ids in zip(values, responses, strict=True)])
        return [[next(found) for _ in group.responses] for group in groups]

    return call


def _checked(name: str, value: Any, ids: Sequence[int]) -> Tensor:
    """A completion's rewards (T,) from what the function said of it."""
    along = isinstance(value, Sequence) and not isinstance(value, str)
    try:
        numbers = [float(v) for v in value] if along else [float(value)]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} must return one finite number, or one a token, for each completion; not {value!r}")
    if not along:
        return _at_end(numbers[0], ids)
    if len(numbers) != len(ids):
        raise InputError(
            f"{name} returned {len(numbers)} rewards for a completion of {len(ids)} tokens; the end token is one of "
            "them: take a third parameter, tokens, to see them"
        )
    return torch.tensor(numbers)


def _at_end(score: float, ids: Sequence[int]) -> Tensor:
    rewards = torch.zeros(len(ids))
    rewards[-1] = score
    return rewards


def _import(name: str) -> Callable[..., Sequence[Any]]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward_function {name!r} cannot be imported ({error}); write module:function") from None
