"""Several processes, one result: each computes its share of a batch, sums run over all. One process needs none of it.

Started by `accelerate launch --multi_gpu --num_processes N -m training ...` (without GPUs too: accelerate 1.15 starts
one process otherwise) or by torchrun. Every process reads the same data and makes the same batches; random streams are
keyed by what they are for, never by the process. Only the main process writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from data.records import InputError
from training import cores

T = TypeVar("T")


_settle: list[Callable[[], None]] = []


class PeerLost(InputError):
    """Another process of this run ended, so that nothing can be summed any more."""


def before_talking(settle: Callable[[], None]) -> None:
    """Have this done before every message."""
    _settle.append(settle)


@contextmanager
def _talking() -> Iterator[None]:
    """A message between the processes; says plainly when there is nobody at the other end."""
    try:
        for settle in _settle:
            settle()
        yield
    except RuntimeError as error:
        raise PeerLost(
            f"another process of this run ended or does not answer; its own error is in the log ({_first_line(error)})"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def state() -> PartialState:
    """What accelerate knows of the processes. Where a launcher started several without GPUs, gloo connects them."""
    if "LOCAL_RANK" in os.environ and not torch.cuda.is_available():
        return PartialState(cpu=True)
    return PartialState()


def alone_by_mistake() -> bool:
    """Whether `accelerate launch` was asked for several processes and started this one only."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and count() == 1


def count() -> int:
    """How many processes train together."""
    return int(state().num_processes)


def set_threads(number: int) -> None:
    """Use this many processor threads (0: one a core, shared with the other processes on this machine)."""
    torch.set_num_threads(number or max(1, cores.available() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def is_main() -> bool:
    """Whether this process writes."""
    return bool(state().is_main_process)


def share(items: Sequence[T]) -> list[T]:
    """The items that this process computes: every P-th of them, from its own number on."""
    return list(items[state().process_index :: state().num_processes])


def gather(results: Sequence[T]) -> list[T]:
    """The results of everybody's `share`, in the order of the items that were shared out."""
    if state().num_processes == 1:
        return list(results)
    with _talking():
        shares: list[list[T]] = gather_object([list(results)])
    longest = max(map(len, shares))
    return [part[i] for i in range(longest) for part in shares if i < len(part)]


def add_up(values: Mapping[str, float]) -> dict[str, float]:
    """Each number summed over the processes; a name that one of them lacks counts as 0 there."""
    if state().num_processes == 1:
        return dict(values)
    total: dict[str, float] = {}
    with _talking():
        parts = gather_object([dict(values)])
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients over the processes, in one message; without one a parameter that learns counts as 0."""
    if state().num_processes == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    with _talking():
        parts = reduce(flat, "sum").split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return add_up({"flag": float(flag)})["flag"] > 0


def from_main(value: T) -> T:
    """The main process's value, for everybody; what the others pass is not looked at."""
    if state().num_processes == 1:
        return value
    with _talking():
        (shared,) = broadcast_object_list([value if is_main() else None])
    return shared


def wait() -> None:
    """Until everybody is here."""
    with _talking():
        state().wait_for_everyone()


def leave() -> None:
    """Close the connections; the last thing a process does."""
    if state().num_processes > 1:
        state().destroy_process_group()
