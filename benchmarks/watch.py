"""Watching a training run from outside: when its steps end, what the model reads, how near the peak that comes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from training.base import Base
from training.packs import Group
from training.run import Run


class Read(NamedTuple):
    """Token ids that went through the model in one forward; `learns`: a backward follows."""

    time: float
    ids: Tensor
    learns: bool


class Watch:
    """What happens inside the block: when a run begins and its steps end, its losses, and all that the model reads."""

    def __init__(self) -> None:
        self.started = self.begun = self.finished = 0.0
        self.compiled = 0.0
        self.ends: list[float] = []
        self.rows: list[dict[str, float]] = []
        self.reads: list[Read] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times are those of `time.perf_counter`, in seconds."""
        begin, log, embed, compile_layers = Run.begin, Run.log, nn.Embedding.forward, Base.compile

        def begins(run: Run, *arguments: Any) -> None:
            begin(run, *arguments)
            self.begun = time.perf_counter()

        def logs(run: Run, step: int, metrics: dict[str, float]) -> None:
            self.ends.append(time.perf_counter())
            self.rows.append(metrics)
            log(run, step, metrics)

        def embeds(layer: nn.Embedding, ids: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                self.reads.append(Read(time.perf_counter(), ids.clone(), torch.is_grad_enabled()))
            return embed(layer, ids)

        def compiles(base: Base, *arguments: Any) -> None:
            start = time.perf_counter()
            compile_layers(base, *arguments)
            self.compiled += time.perf_counter() - start

        self.started = time.perf_counter()
        with (
            patch.object(Run, "begin", begins), patch.object(Run, "log", logs), patch.object(Base, "compile", compiles),
            patch.object(nn.Embedding, "forward", embeds),
        ):  # fmt: skip
            yield
        self.finished = time.perf_counter()

    def seconds(self, warm: int) -> list[float]:
        """What each step after the first `warm` took."""
        return [b - a for a, b in pairwise([self.begun, *self.ends])][warm:]

    def compiling(self, warm: int) -> float:
        """What compiling the layers took, and the first `warm` steps beyond the median of the others, in seconds."""
        rest = statistics.median(self.seconds(warm))
        return self.compiled + max(0.0, sum(self.seconds(0)[:warm]) - warm * rest)

    def efficiency(self, base: Base, groups: Sequence[Group], logits: bool, warm: int) -> dict[str, Any]:
        """Tokens a second, padding, share of the peak after `warm` steps; `groups`: what is read, for its lengths."""
        start, end = [self.begun, *self.ends][warm], self.ends[-1]
        forward, backward = flops_per_token(base, groups, logits)
        pad = base.tokenizer.pad_token_id
        flops, tokens, computed = 0.0, 0, 0
        for read in self.reads:
            if start <= read.time < end:
                useful = int((read.ids != pad).sum())
                flops += useful * (forward + backward * read.learns)
                tokens, computed = tokens + useful, computed + read.ids.numel()
        peak = matmul_peak(base.model.dtype, base.device)
        return {
            "tokens_per_s": round(tokens / (end - start), 1),
            "padding": round(1 - tokens / computed, 4),
            "matmul_share": round(flops / (end - start) / peak, 4),
            "peak_tflops": round(peak / 1e12, 3),
        }


def flops_per_token(base: Base, groups: Sequence[Group], logits: bool) -> tuple[float, float]:
    """(forward, backward) FLOPs of the model per token, on average over the groups in the packed layout.

    A matrix product takes 2 FLOPs a weight. P weights of the decoder: 2P forward, and 2P backward, because a frozen
    weight has no gradient. Attention, per layer and pair of tokens that see each other: 4d forward, 8d backward.
    With `logits` the output layer, 2dV each way, where a response's token is predicted. LoRA's own is left out. Every
    layer counts in every reading, so with `lora_layers`, where lower layers read once, the share comes out too large.
    """
    decoder, config = base.model.get_decoder(), base.model.config
    weights = sum(p.numel() for key, p in decoder.named_parameters() if ".lora_" not in key)
    weights -= decoder.get_input_embeddings().weight.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or base.hidden_size // heads)
    tokens = sum(group.length for group in groups)
    answers = [(len(group.prompt), len(response)) for group in groups for response in group.responses]
    seen = sum(len(g.prompt) * (len(g.prompt) + 1) / 2 for g in groups)
    seen += sum(response * prompt + response * (response + 1) / 2 for prompt, response in answers)
    attention = 4 * config.num_hidden_layers * width * seen / tokens
    output = 0.0
    if logits:
        output = 2 * base.model.get_output_embeddings().weight.numel() * sum(r for _, r in answers) / tokens
    return 2 * weights + attention + output, 2 * weights + 2 * attention + output


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large square matrix product, the best of a second's tries."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + 1
    while time.perf_counter() < until:
        start = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
