"""The packed layout: a forward reads ONE row of T tokens that holds several groups one after the other.

A group is a prompt followed by its K responses; each response sees the prompt and itself, and its positions continue
from the prompt's end:

    prompt a | response a1 | response a2 | prompt b | response b1 | ...
    0 1 2 3  | 4 5 6       | 4 5         | 0 1      | 2 3 4

So a prompt is read once for all its responses, what all prompts of a row begin with (a system message) is read once
for all of them, nothing is padded, and supervised, reward, DPO and PPO forwards are one and the same thing. Notation
for shapes: T tokens in a pack, M responses, N response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch

from data.preferences import Comparison
from training.attention import Block, Layout

BLOCK_COST = 15_000
"""What another block of attention costs, in pairs of tokens: 0.3 ms a layer against 20 ns, on two cores."""
BLOCK_SIZE = 60_000
"""Pairs of tokens in a block at most: more do not fit into a processor's cache, and much of a large block is masked."""


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
    `response` (N,): which response it belongs to; `last` (M,): where each response's last token lies; `members` [M]:
    (number of the group in `groups`, k); `shared`: how many tokens of the first prompt the others begin with and do
    not repeat; `trunk`: hidden states after so many layers that no adapter changes, once they were computed.
    """

    groups: list[Group]
    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    predictors: torch.Tensor
    targets: torch.Tensor
    response: torch.Tensor
    last: torch.Tensor
    members: list[tuple[int, int]]
    shared: int
    trunk: dict[int, torch.Tensor] = field(default_factory=dict)

    def _squares(self) -> Iterator[Square]:
        """Each group, or its prompt and each of its responses where that pays."""
        start = 0
        for number, group in enumerate(self.groups):
            shared = list(range(self.shared if number else 0))
            own = start + len(group.prompt) - len(shared)
            end = start + group.length - len(shared)
            sizes, seen = [len(response) for response in group.responses], [*shared, *range(start, own)]
            apart = (own - start) * len(seen) + sum(size * (len(seen) + size) for size in sizes)
            if (end - start) * group.length - apart > BLOCK_COST * len(sizes):
                yield _square(range(start, own), seen, [0] * len(seen))
                for size in sizes:
                    keys = [*seen, *range(own, own + size)]
                    yield _square(range(own, own + size), keys, [0] * len(keys))
                    own += size
            else:
                branch = [0] * len(seen) + [k + 1 for k, size in enumerate(sizes) for _ in range(size)]
                yield _square(range(start, end), [*shared, *range(start, end)], branch)
            start = end

    def blocks(self) -> Iterator[Block]:
        """Which tokens look where: large squares are cut, those of like size filled up to one block where it pays."""
        pieces = [piece for square in self._squares() for piece in _cut(square)]
        pieces.sort(key=lambda square: square[2].shape, reverse=True)
        for start, end in _runs([square[2].shape for square in pieces]):
            yield _block(pieces[start:end])

    @property
    def attention_mask(self) -> torch.Tensor:
        """(1, 1, T, T), True where a token may look."""
        length = self.input_ids.shape[1]
        mask = torch.zeros(length, length, dtype=torch.bool)
        for rows, keys, looks in self._squares():
            mask[rows[:, None], keys] = looks
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


Square: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Tokens (n,), tokens that they look at (m,), and where (n, m)."""


def _square(rows: Iterable[int], keys: Iterable[int], branch: Sequence[int]) -> Square:
    """The last of the keys are the rows themselves; a token looks back at its own branch and at branch 0."""
    r, k, b = (torch.tensor(list(numbers)) for numbers in (rows, keys, branch))
    own = b[len(k) - len(r) :]
    return r, k, (k <= r[:, None]) & ((b == 0) | (b == own[:, None]))


def _cut(square: Square) -> Iterator[Square]:
    """Pieces of its rows; of the keys each has those up to its last row."""
    rows, keys, looks = square
    size = math.ceil(len(rows) / math.ceil(looks.numel() / BLOCK_SIZE))
    for start in range(0, len(rows), size):
        end = min(start + size, len(rows))
        seen = len(keys) - len(rows) + end
        yield rows[start:end], keys[:seen], looks[start:end, :seen]


def _runs(shapes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(first, end) of the neighbours that one block holds, so that BLOCK_COST and filling together cost least."""
    best: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
    for end in range(1, len(shapes) + 1):
        choices = list[tuple[float, int]]()
        n = m = 0
        for start in range(end - 1, -1, -1):
            n, m = max(n, shapes[start][0]), max(m, shapes[start][1])
            choices.append((best[start][0] + BLOCK_COST + n * m * (end - start), start))
        cost, start = min(choices)
        best.append((cost, [*best[start][1], (start, end)]))
    return best[-1][1]


def _block(squares: Sequence[Square]) -> Block:
    """Squares one above the other, filled up on the right and below."""
    n, m = (max(looks.shape[side] for _, _, looks in squares) for side in (0, 1))
    pad = torch.nn.functional.pad
    return Block(
        torch.stack([pad(rows, (0, n - len(rows))) for rows, _, _ in squares]),
        torch.stack([pad(keys, (0, m - len(keys))) for _, keys, _ in squares]),
        torch.stack([pad(looks, (0, m - looks.shape[1], 0, n - looks.shape[0])) for _, _, looks in squares]),
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
    shared = common_start([group.prompt for group in groups])
    for number, group in enumerate(groups):
        size, known = len(group.prompt), shared if number else 0
        ids += group.prompt[known:]
        positions += range(known, size)
        prompt_end = len(ids) - 1
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
        as_tensor(targets), as_tensor(response), as_tensor(last), members, shared,
    )  # fmt: skip


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of several prompts begin with, such as a system message; each keeps a token of its own."""
    if len(prompts) < 2:
        return 0
    first, shortest = prompts[0], max(0, min(map(len, prompts)) - 1)
    return next((n for n in range(shortest) if any(ids[n] != first[n] for ids in prompts)), shortest)


def packs(groups: Iterable[Group], tokens_per_forward: int, device: torch.device) -> Iterator[Pack]:
    """Pack groups, longest first, each into the first row that has room; a longer group gets a row of its own."""
    rows: list[list[Group]] = []
    room: list[int] = []
    waiting = sorted(groups, key=lambda g: -g.length)
    shared = common_start([group.prompt for group in waiting])
    for group in waiting:
        for number, left in enumerate(room):
            if group.length - shared <= left:
                rows[number].append(group)
                room[number] -= group.length - shared
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
