"""From records to tensors: tokens, the packed layout with shared prompts, masks and positions.

Layout. A forward reads ONE row of T tokens that holds several groups one after the other. A group is a prompt followed
by its K responses; each response sees the prompt and itself, and its positions continue from the prompt's end:

    prompt a | response a1 | response a2 | prompt b | response b1 | ...
    0 1 2 3  | 4 5 6       | 4 5         | 0 1      | 2 3 4

So a prompt is read once for all its responses, nothing is padded, and supervised, reward, DPO and PPO forwards are one
and the same thing. Notation for shapes: T tokens in a pack, M responses, N response tokens.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from data.preferences import Comparison, comparisons, fingerprint
from data.records import Demonstration, InputError, Message, Prompt, Ranking
from training.base import Base
from training.chat_template import encode_prompt, encode_response

T = TypeVar("T")
Record = TypeVar("Record", Ranking, Demonstration)


@dataclass
class Group:
    """A tokenised prompt and its responses.

    `targets[k]` marks the tokens of response k that are learned from (None: all of them). What was read from a file
    holds its ids as arrays of four bytes each: a list takes 8 bytes a token and 32 more for every number above 256.
    """

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]
    targets: list[list[bool] | None] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    weight: float = 1.0
    index: int = 0

    @property
    def length(self) -> int:
        """Tokens of the group in the packed layout."""
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass
class Pack:
    """Tensors of one forward.

    `predictors` (N,): where the token that predicts each response token lies; `targets` (N,): that response token;
    `response` (N,): which response it belongs to; `last` (M,): where each response's last token lies;
    `members` [M]: (number of the group in `groups`, k).
    """

    groups: list[Group]
    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    attention_mask: torch.Tensor  # (1, 1, T, T), True where a token may look
    predictors: torch.Tensor
    targets: torch.Tensor
    response: torch.Tensor
    last: torch.Tensor
    members: list[tuple[int, int]]

    def inputs(self) -> dict[str, torch.Tensor]:
        """What the decoder takes."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }

    def sum_per_response(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) summed to (M,)."""
        return torch.zeros(len(self.members), dtype=values.dtype, device=values.device).index_add(
            0, self.response, values
        )


def pack(groups: Sequence[Group], device: torch.device) -> Pack:
    """Lay groups out in one row."""
    ids: list[int] = []
    positions: list[int] = []
    branch: list[int] = []  # 0 in a prompt, k + 1 in response k
    owner: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    response: list[int] = []
    last: list[int] = []
    members: list[tuple[int, int]] = []
    for number, group in enumerate(groups):
        size = len(group.prompt)
        prompt_end = len(ids) + size - 1
        ids += group.prompt
        positions += range(size)
        branch += [0] * size
        for k, tokens in enumerate(group.responses):
            start = len(ids)
            marks = group.targets[k] if group.targets else None
            for offset, token in enumerate(tokens):
                if marks is None or marks[offset]:
                    predictors.append(start + offset - 1 if offset else prompt_end)
                    targets.append(token)
                    response.append(len(members))
            ids += tokens
            positions += range(size, size + len(tokens))
            branch += [k + 1] * len(tokens)
            last.append(len(ids) - 1)
            members.append((number, k))
        owner += [number] * group.length
    b, o = torch.tensor(branch, device=device), torch.tensor(owner, device=device)
    mask = (o[:, None] == o) & ((b == 0) | (b[:, None] == b))
    mask = mask.tril_()
    as_tensor = lambda values: torch.tensor(values, dtype=torch.long, device=device)  # noqa: E731
    return Pack(
        list(groups), as_tensor(ids)[None], as_tensor(positions)[None], mask[None, None], as_tensor(predictors),
        as_tensor(targets), as_tensor(response), as_tensor(last), members,
    )  # fmt: skip


def packs(groups: Iterable[Group], tokens_per_forward: int, device: torch.device) -> Iterator[Pack]:
    """Pack groups, longest first, each into the first row that has room; a longer group gets a row of its own."""
    rows: list[list[Group]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda g: -g.length):
        for number, left in enumerate(room):
            if group.length <= left:
                rows[number].append(group)
                room[number] -= group.length
                break
        else:
            rows.append([group])
            room.append(tokens_per_forward - group.length)
    for row in rows:
        yield pack(row, device)


def per_response(
    groups: Sequence[Group],
    tokens_per_forward: int,
    device: torch.device,
    compute: Callable[[Pack], torch.Tensor],
) -> list[list[float]]:
    """What `compute` (a pack to M numbers) finds for every group's responses, in the groups' order.

    Responses need not be read together here, so a group longer than a forward is read in several, its prompt repeated.
    """
    results: list[list[float]] = [[0.0] * len(group.responses) for group in groups]
    parts: list[Group] = []
    places: dict[int, tuple[int, int]] = {}  # of each part: its group, and the number of its first response
    for number, group in enumerate(groups):
        for first, responses in _portions(group, tokens_per_forward):
            parts.append(Group(group.prompt, responses))
            places[id(parts[-1])] = number, first
    for found in packs(parts, tokens_per_forward, device):
        for (member, k), value in zip(found.members, compute(found).tolist(), strict=True):
            number, first = places[id(found.groups[member])]
            results[number][first + k] = value
    return results


def _portions(group: Group, tokens: int) -> Iterator[tuple[int, Sequence[Sequence[int]]]]:
    """(number of the first, responses that fit into a forward with their prompt); at least one each."""
    first, used = 0, len(group.prompt)
    for k, response in enumerate(group.responses):
        used += len(response)
        if used > tokens and k > first:
            yield first, group.responses[first:k]
            first, used = k, len(group.prompt) + len(response)
    if group.responses:
        yield first, group.responses[first:]


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
