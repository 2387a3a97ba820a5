"""Log-probabilities and entropies of tokens through a frozen output layer, without keeping (N, V) logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 16
"""Rows of the vocabulary's width that are worked on at once: what fits into a core's cache is not fetched six times."""


class TokenLogProbs(torch.autograd.Function):
    """log p(target) and, if asked, the entropy, from hidden states through a frozen output layer, chunk by chunk.

    The gradient with respect to the hidden states is formed in the forward, so no (N, V) logits outlive their chunk:
    d log p(y) / d h = (W_y - Σ_v p_v W_v) / t, dH / d h = -Σ_v p_v (log p_v + H) W_v / t, with temperature t.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        want_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        """`hidden` (N, d), `weight` (V, d), `targets` (N,) -> log-probabilities (N,), entropies (N,), in nats, fp32."""
        log_probs = hidden.new_empty(len(targets), dtype=torch.float32)
        entropies = torch.zeros_like(log_probs)
        grad = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        grad_log_prob = torch.empty_like(hidden) if grad else None
        grad_entropy = torch.empty_like(hidden) if grad and want_entropy else None
        space = hidden.new_empty(min(chunk, len(targets)), len(weight))  # once: new pages take their time
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(hidden[part], weight.t(), out=space[: len(targets) - start])
            if bias is not None:
                logits += bias
            slopes = torch.empty_like(logits) if grad_entropy is not None else None
            for first in range(0, len(logits), ROWS):
                rows, of_all = slice(first, first + ROWS), slice(start + first, min(start + first + ROWS, part.stop))
                scaled = logits[rows].to(torch.float32, copy=True).div_(temperature)
                target = scaled.gather(1, targets[of_all, None])
                top = scaled.amax(-1, keepdim=True)
                p = scaled.sub_(top).exp_()
                total = p.sum(-1, keepdim=True)
                log_probs[of_all] = (target - top - total.log()).squeeze(1)
                if not grad and not want_entropy:
                    continue
                p.div_(total)
                if want_entropy:
                    log_p = logits[rows].to(torch.float32, copy=True).div_(temperature).sub_(top + total.log())
                    entropies[of_all] = -(p * log_p).sum(-1)
                    if slopes is not None:
                        slopes[rows] = log_p.add_(entropies[of_all, None]).mul_(p)
                logits[rows] = p
            if grad_log_prob is not None:
                grad_log_prob[part] = (weight[targets[part]] - logits @ weight) / temperature
            if grad_entropy is not None and slopes is not None:
                grad_entropy[part] = -(slopes @ weight) / temperature
        ctx.save_for_backward(*(t for t in (grad_log_prob, grad_entropy) if t is not None))
        return log_probs, entropies

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Chain the stored slopes."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        total = grads[0][:, None].to(saved[0].dtype) * saved[0]
        if len(saved) > 1:
            total = total + grads[1][:, None].to(saved[1].dtype) * saved[1]
        return total, None, None, None, None, None, None


def kl_per_token(logits: Callable[[Tensor], Tensor], policy: Tensor, reference: Tensor, chunk: int = 256) -> Tensor:
    """KL(π ‖ π_ref) (N,) in nats between next-token distributions: Σ_v p (log p - log q), over the whole vocabulary.

    `policy`, `reference` (N, d): the hidden states that predict each token; `logits`: what the output layer makes of
    them.
    """
    parts = []
    for p_hidden, q_hidden in zip(policy.split(chunk), reference.split(chunk), strict=True):
        log_p, log_q = (torch.log_softmax(logits(hidden).float(), dim=-1) for hidden in (p_hidden, q_hidden))
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)
