"""Sampling: K completions of each prompt in one batch, and one completion token by token for a chat.

Every sample has a random stream of its own, keyed by (seed, update, prompt, sample): what is sampled does not depend on
what else is in the batch, and a resumed run repeats exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from data.records import InputError, Message
from training.base import Base
from training.chat_template import decode, encode_prompt

GREEDY = 1e-5
"""Below this temperature the most likely token is taken; logits divided by less would overflow."""


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
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.cumsum(-1, dtype=_exact(logits.device))
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniform.to(cumulative.dtype)[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # where the total is reached: rounding must not lead beyond
    drawn = torch.minimum(drawn, last).clamp(max=logits.shape[-1] - 1)
    return torch.where(greedy, logits.argmax(-1, keepdim=True), drawn).squeeze(-1)


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
    A finished sequence leaves the batch. The prompt is read once for its K samples.
    """
    count, repeats, longest = random.shape
    width = max(len(ids) for ids in prompts)
    device = base.device
    pad = int(base.tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    temperatures = np.broadcast_to(np.asarray(temperature, dtype=np.float32), (repeats,))
    heat = torch.tensor(np.tile(temperatures, count), device=device)[:, None]
    uniform = torch.tensor(random.reshape(count * repeats, longest), dtype=_exact(device), device=device)
    stops = base.stop_ids
    results = [Sample([], "length") for _ in range(count * repeats)]
    with base.using(adapter):
        cache = DynamicCache(config=base.model.config)
        decoder = base.model.get_decoder()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = decoder(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        hidden = out.last_hidden_state[:, -1].repeat_interleave(repeats, 0)
        cache.batch_repeat_interleave(repeats)
        mask = mask.repeat_interleave(repeats, 0)
        position = mask.sum(-1, keepdim=True)
        alive = torch.arange(count * repeats, device=device)
        for step in range(longest):
            tokens = choose(base.logits(hidden), uniform[alive, step], heat[alive], top_p)
            keep = []
            for row, (index, token) in enumerate(zip(alive.tolist(), tokens.tolist(), strict=True)):
                results[index].ids.append(token)
                if token in stops:
                    results[index].finish_reason = "stop"
                else:
                    keep.append(row)
            if on_step:
                on_step()
            if not keep or step == longest - 1:
                break
            if len(keep) < len(alive):
                rows = torch.tensor(keep, device=device)
                cache.batch_select_indices(rows)
                alive, tokens, mask, position = alive[rows], tokens[rows], mask[rows], position[rows]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
            out = decoder(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            hidden, position = out.last_hidden_state[:, -1], position + 1
    return [results[i * repeats : (i + 1) * repeats] for i in range(count)]


def stream(
    base: Base,
    messages: Sequence[Message],
    *,
    adapter: str | None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    system_prompt: str | None = None,
) -> Iterator[Token]:
    """Sample one answer token by token. Takes the base's lock for one token at a time, so several streams interleave.

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
    cache = DynamicCache(config=base.model.config)
    inputs, ids = torch.tensor([prompt], device=base.device), list[int]()
    for step in range(max_new_tokens):
        with base.using(adapter), torch.no_grad():
            out = base.model.get_decoder()(input_ids=inputs, past_key_values=cache, use_cache=True)
            token = choose(base.logits(out.last_hidden_state[:, -1]), random[step : step + 1], temperature, top_p)
        ended = int(token) in base.stop_ids
        if not ended:
            ids.append(int(token))
        text = decode(base, ids)
        reason = "stop" if ended else "length" if step == max_new_tokens - 1 else None
        yield Token(text if reason else text.rstrip("\ufffd"), len(ids), reason)
        if reason:
            return
        inputs = token[:, None]
