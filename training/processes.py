"""Several processes, one result: each computes its share of a batch, sums run over all. One process needs none of it.

Started by `accelerate launch --num_processes N -m training ...`. Every process reads the same data and makes the same
batches; random streams are keyed by what they are for, never by the process. Only the main process writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

T = TypeVar("T")


def is_main() -> bool:
    """Whether this process writes."""
    return bool(PartialState().is_main_process)


def share(items: Sequence[T]) -> list[T]:
    """The items that this process computes: every P-th of them, from its own number on."""
    state = PartialState()
    return list(items[state.process_index :: state.num_processes])


def gather(results: Sequence[T]) -> list[T]:
    """The results of everybody's `share`, in the order of the items that were shared out."""
    if PartialState().num_processes == 1:
        return list(results)
    shares: list[list[T]] = gather_object([list(results)])
    longest = max(map(len, shares))
    return [part[i] for i in range(longest) for part in shares if i < len(part)]


def add_up(values: Mapping[str, float]) -> dict[str, float]:
    """Each number summed over the processes; a name that one of them lacks counts as 0 there."""
    if PartialState().num_processes == 1:
        return dict(values)
    total: dict[str, float] = {}
    for part in gather_object([dict(values)]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients over the processes, in one message; without one a parameter that learns counts as 0."""
    if PartialState().num_processes == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    parts = reduce(flat, "sum").split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return add_up({"flag": float(flag)})["flag"] > 0


def wait() -> None:
    """Until everybody is here."""
    PartialState().wait_for_everyone()
