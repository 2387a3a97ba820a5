"""Attention over packed groups, each on its own: T tokens of G groups cost Σ L_g² and not T², forward and backward.

torch's fused attention for CPUs is fast forward and slow backward (at L = 256 a backward took seven forwards), so the
backward is ours, from matrix products: with P = softmax(S), S = scale Q Kᵀ + mask, O = P V and δ = rowsum(dO ∘ O),

    dV = Pᵀ dO,  dS = P ∘ (dO Vᵀ - δ) scale,  dQ = dS K,  dK = dSᵀ Q              (arXiv:2205.14135, appendix B.2)

P is computed again from S and the log of its row sums, so nothing of size L² is kept. Queries that share a key head
(arXiv:2305.13245) lie in one product with it; keys are never repeated.

The two operators are opaque to a compiler: a compiled decoder layer calls them as they are. Which tokens may look where
is a `Layout`, and what travels through the model in the attention mask's place is its number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
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


class Layout:
    """Which tokens of a pack may look at which: G blocks on the diagonal.

    `blocks`: (first token, end, mask (L, L), True where a token may look) of each group. It must outlive the backward.
    """

    def __init__(self, blocks: Sequence[tuple[int, int, Tensor]]) -> None:
        self.blocks = [
            (start, end, torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))) for start, end, mask in blocks
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
    for start, end, mask in _layouts[int(handle)].blocks:
        part = slice(start, end)
        keys, values = (x[:, :, part].repeat_interleave(shared, 1) for x in (k, v))
        found, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, part], keys, values, attn_mask=mask[None, None], scale=scale
        )
        out[:, part] = found.transpose(1, 2)
        log_sums[:, part] = log_sum[0]
    return out, log_sums


@torch.library.custom_op("preference_loop::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, handle: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `q`, `k` and `v` from that of the output (1, T, H, D)."""
    heads, kv, width = q.shape[1], k.shape[1], q.shape[3]
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = (grad[0].float() * out[0].float()).sum(-1).t()
    for start, end, mask in _layouts[int(handle)].blocks:
        size, part = end - start, slice(start, end)
        rows = (kv, heads // kv * size, width)
        queries, grads = q[0, :, part].reshape(rows), grad[0, part].transpose(0, 1).reshape(rows)
        keys, values = k[0, :, part], v[0, :, part]
        squares = (heads, size, size)
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(squares).float().mul_(scale).add_(mask)
        p = scores.sub_(log_sums[:, part, None]).exp_()
        dp = torch.bmm(grads, values.transpose(1, 2)).view(squares).float()
        ds = dp.sub_(delta[:, part, None]).mul_(p).mul_(scale).to(q.dtype).view(kv, -1, size)
        dv[0, :, part] = torch.bmm(p.to(q.dtype).view(kv, -1, size).transpose(1, 2), grads)
        dq[0, :, part] = torch.bmm(ds, keys).view(heads, size, width)
        dk[0, :, part] = torch.bmm(ds.transpose(1, 2), queries)
    return dq, dk, dv


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
