"""From records to groups of tokens: the chat template, what fits, what is skipped and counted, and the batches."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from data.preferences import comparisons, fingerprint
from data.records import Demonstration, InputError, Message, Prompt, Ranking
from training.base import Base
from training.chat_template import encode_prompt, encode_response
from training.packs import Group

T = TypeVar("T")
Record = TypeVar("Record", Ranking, Demonstration)


@dataclass
class Fit:
    """What became of a file's records. `shortened` counts those kept without their prompt's oldest turns.

    Not learned from: `left_out`, longer than `max_length` even so; `duplicates`, which repeat an earlier record, its
    annotator included; `identical`, whose completions all read the same, so that there is nothing to prefer.
    """

    kept: int = 0
    shortened: int = 0
    left_out: int = 0
    duplicates: int = 0
    identical: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts by name, for a manifest."""
        return asdict(self)

    def describe(self, what: str, max_length: int) -> str:
        """One line for the log."""
        text = f"{self.kept} {what}"
        if self.shortened:
            text += f", {self.shortened} of them with their prompt's oldest turns dropped"
        if self.left_out:
            text += f"; {self.left_out} left out: longer than max_length {max_length} tokens even so"
        if self.duplicates:
            text += f"; {self.duplicates} skipped: they repeat an earlier row"
        if self.identical:
            text += f"; {self.identical} skipped: their completions are all the same"
        return text


def encode_rankings(base: Base, rankings: Sequence[Ranking], max_length: int) -> tuple[list[Group], Fit]:
    """Groups of rankings; the completions that nobody ranked are dropped."""
    groups, fit, max_length = [], Fit(), min(max_length, base.context_length)
    for index, ranking in _distinct(rankings, fit):
        ranked = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
        place = {k: i for i, k in enumerate(ranked)}
        pairs = [c._replace(winner=place[c.winner], loser=place[c.loser]) for c in comparisons(ranking)]
        if not pairs:
            fit.identical += 1
            continue
        responses = [array("i", encode_response(base, ranking.completions[k], ranking.ended[k])) for k in ranked]
        prompt = _fit_prompt(base, ranking.prompt.messages, max_length - max(map(len, responses)), fit, ranking.place)
        if prompt is not None:
            groups.append(Group(prompt, responses, comparisons=pairs, weight=ranking.weight, index=index))
    return _nonempty(groups, fit, "preferences", max_length), fit


def encode_prompts(base: Base, prompts: Sequence[Prompt], max_prompt_length: int) -> tuple[list[Group], Fit]:
    """Groups without responses. A prompt that is given twice is sampled twice as often."""
    groups, fit = [], Fit()
    max_prompt_length = min(max_prompt_length, base.context_length)
    for index, prompt in enumerate(prompts):
        ids = _fit_prompt(base, prompt.messages, max_prompt_length, fit, prompt.place)
        if ids is not None:
            groups.append(Group(ids, [], index=index))
    return _nonempty(groups, fit, "prompts", max_prompt_length), fit


def encode_demonstrations(
    base: Base, demonstrations: Sequence[Demonstration], max_length: int
) -> tuple[list[Group], Fit]:
    """Groups whose one response is learned from where the assistant speaks."""
    groups, fit, max_length = [], Fit(), min(max_length, base.context_length)
    for index, demonstration in _distinct(demonstrations, fit):
        encoded = _encode_conversation(base, demonstration, max_length)
        if encoded is None:
            fit.left_out += 1
            continue
        fit.kept += 1
        prompt, response, targets = encoded
        groups.append(Group(array("i", prompt), [array("i", response)], [targets], index=index))
    return _nonempty(groups, fit, "demonstrations", max_length), fit


def _distinct(records: Sequence[Record], fit: Fit) -> Iterator[tuple[int, Record]]:
    """(index, record) of the records that do not repeat an earlier one; counts those that do."""
    seen: set[bytes] = set()
    for index, record in enumerate(records):
        key = fingerprint(record)
        if key in seen:
            fit.duplicates += 1
        else:
            seen.add(key)
            yield index, record


def _nonempty(groups: list[Group], fit: Fit, what: str, max_length: int) -> list[Group]:
    if not groups and fit.left_out:
        raise InputError(f"none of the {fit.left_out} {what} fits into max_length {max_length} tokens; raise it")
    if not groups:
        raise InputError(f"nothing is left to learn from: {fit.describe(what, max_length)}")
    return groups


def _fit_prompt(base: Base, messages: Sequence[Message], room: int, fit: Fit, place: str) -> array[int] | None:
    """The prompt's ids, its oldest turns (never the system message) dropped until it fits; None where it cannot.

    The fewest turns that have to go are found by bisection: a conversation of thousands is read a dozen times.
    """
    oldest = 1 if messages[0]["role"] == "system" else 0
    most = (len(messages) - oldest - 1) // 2  # pairs of turns that may go, so that a user's turn is left

    def encode(dropped: int) -> list[int]:
        return _at(place, encode_prompt, base, [*messages[:oldest], *messages[oldest + 2 * dropped :]])

    ids, dropped = encode(0), 0
    if len(ids) > room:
        dropped = 1 + bisect_left(range(1, most + 1), True, key=lambda count: len(encode(count)) <= room)
        if dropped > most:
            fit.left_out += 1
            return None
        ids = encode(dropped)
    fit.kept += 1
    fit.shortened += dropped > 0
    return array("i", ids)


def _at(place: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call the function; what it says of the input is said of that place in the file."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{place}: {error}" if place else str(error)) from None


def _encode_conversation(
    base: Base, demonstration: Demonstration, max_length: int
) -> tuple[list[int], list[int], list[bool]] | None:
    """(prompt, everything after it, which of that the assistant says): each turn is encoded as it would be sampled.

    None where it is longer than `max_length`; what lies beyond is not even read.
    """
    messages = demonstration.messages
    prompt: list[int] | None = None
    response: list[int] = []
    marks: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < demonstration.first_target:
            continue
        before = _at(demonstration.place, encode_prompt, base, messages[:i])
        if len(before) > max_length:
            return None
        if prompt is None or before[: len(prompt) + len(response)] != prompt + response:
            prompt, response, marks = before, [], []  # the first answer, or a template that rewrites earlier turns
        else:
            between = before[len(prompt) + len(response) :]  # the template's words between two answers
            response, marks = response + between, marks + [False] * len(between)
        ended = demonstration.ended or i < len(messages) - 1
        answer = encode_response(base, message["content"], ended)
        response, marks = response + answer, marks + [True] * len(answer)
    assert prompt is not None
    return (prompt, response, marks) if len(prompt) + len(response) <= max_length else None


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count), the same for the same seed and epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(count)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in which everything is seen once; the last may be smaller."""
    return -(-count // batch_size)


def batch_of_step(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the batch of step 1, 2, ...: each epoch's permutation cut into batches."""
    epoch, number = divmod(step - 1, steps_per_epoch(count, batch_size))
    return [int(i) for i in shuffled(count, seed, epoch)[number * batch_size : (number + 1) * batch_size]]
