"""The frozen base split over the processes, for models that one device cannot hold; adapters and heads stay whole.

Each decoder layer is sharded (torch's fully_shard, after ZeRO, arXiv:1910.02054): a process keeps its part of the
weights and gathers a layer's whole only while it computes it. So every forward of one process needs all the others.
But processes compute different things: shares differ, rollouts differ in length, what is remembered is not computed
again. Therefore each announces what it is about to do; who has nothing of the kind to do takes part with one token that
counts for nothing, until all have come to the next message (`processes`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from data.records import InputError
from training import processes
from training.base import Base

IDLE, BACKWARD, TRAINING, READING = 0, 1, 2, 1_000_000
"""What a process is about to do; the highest number is done first. TRAINING + n is a forward with gradients for the
n-th adapter, because how far gradients go back depends on it. A backward goes through all forwards since the last."""


def shard(base: Base) -> None:
    """Split the base's layers over the processes, before any adapter is added. Raises InputError where it cannot."""
    if processes.count() == 1:
        raise InputError("shard_base splits the base over several processes; start them with accelerate launch")
    Lockstep(base)


class Lockstep:
    """Keeps the processes' forwards and backwards of a sharded base together."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.decoder = base.model.get_decoder()
        layers = [module for module in self.decoder.modules() if isinstance(module, nn.ModuleList)][:1]
        if not layers:
            raise InputError(f"{base.name} has no list of layers that shard_base could split")
        mesh = init_device_mesh(base.device.type, (processes.count(),))
        for layer in layers[0]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        whole = {parameter for parameter in self.decoder.parameters() if not hasattr(parameter, "to_local")}
        fully_shard(self.decoder, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        self.owed: list[Tensor] = []  # of forwards with gradients that were only taken part in
        self.taking_part = False
        self.decoder.register_forward_pre_hook(self._before_forward, prepend=True)
        base.before_backward = lambda: self._agree(BACKWARD)  # not in a hook: torch takes a forward inside a backward
        processes.before_talking(lambda: self._agree(IDLE))  # for one of gradient checkpointing

    def _agree(self, wanted: int) -> None:
        """Take part in what others do first, until it is time for what is wanted here."""
        while (now := self._highest(wanted)) != wanted:
            self.taking_part = True
            try:
                self._take_part(now)
            finally:
                self.taking_part = False

    def _highest(self, wanted: int) -> int:
        now = torch.tensor([wanted], device=self.base.device)
        distributed.all_reduce(now, distributed.ReduceOp.MAX)
        return int(now)

    def _take_part(self, now: int) -> None:
        if now == BACKWARD:
            if self.owed:
                torch.stack(self.owed).sum().backward()
            self.owed.clear()
            return
        names = self._names()
        adapter = None if now == READING else names[now - TRAINING]
        token = torch.zeros(1, 1, dtype=torch.long, device=self.base.device)
        with torch.set_grad_enabled(now != READING), self.base.using(adapter):
            hidden = self.base.hidden(token)
        if hidden.requires_grad:
            self.owed.append(hidden.sum() * 0)

    def _names(self) -> list[str]:
        return list(self.base.peft.peft_config) if self.base.peft is not None else []

    def _before_forward(self, *_: Any) -> None:
        if not self.taking_part:
            adapter = self.base.active_adapter
            training = torch.is_grad_enabled() and adapter is not None
            self._agree(TRAINING + self._names().index(adapter) if training and adapter else READING)
