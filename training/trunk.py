"""The layers below an adapter's first, which compute the same with the adapter and without it.

With `lora_layers` only the upper layers learn. What the lower ones make of a pack is kept with the pack, and the
policy, the reference, the critic and every epoch of PPO go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from training.packs import Pack


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's layers, from the embedding up."""
    return [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]


def layers_below(decoder: nn.Module, adapter: str) -> int:
    """How many layers lie below the first that the adapter changes."""
    layers = layers_of(decoder)
    changed = (any(f".{adapter}." in name for name, _ in layer.named_parameters()) for layer in layers)
    return next((number for number, here in enumerate(changed) if here), len(layers))


@contextmanager
def reading(decoder: nn.Module, pack: Pack, depth: int) -> Iterator[None]:
    """Inside the block the decoder reads `pack` with an adapter that leaves its lowest `depth` layers alone.

    They are skipped as far as they have read it before; else what they make of it is kept.
    """
    known = max((number for number in pack.trunk if number <= depth), default=0)
    below = layers_of(decoder)[: known or depth]
    before = [layer.__dict__.get("forward") for layer in below]
    if known:
        for layer in below:
            layer.forward = lambda *_, **__: pack.trunk[known]
    elif below:
        compute = below[-1].forward

        def keep(*args: Any, **kwargs: Any) -> Any:
            pack.trunk[depth] = compute(*args, **kwargs)
            return pack.trunk[depth]

        below[-1].forward = keep
    try:
        yield
    finally:
        for layer, forward in zip(below, before, strict=True):
            if forward:
                layer.forward = forward
            else:
                layer.__dict__.pop("forward", None)
