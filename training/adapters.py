"""LoRA layers of one frozen base that several adapters share, and the choice of the active one.

PEFT makes and stores the parameters; the forward is ours. PEFT's own computes in the adapter's precision (fp32 on a
bf16 base costs a third of the speed) and switches adapters by visiting every layer. Here the adapter keeps fp32
masters, computes in the base's precision, and switching is one assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from data.records import InputError
from training.lora import lora_linear
from training.trunk import layers_of


class ActiveAdapter:
    """Which adapter the layers apply: a name, or None for the plain base; and whether fast paths are taken."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.fast = True

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Apply `name` inside the block."""
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before


def take_over(model: PeftModel, active: ActiveAdapter) -> None:
    """Replace the forward of every LoRA layer of `model` by ours. Layers that have it already are left alone."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and not hasattr(module, "_active"):
            if not isinstance(module.get_base_layer(), nn.Linear) or getattr(module, "fan_in_fan_out", False):
                raise InputError(
                    f"LoRA on {type(module.get_base_layer()).__name__} layers is not supported; choose lora_targets "
                    "that are linear layers"
                )
            object.__setattr__(module, "_active", active)
            module.forward = _forward.__get__(module)


def _forward(self: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """y = W x + scale · B A dropout(x), for x of shape (..., d_in); LoRA, arXiv:2106.09685, eq. 3."""
    name = self._active.name
    if name is None or name not in self.lora_A:
        return self.base_layer(x)
    base, dropout = self.base_layer, self.lora_dropout[name]
    a, b = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
    if self._active.fast and isinstance(dropout, nn.Identity) and type(base.weight) is nn.Parameter:
        y, _ = lora_linear(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, self.scaling[name])
        return y.view(*x.shape[:-1], -1)
    result = base(x)
    low = dropout(x).reshape(-1, x.shape[-1]) @ a.t()
    update = torch.addmm(result.reshape(-1, result.shape[-1]), low, b.t(), alpha=self.scaling[name])
    return update.view_as(result)


def recompute_in_backward(model: nn.Module, active: ActiveAdapter) -> int:
    """Keep only the inputs of the decoder's layers and compute them again in the backward pass (arXiv:1604.06174).

    transformers' own switch acts only where a layer is in training mode, which would also switch dropout of the base
    on; and what is computed again must apply the adapter of the first time. Returns the number of layers.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.forward = _recomputed(layer.forward, active)
    return len(layers)


def _recomputed(forward: Callable[..., Any], active: ActiveAdapter) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        name = active.name

        def with_its_adapter(*args: Any, **kwargs: Any) -> Any:
            with active.using(name):
                return forward(*args, **kwargs)

        return checkpoint(with_its_adapter, *args, use_reentrant=False, **kwargs)

    return call
