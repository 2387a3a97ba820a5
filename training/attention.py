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
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"
"""What the implementation is called in a model's config. Without a layout it is transformers' own `sdpa`."""

Places: TypeAlias = slice | Tensor
"""Which tokens."""

_numbers = itertools.count()
_layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()


class Block(NamedTuple):
    """G squares of the same size: tokens `rows` (G, n) look at tokens `keys` (G, m) where `looks` (G, n, m) is True.

    Where a square is smaller than the block, any numbers fill it up and nothing looks there.
    """

    rows: Tensor
    keys: Tensor
    looks: Tensor


class Layout:
    """Which tokens of a pack may look at which. It must outlive the backward."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = [_Squares(*block) for block in blocks]
        self._number = next(_numbers)
        _layouts[self._number] = self

    def handle(self) -> Tensor:
        """(1, 1, 1, 1): what to pass to the model as its attention mask."""
        return torch.tensor([[[[self._number]]]])


class _Squares:
    """A block as the operators need it. Everything of the pack is (H_kv, T, ...), and of the block (H_kv, G, n, ...).

    `mask` (G, 1, n S, m), 0 or -inf, and `looks` (H_kv G n S, m) are for S = H / H_kv queries a token.
    """

    def __init__(self, rows: Tensor, keys: Tensor, looks: Tensor) -> None:
        self.count, self._square, self._heads = len(rows), looks, (0, 0)
        real = looks.any(-1).flatten()
        self.real = slice(None) if bool(real.all()) else real.nonzero()[:, 0]
        self.rows, self.keys = _places(rows.flatten()), _places(keys.flatten())
        self.to = _places(rows.flatten()[self.real])

    def prepare(self, kv: int, queries: int) -> None:
        """For H_kv key heads with S queries each; the second layer finds it done."""
        if self._heads != (kv, queries):
            self._heads = kv, queries
            looks = self._square.repeat_interleave(queries, 1)
            self.mask = torch.zeros(looks.shape).masked_fill_(~looks, float("-inf"))[:, None]
            self.looks = looks.flatten(0, 1).repeat(kv, 1)

    def take(self, x: Tensor, places: Places) -> Tensor:
        """(H_kv, G, n or m, ...)"""
        return x[:, places].unflatten(1, (self.count, -1))

    def put(self, total: Tensor, part: Tensor) -> None:
        """Write a part where its rows belong."""
        total[:, self.to] = part.flatten(1, 2)[:, self.real]

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add a part where its keys belong."""
        if isinstance(self.keys, slice):
            total[:, self.keys] += part.flatten(1, 2)
        else:
            total.index_add_(1, self.keys, part.flatten(1, 2).to(total.dtype))


def _places(tokens: Tensor) -> Places:
    """A slice where the tokens follow one another: nothing is gathered then."""
    first, last = int(tokens[0]), int(tokens[-1])
    follow = last - first + 1 == len(tokens) and bool((tokens.diff() == 1).all())
    return slice(first, last + 1) if follow else tokens


@torch.library.custom_op("preference_loop::packed_attention", mutates_args=())
def packed_attention(q: Tensor, k: Tensor, v: Tensor, handle: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`q` (1, H, T, D), `k`, `v` (1, H_kv, T, D) -> output (1, T, H, D), log of the row sums (H_kv, T, S) in fp32."""
    q, k, v = _by_key_head(q[0].transpose(0, 1), k.shape[1]), k[0], v[0]
    out, log_sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    for block in _layouts[int(handle)].blocks:
        block.prepare(len(q), q.shape[2])
        queries = block.take(q, block.rows)
        keys, values = (block.take(x, block.keys).transpose(0, 1) for x in (k, v))
        found, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries.flatten(2, 3).transpose(0, 1), keys, values,
            attn_mask=block.mask, scale=scale,
        )  # fmt: skip
        block.put(out, found.transpose(0, 1).view_as(queries))
        block.put(log_sums, log_sum.transpose(0, 1).view(queries.shape[:4]))
    return out.permute(1, 0, 2, 3).flatten(1, 2)[None], log_sums


@torch.library.custom_op("preference_loop::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, handle: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `q`, `k` and `v` from that of the output (1, T, H, D)."""
    kv, shape = k.shape[1], q.shape
    delta = _pieces.dots(grad[0], out[0]).unflatten(1, (kv, -1)).transpose(0, 1)
    q, grad, k, v = _by_key_head(q[0].transpose(0, 1), kv), _by_key_head(grad[0], kv), k[0], v[0]
    dq = torch.empty_like(q)
    dk, dv = (x.new_zeros(x.shape, dtype=torch.float32) for x in (k, v))
    for block in _layouts[int(handle)].blocks:
        queries, grads, sums, deltas = (block.take(x, block.rows) for x in (q, grad, log_sums, delta))
        square, rows = queries.shape[:4], (kv * block.count, -1, q.shape[-1])
        keys, values = (block.take(x, block.keys).flatten(0, 1) for x in (k, v))
        queries, grads = queries.reshape(rows), grads.reshape(rows)
        scores, dp = torch.bmm(queries, keys.transpose(1, 2)), torch.bmm(grads, values.transpose(1, 2))
        flat = (-1, scores.shape[-1])
        p, ds = _pieces.slopes(
            scores.view(flat), dp.view(flat), block.looks, sums.reshape(-1), deltas.reshape(-1), scale
        )
        p, ds = p.view(scores.shape), ds.view(scores.shape)
        block.put(dq, torch.bmm(ds, keys).view(*square, -1))
        for total, part in ((dk, torch.bmm(ds.transpose(1, 2), queries)), (dv, torch.bmm(p.transpose(1, 2), grads))):
            block.add(total, part.unflatten(0, (kv, block.count)))
    return dq.transpose(1, 2).reshape(shape), dk.to(k.dtype)[None], dv.to(v.dtype)[None]


def _by_key_head(x: Tensor, kv: int) -> Tensor:
    """(H_kv, T, S, D) of (T, H, D): the S = H / H_kv queries of a token that share a key head lie side by side."""
    return x.unflatten(1, (kv, -1)).transpose(0, 1).contiguous()


def slopes(
    scores: Tensor, dp: Tensor, looks: Tensor, log_sums: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(P, dS) from Q Kᵀ and dO Vᵀ (N, m), where a query may look (N, m), log of the row sums and δ (N,)."""
    p = torch.where(looks, (scores.float() * scale - log_sums[..., None]).exp(), 0.0)
    return p.to(scores.dtype), (p * (dp.float() - delta[..., None]) * scale).to(scores.dtype)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """(...) in fp32 of (..., D)."""
    return (a.float() * b.float()).sum(-1)


class _Pieces:
    """How the element-wise pieces are computed: one operation after the other, or compiled into one."""

    slopes, dots = staticmethod(slopes), staticmethod(dots)


_pieces = _Pieces()


def compile_pieces(on: bool = True) -> None:
    """From now on compiled, or not."""
    for piece in (slopes, dots):
        setattr(_pieces, piece.__name__, torch.compile(piece, dynamic=True) if on else piece)


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, handle: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    (heads, length, width), kv = q.shape[1:], k.shape[1]
    return q.new_empty(1, length, heads, width), q.new_empty((kv, length, heads // kv), dtype=torch.float32)


@packed_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, handle: Tensor, scale: float
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


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
