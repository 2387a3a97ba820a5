"""Base and adapter as one plain model folder, for transformers, vLLM and the llama.cpp converters."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data.records import InputError
from training.base import Base
from training.run_folder import read_manifest


def merge(base: Base, checkpoint: Path | str, output: Path | str) -> dict[str, Any]:
    """Write W + (alpha / r) BA, computed in fp32, with tokenizer and config.

    A policy is stored in the base's precision, a reward model in fp32: its score is the head's raw fp32 output.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: is not empty; name a new folder")
    kind = read_manifest(checkpoint)["kind"]
    brings_own = (Path(checkpoint) / "tokenizer_config.json").is_file()  # an adapter from elsewhere may not
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint)) if brings_own else base.tokenizer
    if kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=1, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None):
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = sorted(base.stop_ids)  # what the policy was taught to end with
    merged = PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        merged.to(torch.float32 if kind == "reward" else base.model.dtype).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"output": str(output), "kind": kind, "base_model": base.name}
