"""Sampling: K completions of each prompt in one batch, and one completion token by token for a chat.

Every sample has a random stream of its own, keyed by (seed, update, prompt, sample): what is sampled does not depend on
what else is in the batch, and a resumed run repeats exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data.records import InputError, Message
from training import cores
from training.base import Base
from training.chat_template import decode, encode_prompt
from training.decoding import start_decoding

GREEDY = 1e-5
"""Below this temperature the most likely token is taken; logits divided by less would overflow."""

STILL_RUNNING = 0.75
"""Finished sequences leave when no more than this share of the batch goes on: leaving copies the cache."""


@dataclass
class Sample:
    """One sampled response: its token ids, the end token included where it came to one."""

    ids: list[int]
    finish_reason: str  # "stop" or "length"


class Token(NamedTuple):
    """Where a streamed answer stands. `finish_reason` is None until it ends."""

    text_so_far: str
    num_tokens: int
    finish_reason: str | None


def uniforms(seed: int, update: int, prompt: int, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of the stream with this key."""
    sequence = np.random.SeedSequence([seed, update, prompt, sample])
    return np.random.Generator(np.random.Philox(sequence)).random(count)


def choose(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float | torch.Tensor, top_p: float
) -> torch.Tensor:
    """Sample one token a row by the inverse of the cumulative distribution.

    `logits` (B, V), `uniform` (B,) in [0, 1), `temperature` a number or (B, 1); 0 means the most likely token. One
    number a row is all the randomness there is (`torch.multinomial` draws one an entry, a third of the decoding time).
    """
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device).expand(logits.shape[0], 1)
    greedy = temperature < GREEDY
    probabilities = torch.softmax(logits.float() / torch.where(greedy, 1.0, temperature), dim=-1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)
    drawn = _invert(probabilities, uniform)
    if bool(greedy.any()):
        drawn = torch.where(greedy[:, 0], logits.argmax(-1), drawn)
    return drawn


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """(B, V) with 0 for all but the likeliest tokens that together reach `top_p` (arXiv:1904.09751), and their ties.

    Whatever is less likely than (1 - top_p) / V is less than 1 - top_p together, so it is outside: only the others are
    sorted, hundreds instead of a vocabulary.
    """
    candidates = (probabilities >= (1 - top_p) / probabilities.shape[-1]).sum(-1).max()
    ordered = probabilities.topk(int(candidates.clamp(min=1)), dim=-1).values
    count = (ordered.cumsum(-1) - ordered < top_p).sum(-1, keepdim=True).clamp(min=1)
    return probabilities.masked_fill(probabilities < ordered.gather(-1, count - 1), 0)


def narrow(
    logits: torch.Tensor, read: Sequence[int], temperature: float, top_k: int, min_p: float, repetition_penalty: float
) -> torch.Tensor:
    """Logits (1, V) with unwanted tokens made less likely or impossible.

    `repetition_penalty` (1: none) divides positive and multiplies negative logits of the tokens in `read`
    (arXiv:1909.05858, section 4.1). Then the `top_k` likeliest are kept (0: all), and those with at least `min_p` times
    the probability of the likeliest (arXiv:2407.01082).
    """
    if repetition_penalty != 1:
        seen = torch.tensor(sorted(set(read)), device=logits.device)
        found = logits[:, seen]
        logits = logits.index_copy(
            1, seen, torch.where(found > 0, found / repetition_penalty, found * repetition_penalty)
        )
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if min_p > 0 and temperature >= GREEDY:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + temperature * math.log(min_p), -torch.inf)
    return logits


BLOCK = 256
"""Probabilities are summed by blocks: only the block that the draw falls into is summed entry by entry."""


def _invert(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index at which the cumulative sum of a row of (B, V) exceeds uniform (B,) times its total."""
    count, exact = len(probabilities), _exact(probabilities.device)
    if rest := probabilities.shape[-1] % BLOCK:
        probabilities = F.pad(probabilities, (0, BLOCK - rest))
    blocks = probabilities.view(count, -1, BLOCK)
    sums = blocks.sum(-1).to(exact)
    wanted = uniform.to(exact)[:, None] * sums.sum(-1, keepdim=True)
    block = _first_beyond(sums, wanted)
    wanted = wanted - (sums.cumsum(-1) - sums).gather(1, block)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    return (block * BLOCK + _first_beyond(within.to(exact), wanted)).squeeze(1)


def _first_beyond(weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The first index (B, 1) at which the cumulative sum of (B, n) exceeds `wanted` (B, 1), or reaches its total: where
    rounding has made `wanted` the total, what follows has no weight."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    return torch.minimum(torch.searchsorted(cumulative, wanted, right=True), torch.searchsorted(cumulative, total))


def _exact(device: torch.device) -> torch.dtype:
    """What cumulative probabilities are summed in; mps does not have more."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[Sequence[int]],
    random: np.ndarray,
    *,
    adapter: str | None,
    temperature: float | Sequence[float] = 1.0,
    top_p: float = 1.0,
    on_step: Callable[[], None] | None = None,
) -> list[list[Sample]]:
    """K samples of each of P prompts.

    `random` (P, K, L) holds the uniforms; L is the longest response. `temperature` is one number or one for each k.
    Finished sequences leave the batch. The prompt is read once for its K samples.
    """
    count, repeats, longest = random.shape
    device = base.device
    temperatures = np.broadcast_to(np.asarray(temperature, dtype=np.float32), (repeats,))
    heat = torch.tensor(np.tile(temperatures, count), device=device)[:, None]
    uniform = torch.tensor(random.reshape(count * repeats, longest), dtype=_exact(device), device=device)
    stops = base.stop_ids
    results = [Sample([], "length") for _ in range(count * repeats)]
    with base.using(adapter):
        decoding = start_decoding(base, prompts, repeats, longest)
        rows = torch.arange(count * repeats, device=device)  # which sample each row of the batch is
        for step in range(longest):
            cores.heed()
            tokens = choose(decoding.logits, uniform[rows, step], heat[rows], top_p)
            running = []
            for row, (index, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
                found = results[index]
                if found.finish_reason == "length":
                    found.ids.append(token)
                    if token in stops:
                        found.finish_reason = "stop"
                    else:
                        running.append(row)
            if on_step:
                on_step()
            if not running or step == longest - 1:
                break
            if len(running) <= STILL_RUNNING * len(rows):
                kept = torch.tensor(running, device=device)
                decoding.keep(kept)
                rows, tokens = rows[kept], tokens[kept]
            decoding.step(tokens)
    return [results[i * repeats : (i + 1) * repeats] for i in range(count)]


def stream(
    base: Base,
    messages: Sequence[Message],
    *,
    adapter: str | None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    system_prompt: str | None = None,
) -> Iterator[Token]:
    """Sample one answer token by token. Takes the base's lock for one token at a time, so several streams interleave.

    `top_k`, `min_p` and `repetition_penalty` as in `narrow`.

    Raises InputError where the conversation leaves no room in the model's context. Close the generator to stop early.
    """
    if system_prompt and system_prompt.strip():
        messages = [{"role": "system", "content": system_prompt}, *(m for m in messages if m["role"] != "system")]
    prompt = encode_prompt(base, messages)
    if len(prompt) + max_new_tokens > base.context_length:
        raise InputError(
            f"the conversation is {len(prompt)} tokens long and the model reads {base.context_length}; "
            "start a new chat or ask for a shorter answer"
        )
    random = torch.tensor(uniforms(seed, 0, 0, 0, max_new_tokens), dtype=_exact(base.device), device=base.device)
    ids = list[int]()
    with base.using(adapter), torch.no_grad():
        decoding = start_decoding(base, [prompt], 1, max_new_tokens)
    for step in range(max_new_tokens):
        logits = narrow(decoding.logits, [*prompt, *ids], temperature, top_k, min_p, repetition_penalty)
        token = choose(logits, random[step : step + 1], temperature, top_p)
        ended = int(token) in base.stop_ids
        if not ended:
            ids.append(int(token))
        text = decode(base, ids)
        reason = "stop" if ended else "length" if step == max_new_tokens - 1 else None
        yield Token(text if reason else text.rstrip("\ufffd"), len(ids), reason)
        if reason:
            return
        with base.using(adapter), torch.no_grad():
            decoding.step(token)
