"""Reading what a run leaves behind: its status, metrics and checkpoints, and where these come from. `run` writes it.

Needs no torch, so that whoever only watches a run starts at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.records import InputError

JUDGED_BY = {
    "sft": ("eval/loss",),
    "dpo": ("eval/loss",),
    "reward": ("eval/nll", "eval/loss"),
    "ppo": ("eval/score", "objective/rlhf_reward"),
}
"""By what the checkpoints of a method are compared: the first of these that the run measures."""
HIGHER_IS_BETTER = ("eval/score", "objective/rlhf_reward")


def read_status(folder: Path | str) -> dict[str, Any] | None:
    """The run's status.json, or None where there is none yet."""
    try:
        return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def read_metrics(folder: Path | str, after_line: int = 0) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl after the first `after_line`; a last line still being written is left for later."""
    return read_lines(Path(folder) / "metrics.jsonl")[after_line:]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file of a run; [] where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def checkpoints(folder: Path | str) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step-*/"), key=lambda path: path.name)


def read_manifest(checkpoint: Path | str) -> dict[str, Any]:
    """A checkpoint's manifest.json. Raises InputError where the folder is no checkpoint of ours."""
    try:
        return json.loads((Path(checkpoint) / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{checkpoint}: is no checkpoint (it holds no manifest.json)") from None


def continued_lora(checkpoint: Path | str) -> dict[str, Any]:
    """The LoRA settings of a checkpoint's adapter, under the names of the knobs; {} where it has none to read."""
    try:
        saved = json.loads((Path(checkpoint) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    targets = saved.get("target_modules") or []
    return {
        "lora_rank": saved["r"],
        "lora_alpha": float(saved["lora_alpha"]),
        "lora_dropout": float(saved.get("lora_dropout") or 0.0),
        "lora_targets": targets if isinstance(targets, str) else ",".join(sorted(targets)),
        "lora_layers": len(saved.get("layers_to_transform") or []),
        "use_rslora": bool(saved.get("use_rslora")),
    }


def lineage(parent: Path | str | None) -> list[dict[str, Any]]:
    """Where a checkpoint comes from: the chain of its ancestors, oldest first, each with what it was made of."""
    if not parent:
        return []
    try:
        manifest = read_manifest(parent)
    except InputError:  # an adapter from elsewhere
        return [{"checkpoint": str(parent)}]
    kept = {name: manifest[name] for name in ("method", "step", "base_model", "data") if name in manifest}
    return [*manifest.get("lineage", []), {"checkpoint": str(parent)} | kept]


def judged(name: str, metrics: Mapping[str, Any]) -> float | None:
    """The named metric, turned so that lower is better; None where it was not measured."""
    value = metrics.get(name)
    return -value if value is not None and name in HIGHER_IS_BETTER else value


def best_checkpoint(folder: Path | str, method: str) -> Path | None:
    """The checkpoint that was judged best, of equals the first; None where nothing was held out."""
    found = [(path, read_manifest(path).get("metrics", {})) for path in checkpoints(folder)]
    for name in JUDGED_BY[method]:
        values = [(value, path) for path, metrics in found if (value := judged(name, metrics)) is not None]
        if values:
            return min(values)[1]
    return None
