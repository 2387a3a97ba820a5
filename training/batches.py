"""From records to groups of tokens: the chat template, what fits, what is skipped and counted, and the batches."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TypeAlias, TypeVar

import numpy as np

from data.preferences import comparisons, fingerprint
from data.records import Demonstration, InputError, Message, Prompt, Ranking
from data.stored import Stored
from training.base import Base
from training.chat_template import Text, encode_texts, prompt_texts, response_text
from training.packs import Group

T = TypeVar("T")
Record = TypeVar("Record", Ranking, Demonstration)
Say: TypeAlias = Callable[[str], None]
Encoding: TypeAlias = Generator[list[Text], list[list[int]], T]
"""Asks for texts, is sent their token ids, and returns what it makes of them."""
ROWS_TOGETHER = 512


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


def encode_rankings(
    base: Base, rankings: Sequence[Ranking], max_length: int, say: Say | None = None
) -> tuple[Sequence[Group], Fit]:
    """Groups of rankings; the completions that nobody ranked are dropped. `say` hears of a long work's progress."""
    fit, max_length = Fit(), min(max_length, base.context_length)

    def encode(index: int, ranking: Ranking) -> Encoding[Group | None]:
        ranked = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
        place = {k: i for i, k in enumerate(ranked)}
        pairs = [c._replace(winner=place[c.winner], loser=place[c.loser]) for c in comparisons(ranking)]
        if not pairs:
            fit.identical += 1
            return None
        end = [base.answer_form.end_id]
        found = yield [response_text(base, ranking.completions[k]) for k in ranked]
        responses = [array("i", ids + end * ranking.ended[k]) for k, ids in zip(ranked, found, strict=True)]
        room = max_length - max(map(len, responses))
        prompt = yield from _fit_prompt(base, ranking.prompt.messages, room, fit, ranking.place)
        if prompt is None:
            return None
        return Group(prompt, responses, comparisons=pairs, weight=ranking.weight, index=index)

    distinct = (encode(index, ranking) for index, ranking in _distinct(rankings, fit))
    groups = _encode_all(base, distinct, len(rankings), "rankings", say)
    return _nonempty(groups, fit, "preferences", max_length), fit


def encode_prompts(
    base: Base, prompts: Sequence[Prompt], max_prompt_length: int, say: Say | None = None
) -> tuple[Sequence[Group], Fit]:
    """Groups without responses. A prompt that is given twice is sampled twice as often."""
    fit, max_prompt_length = Fit(), min(max_prompt_length, base.context_length)

    def encode(index: int, prompt: Prompt) -> Encoding[Group | None]:
        ids = yield from _fit_prompt(base, prompt.messages, max_prompt_length, fit, prompt.place)
        return None if ids is None else Group(ids, [], index=index)

    every = (encode(index, prompt) for index, prompt in enumerate(prompts))
    groups = _encode_all(base, every, len(prompts), "prompts", say)
    return _nonempty(groups, fit, "prompts", max_prompt_length), fit


def encode_demonstrations(
    base: Base, demonstrations: Sequence[Demonstration], max_length: int, say: Say | None = None
) -> tuple[Sequence[Group], Fit]:
    """Groups whose one response is learned from where the assistant speaks."""
    fit, max_length = Fit(), min(max_length, base.context_length)

    def encode(index: int, demonstration: Demonstration) -> Encoding[Group | None]:
        encoded = yield from _encode_conversation(base, demonstration, max_length)
        if encoded is None:
            fit.left_out += 1
            return None
        fit.kept += 1
        prompt, response, targets = encoded
        return Group(array("i", prompt), [array("i", response)], [targets], index=index)

    distinct = (encode(index, demonstration) for index, demonstration in _distinct(demonstrations, fit))
    groups = _encode_all(base, distinct, len(demonstrations), "demonstrations", say)
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


def _encode_all(
    base: Base, encodings: Iterable[Encoding[Group | None]], total: int, what: str, say: Say | None
) -> Sequence[Group]:
    """The groups that were made, in order; says every ten seconds how far it is."""

    def each() -> Iterator[Group]:
        started = said = time.monotonic()
        for done, group in enumerate(_side_by_side(base, encodings), 1):
            now = time.monotonic()
            if say and now - said > 10:
                said = now
                say(f"tokenised {done} of {total} {what}, about {(now - started) / done * (total - done):.0f} s left")
            if group is not None:
                yield group

    return Stored(each())


def _side_by_side(base: Base, encodings: Iterable[Encoding[T]]) -> Iterator[T]:
    """What each encoding returns, in their order, as if each was finished before the next is begun.

    `ROWS_TOGETHER` go forward at once, so that what they want tokenised next is tokenised in one call.
    """
    encodings = iter(encodings)
    while chunk := list(islice(encodings, ROWS_TOGETHER)):
        results: dict[int, T | InputError] = {}
        answers: dict[int, list[list[int]] | None] = dict.fromkeys(range(len(chunk)))
        while answers:
            wanted: dict[int, list[Text]] = {}
            for number, answer in answers.items():
                try:
                    wanted[number] = next(chunk[number]) if answer is None else chunk[number].send(answer)
                except StopIteration as done:
                    results[number] = done.value
                except InputError as error:
                    results[number] = error
            found = iter(encode_texts(base, [text for texts in wanted.values() for text in texts]))
            answers = {number: list(islice(found, len(texts))) for number, texts in wanted.items()}
        for number in range(len(chunk)):
            result = results[number]
            if isinstance(result, InputError):
                raise result
            yield result


def _nonempty(groups: Sequence[Group], fit: Fit, what: str, max_length: int) -> Sequence[Group]:
    if not groups and fit.left_out:
        raise InputError(f"none of the {fit.left_out} {what} fits into max_length {max_length} tokens; raise it")
    if not groups:
        raise InputError(f"nothing is left to learn from: {fit.describe(what, max_length)}")
    return groups


def _prompt_ids(base: Base, messages: Sequence[Message], place: str) -> Encoding[list[int]]:
    """`encode_prompt`; what the template says against the prompt is said of its place in the file."""
    try:
        texts = prompt_texts(base, messages)
    except InputError as error:
        raise InputError(f"{place}: {error}" if place else str(error)) from None
    return list(chain.from_iterable((yield texts)))


def _fit_prompt(
    base: Base, messages: Sequence[Message], room: int, fit: Fit, place: str
) -> Encoding[array[int] | None]:
    """The prompt's ids, its oldest turns (never the system message) dropped until it fits; None where it cannot.

    The fewest turns that have to go are found by bisection: a conversation of thousands is read a dozen times.
    """
    oldest = 1 if messages[0]["role"] == "system" else 0
    most = (len(messages) - oldest - 1) // 2  # pairs of turns that may go, so that a user's turn is left
    ids = yield from _prompt_ids(base, messages, place)
    fits, dropped, most = (ids, 0, 0) if len(ids) <= room else (None, 1, most + 1)
    while dropped < most:
        middle = (dropped + most) // 2
        ids = yield from _prompt_ids(base, [*messages[:oldest], *messages[oldest + 2 * middle :]], place)
        if len(ids) <= room:
            fits, most = ids, middle
        else:
            dropped = middle + 1
    if fits is None:
        fit.left_out += 1
        return None
    fit.kept += 1
    fit.shortened += dropped > 0
    return array("i", fits)


def _encode_conversation(
    base: Base, demonstration: Demonstration, max_length: int
) -> Encoding[tuple[list[int], list[int], list[bool]] | None]:
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
        before = yield from _prompt_ids(base, messages[:i], demonstration.place)
        if len(before) > max_length:
            return None
        if prompt is None or before[: len(prompt) + len(response)] != prompt + response:
            prompt, response, marks = before, [], []  # the first answer, or a template that rewrites earlier turns
        else:
            between = before[len(prompt) + len(response) :]  # the template's words between two answers
            response, marks = response + between, marks + [False] * len(between)
        (answer,) = yield [response_text(base, message["content"])]
        if demonstration.ended or i < len(messages) - 1:
            answer = [*answer, base.answer_form.end_id]
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
