"""The packed layout: a forward reads ONE row of T tokens that holds several groups one after the other.

A group is a prompt followed by its K responses; each response sees the prompt and itself, and its positions continue
from the prompt's end:

    prompt a | response a1 | response a2 | prompt b | response b1 | ...
    0 1 2 3  | 4 5 6       | 4 5         | 0 1      | 2 3 4

So a prompt is read once for all its responses, nothing is padded, and supervised, reward, DPO and PPO forwards are one
and the same thing. Notation for shapes: T tokens in a pack, M responses, N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from data.preferences import Comparison
from training.attention import Block, Layout

BLOCK_COST = 15_000
"""What another block of attention costs, in pairs of tokens: 0.3 ms a layer against 20 ns, on two cores."""


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

    `predictors` (N,): where the token that predicts each response
    token lies; `targets` (N,): that response token; `response` (N,): which response it belongs to; `last` (M,): where
    each response's last token lies; `members` [M]: (number of the group in `groups`, k).
    """

    groups: list[Group]
    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    predictors: torch.Tensor
    targets: torch.Tensor
    response: torch.Tensor
    last: torch.Tensor
    members: list[tuple[int, int]]

    def blocks(self) -> Iterator[Block]:
        """Which tokens look where: a block for each group, or for its prompt and each response where that pays."""
        start = 0
        for group in self.groups:
            end, own = start + group.length, start + len(group.prompt)
            sizes = [len(response) for response in group.responses]
            apart = len(group.prompt) ** 2 + sum(size * (len(group.prompt) + size) for size in sizes)
            if group.length**2 - apart > BLOCK_COST * len(sizes):
                yield Block(start, own, start, start, torch.ones(own - start, own - start, dtype=torch.bool).tril_())
                for size in sizes:
                    before = len(group.prompt)
                    looks = torch.ones(size, before + size, dtype=torch.bool).tril_(before)
                    yield Block(own, own + size, start, start + before, looks)
                    own += size
            else:
                branch = torch.tensor([0] * len(group.prompt) + [k + 1 for k, n in enumerate(sizes) for _ in range(n)])
                looks = ((branch == 0) | (branch[:, None] == branch)).tril_()
                yield Block(start, end, start, start, looks)
            start = end

    @property
    def attention_mask(self) -> torch.Tensor:
        """(1, 1, T, T), True where a token may look."""
        length = self.input_ids.shape[1]
        mask = torch.zeros(length, length, dtype=torch.bool)
        for start, end, prefix_start, prefix_end, looks in self.blocks():
            before = prefix_end - prefix_start
            mask[start:end, prefix_start:prefix_end] = looks[:, :before]
            mask[start:end, start:end] = looks[:, before:]
        return mask[None, None].to(self.input_ids.device)

    @cached_property
    def layout(self) -> Layout:
        """The same for packed attention."""
        return Layout(self.blocks())

    def inputs(self) -> dict[str, torch.Tensor]:
        """What any decoder takes."""
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
            last.append(len(ids) - 1)
            members.append((number, k))
    as_tensor = lambda values: torch.tensor(values, dtype=torch.long, device=device)  # noqa: E731
    return Pack(
        list(groups), as_tensor(ids)[None], as_tensor(positions)[None], as_tensor(predictors),
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
