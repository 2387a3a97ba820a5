"""A linear layer with a LoRA adapter as one operation with a backward of its own.

    y = W x + s B A x,   dx = Wᵀ dy + s Aᵀ Bᵀ dy,   dA = s Bᵀ dy xᵀ,   dB = s dy (A x)ᵀ        (arXiv:2106.09685, eq. 3)

The low-rank parts are added into the products with W where these lie, W has no gradient, and of the forward only x and
A x are kept. A compiler takes the operation as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("preference_loop::lora_linear", mutates_args=())
def lora_linear(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`x` (T, d_in), `w` (d_out, d_in), `a` (r, d_in), `b` (d_out, r) -> y (T, d_out) and A x (T, r)."""
    y, low = product(x, w.t()), torch.mm(x, a.t())
    if bias is not None:
        y += bias
    return y.addmm_(low, b.t(), alpha=scale), low


@torch.library.custom_op("preference_loop::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    dy: Tensor, x: Tensor, low: Tensor, w: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `x`, `a` and `b` from that of y (T, d_out)."""
    d_low = torch.mm(dy, b).mul_(scale)
    dx = product(dy, w).addmm_(d_low, a)
    return dx, torch.mm(d_low.t(), x), torch.mm(dy.t(), low).mul_(scale)


def product(x: Tensor, w: Tensor) -> Tensor:
    """x w (T, n) of x (T, m) and w (m, n)."""
    length, (inner, outer) = len(x), w.shape
    if not _on_one_thread(x, inner, outer):
        return torch.mm(x, w)
    y = x.new_empty(length, outer)
    for start in range(0, length, ROWS):
        part = slice(start, start + ROWS)
        torch.mm(x[part], w, out=y[part])
    return y


ROWS = 512
"""So many rows at a time are computed where that is faster."""


def _on_one_thread(x: Tensor, inner: int, outer: int) -> bool:
    """Whether oneDNN leaves a thread of two idle, as it does for bf16 products of middling size.

    Measured with torch 2.13 on two cores, for rows from 540 to 1,440: 0.5 of the peak, and 0.6 to 0.75 in parts.
    """
    if x.dtype is not torch.bfloat16 or x.device.type != "cpu" or not 192 < outer < 1024:
        return False
    return ROWS < len(x) < (1344 if inner > 1024 else 1152)


@lora_linear.register_fake
def _(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@lora_linear_backward.register_fake
def _(
    dy: Tensor, x: Tensor, low: Tensor, w: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, w, _, a, b, ctx.scale = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, output[1], w, a, b)


def _backward(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    dx, da, db = lora_linear_backward(dy, *ctx.saved_tensors, ctx.scale)  # type: ignore[attr-defined]
    return dx, None, None, da, db, None


lora_linear.register_autograd(_backward, setup_context=_keep)
