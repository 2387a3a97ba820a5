"""A tiny random model with the real tokenizer: the mechanics of everything, at a thousandth of the cost."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.default_model import default_model_folder


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a two-layer Llama of width 32 and the default model's tokenizer as a model folder; returns the folder."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder())
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


WORDS = ["yes", "no", "one", "two", "three", "four"]


def make_toy_model(folder: Path, seed: int = 0) -> Path:
    """Write a random model whose whole vocabulary is six words and the specials: what is optimal can be worked out."""
    words = ["<unk>", "<end>", "user", "assistant", ":", *WORDS]
    return make_word_model(folder, words, pad="<end>", width=32, spread=0.3, seed=seed)


def make_word_model(
    folder: Path, words: list[str], *, pad: str, width: int, spread: float, seed: int = 0, template: str | None = None
) -> Path:
    """Write a random one-layer Llama that knows `words` alone, whose first is the unknown one, and "<end>"."""
    index = {word: number for number, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(index, unk_token=words[0]))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token=words[0], eos_token="<end>", pad_token=pad)
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=index["<end>"],
        pad_token_id=index[pad],
        tie_word_embeddings=False,
        initializer_range=spread,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
