"""One token after another for a batch of prompts: the logits of the next token from cached keys and values.

`ModelDecoding` calls the model's own forward and serves every causal language model. `LlamaDecoding` computes layers of
Llama's kind (Llama, Mistral, Qwen2) itself: what all prompts begin with is read once, only attention sees padding,
weights are packed once for the processor, the cache is allocated once. It is used only where it gives the model's own
logits.

Notation: B sequences, N tokens, V words, d the width, H query heads and G key heads of h dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel

from training.base import Base
from training.packs import common_start


class Decoding(Protocol):
    """A batch that is being decoded. `logits` (B, V) are those of each sequence's next token."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """Append one token to each sequence, (B,)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences alone."""


def start_decoding(base: Base, prompts: Sequence[Sequence[int]], repeats: int, longest: int) -> Decoding:
    """Read the prompts with the active adapter, each once for its `repeats` sequences, which lie side by side.

    `longest` is the most tokens that will follow. Call this and the steps inside `base.using(adapter)`.
    """
    layers = _layers_of(base) if base.fast else None
    if layers is None:
        return ModelDecoding(base, prompts, repeats)
    return LlamaDecoding(layers, base.active_adapter, prompts, repeats, longest)


class ModelDecoding:
    """Decoding by the model's own forward; the prompts are padded on the left."""

    def __init__(self, base: Base, prompts: Sequence[Sequence[int]], repeats: int) -> None:
        width, pad = max(len(ids) for ids in prompts), int(base.tokenizer.pad_token_id)
        self.base = base
        self.logits: Tensor
        self.cache = DynamicCache(config=base.model.config)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=base.device)
        self._forward(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))
        self.cache.batch_repeat_interleave(repeats)
        self.mask, self.logits = (table.repeat_interleave(repeats, 0) for table in (self.mask, self.logits))

    def step(self, tokens: Tensor) -> None:
        """Append one token to each sequence, (B,)."""
        positions = self.mask.sum(-1, keepdim=True)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self._forward(tokens[:, None], positions)

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences alone."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        out = self.base.model.get_decoder()(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = self.base.logits(out.last_hidden_state[:, -1])


LowRank = tuple[Tensor, Tensor] | None
"""(Aᵀ, Bᵀ) of the update B A x of a product, the scale within B; None where the adapter leaves it alone."""


class LlamaDecoding:
    """Decoding by `LlamaLayers`.

    The keys of a layer are (B, G, C, h). The newest token of every sequence lies in the same column, `width - 1`, so
    that a step writes one slice. What all prompts begin with is read once and lies in the first columns; in the gap
    between it and the rest of a shorter prompt `mask` (B, 1, 1, C) is -inf. Positions are counted without the gap.

    The adapter stays a low-rank product beside the base: added to the weights in bf16 a young one is rounded away.
    """

    def __init__(
        self, layers: LlamaLayers, adapter: str | None, prompts: Sequence[Sequence[int]], repeats: int, longest: int
    ) -> None:
        self.layers = layers
        self.low_rank = [product.low_rank(adapter) for product in layers.products]
        zeros, columns = layers.embedding.weight.new_zeros, max(len(ids) for ids in prompts) + longest
        shape = 1, layers.key_heads, columns, layers.head_dim
        self.cache = [(zeros(shape), zeros(shape)) for _ in layers.layers]
        self.mask, self.width = zeros(1, 1, 1, columns), 0
        self.lengths = torch.zeros(1, dtype=torch.long, device=self.mask.device)
        shared = common_start(prompts)
        if shared:
            self._read([prompts[0][:shared]])
        if len(prompts) > 1:
            self.keep(self.lengths.new_zeros(len(prompts)))
        self.logits = layers.output(self._read([ids[shared:] for ids in prompts]), self.low_rank[-1])
        if repeats > 1:
            copies = torch.arange(len(prompts), device=self.mask.device).repeat_interleave(repeats)
            self.keep(copies)
            self.logits = self.logits[copies]

    def _read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Append a text to each sequence, aligned on the right. Returns the last hidden states (B, d)."""
        layers, before, count, device = self.layers, self.width, len(texts), self.mask.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        size = int(lengths.max())
        self.width = width = before + size
        rows = torch.arange(count, device=device).repeat_interleave(lengths)
        place = torch.cat([torch.arange(size - len(text), size, device=device) for text in texts])
        gap = torch.arange(size, device=device) < (size - lengths)[:, None]
        self.mask[:, 0, 0, before:width].masked_fill_(gap, -torch.inf)
        later = torch.ones(size, width, dtype=torch.bool, device=device).triu(before + 1)
        shares = layers.heads // layers.key_heads
        mask = self.mask[..., :width].masked_fill(later, -torch.inf).repeat(1, 1, shares, 1)
        alone = count == 1 and not before

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            """The H / G query heads that share a key head are its queries, so that no key is repeated."""
            keys, values = self.cache[number]
            keys[rows, :, before + place], values[rows, :, before + place] = key, value
            if alone:
                found = F.scaled_dot_product_attention(
                    query.transpose(0, 1)[None],
                    keys[:, :, :width].repeat_interleave(shares, 1),
                    values[:, :, :width].repeat_interleave(shares, 1),
                    is_causal=True,
                    scale=layers.scaling,
                )
                return found[0].transpose(0, 1)
            padded = query.new_zeros(count, layers.key_heads, shares, size, layers.head_dim)
            padded[rows, :, :, place] = query.view(len(query), layers.key_heads, shares, -1)
            found = F.scaled_dot_product_attention(
                padded.flatten(2, 3), keys[:, :, :width], values[:, :, :width], attn_mask=mask, scale=layers.scaling
            )
            return found.view_as(padded)[rows, :, :, place]

        ids = torch.tensor([token for text in texts for token in text], device=device)
        positions = place + (self.lengths - size + lengths)[rows]
        self.lengths = self.lengths + lengths
        return layers.hidden(ids, positions, attend, self.low_rank)[lengths.cumsum(0) - 1]

    def step(self, tokens: Tensor) -> None:
        """Append one token to each sequence, (B,)."""
        layers, column, width = self.layers, self.width, self.width + 1
        mask = self.mask[..., :width]

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache[number]
            keys[:, :, column], values[:, :, column] = key, value
            found = F.scaled_dot_product_attention(
                query.view(len(query), layers.key_heads, -1, layers.head_dim),
                keys[:, :, :width],
                values[:, :, :width],
                attn_mask=mask,
                scale=layers.scaling,
            )
            return found.view_as(query)

        hidden = layers.hidden(tokens, self.lengths, attend, self.low_rank)
        self.logits = layers.output(hidden, self.low_rank[-1])
        self.lengths, self.width = self.lengths + 1, width

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences alone."""
        self.lengths, self.mask = self.lengths[rows], self.mask[rows]
        for number, (keys, values) in enumerate(self.cache):
            self.cache[number] = keys[rows], values[rows]


class Attend(Protocol):
    """Keep the keys and values (N, G, h) of N tokens in layer `number`; attention (N, H, h) of queries (N, H, h)."""

    def __call__(self, number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class LlamaLayers:
    """The layers of a decoder of Llama's kind, for a flat list of tokens.

    Raises AttributeError where the model has other parts; that the parts are put together like Llama's is for the
    caller to compare.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        self.embedding, self.norm, self.rotary = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        self.layers = list(decoder.layers)
        attention = self.layers[0].self_attn
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.heads, self.key_heads = model.config.num_attention_heads, model.config.num_key_value_heads
        self.products = [
            Product(part, names)
            for layer in self.layers
            for part, names in (
                (layer.self_attn, ["q_proj", "k_proj", "v_proj"]),
                (layer.self_attn, ["o_proj"]),
                (layer.mlp, ["gate_proj", "up_proj"]),
                (layer.mlp, ["down_proj"]),
            )
        ]
        self.output = Product(*_owner(model, model.get_output_embeddings()))
        self.products.append(self.output)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        low_rank: Sequence[LowRank],
    ) -> Tensor:
        """Last hidden states (N, d) of tokens (N,) at `positions` (N,) of their sequences."""
        x = self.embedding(ids)
        cos, sin = (table[0, :, None] for table in self.rotary(x, positions[None]))
        half = self.head_dim // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # rotate_half(x) is x rolled, with this sign
        turned, split = self.heads + self.key_heads, (self.heads, self.key_heads)
        for number, layer in enumerate(self.layers):
            qkv, out, gate_up, down = zip(
                self.products[4 * number : 4 * number + 4], low_rank[4 * number : 4 * number + 4], strict=True
            )
            heads = qkv[0](layer.input_layernorm(x), qkv[1]).view(len(x), -1, self.head_dim)
            unturned = heads[:, :turned]
            query, key = torch.addcmul(unturned * cos, unturned.roll(half, -1), sin).split(split, 1)
            x = x + out[0](attend(number, query, key, heads[:, turned:]).flatten(1), out[1])
            gate, up = gate_up[0](layer.post_attention_layernorm(x), gate_up[1]).chunk(2, -1)
            x = x + down[0](layer.mlp.act_fn(gate) * up, down[1])
        return self.norm(x)


class Product:
    """Linear layers of one input as one product: their outputs side by side.

    On a processor oneDNN multiplies weights that are laid out for it in 0.4 to 0.8 of the time that it takes with
    others. That is a second copy of the weights.
    """

    def __init__(self, part: nn.Module, names: list[str]) -> None:
        self.part, self.names = part, names
        layers = self._linear()
        if not all(type(layer) is nn.Linear for layer in layers) or isinstance(layers[0].weight, DTensor):
            raise AttributeError(f"{type(part).__name__} has not only plain linear layers")
        weight = layers[0].weight
        self.packed = self.bias = None
        packs = torch.backends.mkldnn.is_available() and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        if weight.device.type == "cpu" and packs:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(
                torch.cat([layer.weight for layer in layers]).detach()
            )
            if layers[0].bias is not None:
                self.bias = torch.cat([layer.bias for layer in layers]).detach()

    def __call__(self, x: Tensor, low_rank: LowRank) -> Tensor:
        """(N, out) from (N, in)."""
        if self.packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        else:
            y = torch.cat([F.linear(x, layer.weight, layer.bias) for layer in self._linear()], -1)
        if low_rank is None:
            return y
        down, up = low_rank
        return y.add_((x.to(down.dtype) @ down) @ up)

    def low_rank(self, adapter: str | None) -> LowRank:
        """What the adapter adds: the As above one another, the Bs as blocks.

        In fp32 on a processor, whatever the base is: so small a product takes a third of bf16's time there, for a
        single sequence, and two thirds for 32.
        """
        modules = [getattr(self.part, name) for name in self.names]
        adapted = [adapter is not None and adapter in getattr(module, "lora_A", {}) for module in modules]
        if not any(adapted):
            return None
        found_a, found_b = list[Tensor](), list[Tensor]()
        for module, layer, has_it in zip(modules, self._linear(), adapted, strict=True):
            if has_it:
                found_a.append(module.lora_A[adapter].weight.detach())
                found_b.append(module.lora_B[adapter].weight.detach() * module.scaling[adapter])
            else:
                found_a.append(layer.weight.new_zeros(0, layer.in_features))
                found_b.append(layer.weight.new_zeros(layer.out_features, 0))
        weight = self._linear()[0].weight
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype
        return torch.cat(found_a).to(dtype).t(), torch.block_diag(*found_b).to(dtype).t()

    def _linear(self) -> list[nn.Linear]:
        """The base's layers; PEFT puts its own around them when the first adapter comes."""
        modules = [getattr(self.part, name) for name in self.names]
        return [getattr(module, "base_layer", module) for module in modules]


def _owner(model: nn.Module, wanted: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module that holds `wanted`, and under which name."""
    path = next(name for name, module in model.named_modules() if module is wanted)
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), [name]


_known: WeakKeyDictionary[Base, LlamaLayers | None] = WeakKeyDictionary()


def _layers_of(base: Base) -> LlamaLayers | None:
    """The base's layers, made when first asked for; None where they would not compute what the model does."""
    if base not in _known:
        try:
            layers = LlamaLayers(base.model)
            _known[base] = layers if _agree(base, layers) else None
        except (AttributeError, RuntimeError):  # another architecture: parts with other names or other shapes
            _known[base] = None
    return _known[base]


@torch.no_grad()
def _agree(base: Base, layers: LlamaLayers) -> bool:
    """Whether the logits after two short prompts, and one token later, are the model's own."""
    texts = "The capital of France is", "Once upon a time, there was a small"  # in bf16, odd tokens are mostly rounding
    prompts = [base.tokenizer(text).input_ids for text in texts]
    allowed = 0.1 if layers.embedding.weight.dtype in (torch.bfloat16, torch.float16) else 1e-3
    with base.using(None):
        ours, models = LlamaDecoding(layers, None, prompts, 1, 2), ModelDecoding(base, prompts, 1)
        for _ in range(2):
            if not (ours.logits - models.logits).float().norm() <= allowed * models.logits.float().norm():
                return False
            token = models.logits.argmax(-1)
            ours.step(token)
            models.step(token)
    return True
