"""From records to tensors: tokens, the packed layout with shared prompts, masks and positions.

Layout. A forward reads ONE row of T tokens that holds several groups one after the other. A group is a prompt followed
by its K responses; each response sees the prompt and itself, and its positions continue from the prompt's end:

    prompt a | response a1 | response a2 | prompt b | response b1 | ...
    0 1 2 3  | 4 5 6       | 4 5         | 0 1      | 2 3 4

So a prompt is read once for all its responses, nothing is padded, and supervised, reward, DPO and PPO forwards are one
and the same thing. Notation for shapes: T tokens in a pack, M responses, N response tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from data.preferences import Comparison, comparisons
from data.records import Demonstration, InputError, Message, Prompt, Ranking
from training.base import Base
from training.rollout import encode_prompt


@dataclass
class Group:
    """A tokenised prompt and its responses.

    `targets[k]` marks the tokens of response k that are learned from (None: all of them).
    """

    prompt: list[int]
    responses: list[list[int]]
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


@dataclass
class Fit:
    """What `max_length` did to the data."""

    kept: int = 0
    shortened: int = 0
    left_out: int = 0

    def describe(self, what: str, max_length: int) -> str:
        """One line for the log."""
        text = f"{self.kept} {what}"
        if self.shortened:
            text += f", {self.shortened} of them with their prompt's oldest turns dropped"
        if self.left_out:
            text += f"; {self.left_out} left out: longer than max_length {max_length} tokens even so"
        return text


def encode_response(base: Base, text: str, ended: bool = True) -> list[int]:
    """Token ids of an assistant's answer, with the end token where the answer had come to its end."""
    ids = list(base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return [*ids, int(base.tokenizer.eos_token_id)] if ended else ids


def encode_rankings(base: Base, rankings: Sequence[Ranking], max_length: int) -> tuple[list[Group], Fit]:
    """Groups of rankings; the completions that nobody ranked are dropped."""
    groups, fit, max_length = [], Fit(), min(max_length, base.context_length)
    for index, ranking in enumerate(rankings):
        ranked = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
        place = {k: i for i, k in enumerate(ranked)}
        pairs = [c._replace(winner=place[c.winner], loser=place[c.loser]) for c in comparisons(ranking)]
        responses = [encode_response(base, ranking.completions[k], ranking.ended[k]) for k in ranked]
        prompt = _fit_prompt(base, ranking.prompt.messages, max_length - max(map(len, responses)), fit)
        if prompt is not None:
            groups.append(Group(prompt, responses, comparisons=pairs, weight=ranking.weight, index=index))
    return _nonempty(groups, fit, "preferences", max_length), fit


def encode_prompts(base: Base, prompts: Sequence[Prompt], max_prompt_length: int) -> tuple[list[Group], Fit]:
    """Groups without responses."""
    groups, fit = [], Fit()
    max_prompt_length = min(max_prompt_length, base.context_length)
    for index, prompt in enumerate(prompts):
        ids = _fit_prompt(base, prompt.messages, max_prompt_length, fit)
        if ids is not None:
            groups.append(Group(ids, [], index=index))
    return _nonempty(groups, fit, "prompts", max_prompt_length), fit


def encode_demonstrations(
    base: Base, demonstrations: Sequence[Demonstration], max_length: int
) -> tuple[list[Group], Fit]:
    """Groups whose one response is learned from where the assistant speaks."""
    groups, fit, max_length = [], Fit(), min(max_length, base.context_length)
    for index, demonstration in enumerate(demonstrations):
        prompt, response, targets = _encode_conversation(base, demonstration)
        if len(prompt) + len(response) > max_length:
            fit.left_out += 1
            continue
        fit.kept += 1
        groups.append(Group(prompt, [response], [targets], index=index))
    return _nonempty(groups, fit, "demonstrations", max_length), fit


def _nonempty(groups: list[Group], fit: Fit, what: str, max_length: int) -> list[Group]:
    if not groups:
        raise InputError(f"none of the {fit.left_out} {what} fits into max_length {max_length} tokens; raise it")
    return groups


def _fit_prompt(base: Base, messages: Sequence[Message], room: int, fit: Fit) -> list[int] | None:
    """The prompt's ids, its oldest turns (never the system message) dropped until it fits; None where it cannot."""
    kept = list(messages)
    ids = encode_prompt(base, kept)
    while len(ids) > room:
        oldest = 1 if kept[0]["role"] == "system" else 0
        if len(kept) - oldest < 3:  # one user turn left
            fit.left_out += 1
            return None
        del kept[oldest : oldest + 2]
        ids = encode_prompt(base, kept)
    fit.kept += 1
    fit.shortened += len(kept) < len(messages)
    return ids


def _encode_conversation(base: Base, demonstration: Demonstration) -> tuple[list[int], list[int], list[bool]]:
    """(prompt, everything after it, which of that the assistant says): each turn is encoded as it would be sampled."""
    messages = demonstration.messages
    prompt: list[int] | None = None
    response: list[int] = []
    marks: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < demonstration.first_target:
            continue
        before = encode_prompt(base, messages[:i])
        if prompt is None or before[: len(prompt) + len(response)] != prompt + response:
            prompt, response, marks = before, [], []  # the first answer, or a template that rewrites earlier turns
        else:
            between = before[len(prompt) + len(response) :]  # the template's words between two answers
            response, marks = response + between, marks + [False] * len(between)
        ended = demonstration.ended or i < len(messages) - 1
        answer = encode_response(base, message["content"], ended)
        response, marks = response + answer, marks + [True] * len(answer)
    assert prompt is not None
    return prompt, response, marks


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
