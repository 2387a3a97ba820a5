"""The README.md that leaves with a checkpoint: what it is, what it learned from, how to load it.

Names and notes are people's text: they stand in the card as quoted text, never as markup.
"""

from __future__ import annotations

import json
import re
import time
from html import escape
from pathlib import Path
from typing import Any

from labeler.checkpoints import Checkpoint
from labeler.lineage import Origin
from training.config import DEFAULT_MODEL

DEFAULT_LICENSE = "apache-2.0"
"""Of the default model's weights, as the package that brings them says."""
PATHS = ("data", "validation_data", "output", "from_checkpoint", "reward_model", "base_model")
"""Knobs that name files of this machine: no business of whoever gets the checkpoint."""
METHODS = {"sft": "supervised fine-tuning", "reward": "a reward model of human preferences",
           "dpo": "direct preference optimisation (DPO)", "ppo": "PPO against a reward model"}  # fmt: skip


def base_name(base_model: str) -> str:
    """A hub name as it is, of a folder its last part."""
    return Path(base_model).name if Path(base_model).is_absolute() else base_model


def base_license(base_model: str) -> str | None:
    """The licence of the base, where it is the default model or its own card says so."""
    if base_model == DEFAULT_MODEL:
        return DEFAULT_LICENSE
    try:
        card = (Path(base_model) / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *([\w.\-]+) *\n(?:.*\n)*?---\n", card[:20_000])
    return found[1] if found else None


def card(checkpoint: Checkpoint, origin: Origin, merged: bool = False) -> str:
    """The README.md of an adapter folder, or of a merged model folder."""
    manifest = checkpoint.manifest
    license = base_license(checkpoint.base_model)
    head = {
        "base_model": base_name(checkpoint.base_model),
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification" if checkpoint.kind == "reward" else "text-generation",
        "tags": ["preference-loop", *([] if merged else ["lora"]), *filter(None, [origin.method]), *checkpoint.tags],
    }
    if license:
        head["license"] = license
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    parts = [
        f"---\n{yaml}\n---\n",
        f"# {_quoted(checkpoint.name)}\n",
        f"A {checkpoint.kind} model{_by(origin)}, as "
        f"{'one whole model' if merged else 'a LoRA adapter'} on {_code(base_name(checkpoint.base_model))}.\n",
        *([_block(checkpoint.note) + "\n"] if checkpoint.note else []),
        "## Where it comes from\n",
        _table(_facts(checkpoint, origin, license)),
        "## How to load it\n",
        f"```python\n{usage(checkpoint, merged)}```\n",
        *_section("Metrics at this step", manifest.get("metrics")),
        *_section("Settings", {k: v for k, v in _dict(manifest.get("config")).items() if k not in PATHS}),
        *_section("Versions", manifest.get("versions")),
    ]
    return "\n".join(parts)


def _by(origin: Origin) -> str:
    return f" trained by {METHODS[origin.method]}" if origin.method in METHODS else ""


def _facts(checkpoint: Checkpoint, origin: Origin, license: str | None) -> list[tuple[str, str]]:
    base = _dict(checkpoint.manifest.get("base_model"))
    facts = [
        ("Base model", _code(base_name(checkpoint.base_model))),
        ("SHA-256 of the base's weights", _code(str(base.get("sha256") or "not recorded"))),
        ("Licence of the base", _quoted(license) if license else "not known; look at the base's own card"),
        ("Learned from", _quoted(origin.data_line()) or "not recorded"),
        ("SHA-256 of the data", _code(origin.data_sha256 or "not recorded")),
        ("Started from", _quoted(origin.parent.name) if origin.parent else "the base model"),
    ]
    if origin.reward_model:
        facts.append(("Reward model", _quoted(origin.reward_model.name)))
    if checkpoint.step:
        facts.append(("Step", f"{checkpoint.step:,}"))
    facts.append(("Made", time.strftime("%Y-%m-%d", time.gmtime(checkpoint.created_at))))
    return facts


def usage(checkpoint: Checkpoint, merged: bool) -> str:
    """Python that loads it with plain transformers and peft."""
    reward = checkpoint.kind == "reward"
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    labels = ", num_labels=1" if reward and not merged else ""
    printed = "the folder that `python -m training.default_model` prints"
    where = printed if checkpoint.base_model == DEFAULT_MODEL else "a hub name, or the folder of the base model"
    lines = [f"from transformers import {kind}, AutoTokenizer"]
    if not merged:
        lines.insert(0, "from peft import PeftModel")
    lines += ["", 'folder = "."  # where this file lies']
    if merged:
        lines += ["tokenizer = AutoTokenizer.from_pretrained(folder)", f"model = {kind}.from_pretrained(folder)"]
    else:
        reads = "base" if checkpoint.manifest.get("imported") else "folder"  # an import brings no tokenizer
        lines += [
            f"base = {json.dumps(base_name(checkpoint.base_model))}  # {where}",
            f"tokenizer = AutoTokenizer.from_pretrained({reads})",
            f"model = {kind}.from_pretrained(base{labels})",
            "model.config.pad_token_id = tokenizer.pad_token_id",
            "model = PeftModel.from_pretrained(model, folder).eval()",
        ]
    if reward:
        lines += [
            'chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]',
            "ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)['input_ids']",
            "ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # the score is read at the end token",
            "import torch",
            "score = model(input_ids=torch.tensor([ids])).logits[0, 0].item()",
        ]
    else:
        lines += [
            'chat = [{"role": "user", "content": "Hi"}]',
            "inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', "
            "return_dict=True)",
            "answer = model.generate(**inputs, max_new_tokens=64)",
        ]
    return "\n".join(lines) + "\n"


def _section(title: str, values: Any) -> list[str]:
    known = [(_code(str(key)), _code(_value(value))) for key, value in _dict(values).items() if value is not None]
    return [f"## {title}\n", _table(known)] if known else []


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""])


def _quoted(text: str | None) -> str:
    """Plain text for Markdown: one line, no markup, no HTML."""
    line = escape(" ".join((text or "").split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$>])", r"\\\1", line.replace("&gt;", ">").replace("&amp;", "&"))


def _code(text: str) -> str:
    """A value in backquotes that it cannot leave, also inside a table."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"


def _block(text: str) -> str:
    """A note as a block of plain text."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
