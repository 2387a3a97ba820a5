"""Our own decoding of Llama's layers against the model's own forward."""

import numpy as np
import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.base import Base
from training.config import SFTConfig
from training.decoding import LlamaDecoding, LlamaLayers, ModelDecoding, start_decoding
from training.rollout import sample, uniforms

PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [21], [31, 32, 33]]
ALIKE = [[11, 12, 13, 14, 15, 16, 17], [11, 12, 13], [11, 12, 13, 33]]


def adapted(base, **lora):
    """With an adapter that changes much."""
    base.new_adapter("policy", SFTConfig(lora_rank=4, **lora))
    torch.manual_seed(3)
    for parameter in base.adapter_parameters("policy"):
        parameter.data = torch.randn_like(parameter) * 0.2
    return base


def with_model(base, kind, config, **sizes):
    """A random model of another kind, with the tokenizer of `base`."""
    torch.manual_seed(1)
    given = {
        "vocab_size": len(base.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        **sizes,
    }
    model = kind(config(**given)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return Base("other", "", model, base.tokenizer)


@torch.no_grad()
def both(base, adapter, steps=40, prompts=PROMPTS):
    """Log-probabilities by the model's own forward and by ours, of two sequences a prompt, some of which leave."""
    found = []
    with base.using(adapter):
        decodings = []
        for base.fast in (False, True):
            decodings.append(start_decoding(base, prompts, 2, steps))
        assert [type(decoding) for decoding in decodings] == [ModelDecoding, LlamaDecoding]
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(2 * len(prompts))
        for step in range(steps):
            found.append([torch.log_softmax(d.logits.float(), -1) for d in decodings])
            if step in (5, 33):
                kept = torch.tensor([0, 2, 3, 5] if step == 5 else [1, 3])
                rows = rows[kept]
                for decoding in decodings:
                    decoding.keep(kept)
            tokens = torch.randint(1, 1000, (len(rows),), generator=generator)
            for decoding in decodings:
                decoding.step(tokens)
    return found


MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama, grouped queries": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "head_dim": 16}),
    "llama, biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 1}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
}


@pytest.mark.parametrize("adapter", [None, "policy"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_the_models_own(base, name, adapter):
    kind, config, sizes = MODELS[name]
    other = adapted(with_model(base, kind, config, **sizes))
    for models, ours in both(other, adapter):
        torch.testing.assert_close(ours, models, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prompts", [ALIKE, ALIKE[:2], ALIKE[:1], [ALIKE[1]] * 3])
def test_what_all_prompts_begin_with_is_read_once(base, prompts, monkeypatch):
    """Also where it is all but the last token of a prompt."""
    other = adapted(with_model(base, *MODELS["llama, grouped queries"][:2], **MODELS["llama, grouped queries"][2]))
    other.model.to(torch.float64)
    read, plain = [], LlamaLayers.hidden

    def watch(layers, ids, *rest):
        read.append(ids.tolist())
        return plain(layers, ids, *rest)

    monkeypatch.setattr(LlamaLayers, "hidden", watch)
    with other.using("policy"), torch.no_grad():
        start_decoding(other, prompts, 2, 1)
    shared = min(len(ids) for ids in prompts) - 1 if len(prompts) > 1 else 0
    assert read[-2 if shared else -1 :] == [[11, 12, 13][:shared]] * bool(shared) + [
        [token for ids in prompts for token in ids[shared:]]
    ]
    for models, ours in both(other, "policy", steps=5, prompts=prompts):
        torch.testing.assert_close(ours, models, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [{"lora_targets": "v_proj,up_proj"}, {"lora_layers": 1}, {"lora_alpha": 3}])
def test_an_adapter_of_some_layers(base, lora):
    for models, ours in both(adapted(base, **lora), "policy", steps=3):
        torch.testing.assert_close(ours, models, rtol=0, atol=1e-4)


def test_packed_weights_multiply_alike(base):
    """bf16, where weights are packed: no further from fp32 than the model's own bf16 forward, but for a little."""
    adapted(base)
    exact = [models for models, _ in both(base, "policy")]
    base.model.to(torch.bfloat16)
    other = adapted(Base("bf16", "", base.peft.unload(), base.tokenizer))
    for parameter in other.adapter_parameters("policy"):
        parameter.data = parameter.data.float()
    errors = [
        [(x - e).pow(2).mean().sqrt() for x in pair] for e, pair in zip(exact, both(other, "policy"), strict=True)
    ]
    models, ours = torch.tensor(errors).mean(0)
    assert ours < 1.25 * models


@pytest.mark.parametrize("temperature", [1.0, [0.0, 0.7, 1.5]])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_same_uniforms_give_the_same_tokens(base, temperature, top_p):
    adapted(base)
    base.model.generation_config.eos_token_id = list(range(2, base.model.config.vocab_size, 17))  # some end early
    random = np.array([[uniforms(5, 0, i, k, 40) for k in range(3)] for i in range(3)])
    given = {"adapter": "policy", "temperature": temperature, "top_p": top_p}
    ours = sample(base, PROMPTS, random, **given)
    base.fast = False
    models = sample(base, PROMPTS, random, **given)
    base.fast = True
    assert ours == models
    assert len({len(s.ids) for found in ours for s in found}) > 2, "they end at different steps"
    for i in range(3):
        assert sample(base, PROMPTS[i : i + 1], random[i : i + 1], **given)[0] == ours[i]


def test_other_architectures_are_left_to_the_model(base):
    others = [
        with_model(base, GPTNeoXForCausalLM, GPTNeoXConfig),  # other parts
        with_model(base, Qwen3ForCausalLM, Qwen3Config, num_key_value_heads=2, head_dim=8),  # the same and more
    ]
    for other in others:
        with other.using(None), torch.no_grad():
            assert isinstance(start_decoding(other, PROMPTS, 1, 2), ModelDecoding)
