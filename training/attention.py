"""Attention over packed groups: no token is compared with one that it may not look at.

A prompt looks at itself, a response at its prompt and itself, so a group of a prompt of P tokens and responses of R_k
costs P² + Σ R_k (P + R_k), where one masked square over T packed tokens costs T².

torch's fused attention for CPUs is fast forward and slow backward (at 256 tokens a backward took seven forwards), so
the backward is ours, from matrix products: with P = softmax(S), S = scale Q Kᵀ + mask, O = P V and δ = rowsum(dO ∘ O),

    dV = Pᵀ dO,  dS = P ∘ (dO Vᵀ - δ) scale,  dQ = dS K,  dK = dSᵀ Q              (arXiv:2205.14135, appendix B.2)

P is computed again from S and the log of its row sums, so nothing of a square's size is kept. Queries that share a key
head (arXiv:2305.13245) lie in one product with it.

The two operators are opaque to a compiler: a compiled decoder layer calls them as they are. Which tokens may look where
is a `Layout`, and what travels through the model in the attention mask's place is its number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"
"""What the implementation is called in a model's config. Without a layout it is transformers' own `sdpa`."""

_numbers = itertools.count()
_layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()


class Block(NamedTuple):
    """Tokens start:end look at a prefix and at themselves, where `looks` (tokens, prefix + tokens) is True."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int
    looks: Tensor

    def of(self, x: Tensor) -> Tensor:
        """What the block looks at, of keys or values (H_kv, T, D)."""
        own = x[:, self.start : self.end]
        if self.prefix_start == self.prefix_end:
            return own
        return torch.cat([x[:, self.prefix_start : self.prefix_end], own], 1)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add gradients of what `of` returned to those of all keys or values."""
        before = self.prefix_end - self.prefix_start
        total[:, self.prefix_start : self.prefix_end] += part[:, :before]
        total[:, self.start : self.end] += part[:, before:]


class Layout:
    """Which tokens of a pack may look at which. It must outlive the backward."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = [
            (block, torch.zeros(block.looks.shape).masked_fill_(~block.looks, float("-inf"))) for block in blocks
        ]
        self._number = next(_numbers)
        _layouts[self._number] = self

    def handle(self) -> Tensor:
        """(1, 1, 1, 1): what to pass to the model as its attention mask."""
        return torch.tensor([[[[self._number]]]])


@torch.library.custom_op("preference_loop::packed_attention", mutates_args=())
def packed_attention(q: Tensor, k: Tensor, v: Tensor, handle: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`q` (1, H, T, D), `k`, `v` (1, H_kv, T, D) -> output (1, T, H, D), log of the row sums (H, T) in fp32."""
    heads, length, width = q.shape[1:]
    shared = heads // k.shape[1]
    out = q.new_empty(1, length, heads, width)
    log_sums = q.new_empty((heads, length), dtype=torch.float32)
    for block, mask in _layouts[int(handle)].blocks:
        rows = slice(block.start, block.end)
        keys, values = (block.of(x[0]).repeat_interleave(shared, 0)[None] for x in (k, v))
        found, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, rows], keys, values, attn_mask=mask[None, None], scale=scale
        )
        out[:, rows] = found.transpose(1, 2)
        log_sums[:, rows] = log_sum[0]
    return out, log_sums


@torch.library.custom_op("preference_loop::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, handle: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `q`, `k` and `v` from that of the output (1, T, H, D)."""
    heads, kv, width = q.shape[1], k.shape[1], q.shape[3]
    dq = q.new_empty(q.shape)
    dk, dv = (x.new_zeros(x.shape[1:], dtype=torch.float32) for x in (k, v))
    delta = (grad[0].float() * out[0].float()).sum(-1).t()
    for block, mask in _layouts[int(handle)].blocks:
        rows, size = slice(block.start, block.end), block.end - block.start
        stacked = (kv, heads // kv * size, width)
        queries, grads = q[0, :, rows].reshape(stacked), grad[0, rows].transpose(0, 1).reshape(stacked)
        keys, values = block.of(k[0]), block.of(v[0])
        scores, dp = torch.bmm(queries, keys.transpose(1, 2)), torch.bmm(grads, values.transpose(1, 2))
        shape = scores.shape
        p, ds = _slopes[0](
            scores.view(heads, size, -1), dp.view(heads, size, -1), mask, log_sums[:, rows], delta[:, rows], scale
        )
        p, ds = p.view(shape), ds.view(shape)
        block.add(dv, torch.bmm(p.transpose(1, 2), grads))
        dq[0, :, rows] = torch.bmm(ds, keys).view(heads, size, width)
        block.add(dk, torch.bmm(ds.transpose(1, 2), queries))
    return dq, dk.to(k.dtype)[None], dv.to(v.dtype)[None]


def slopes(
    scores: Tensor, dp: Tensor, mask: Tensor, log_sums: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(P, dS) from Q Kᵀ and dO Vᵀ (H, n, m), the mask (n, m), log of the row sums and δ (H, n)."""
    p = (scores.float() * scale + mask - log_sums[..., None]).exp()
    return p.to(scores.dtype), (p * (dp.float() - delta[..., None]) * scale).to(scores.dtype)


_slopes = [slopes]
"""How it is computed: one operation after the other, or compiled into one."""


def compile_slopes(on: bool = True) -> None:
    """From now on compiled, or not."""
    _slopes[0] = torch.compile(slopes, dynamic=True) if on else slopes


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, handle: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads, length, width = q.shape[1:]
    return q.new_empty(1, length, heads, width), q.new_empty((heads, length), dtype=torch.float32)


@packed_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, handle: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, handle, ctx.scale = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, *output, handle)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = packed_attention_backward(grad, *ctx.saved_tensors, ctx.scale)  # type: ignore[attr-defined]
    return (*found, None, None)


packed_attention.register_autograd(_backward, setup_context=_keep)


def _forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    out, _ = packed_attention(query, key, value, attention_mask, scale)
    return out, None


def register() -> None:
    """Make transformers know it."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
