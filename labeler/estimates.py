"""How long a run will take and how much memory it needs, before it is started; what cannot fit is refused.

What this machine can do with a model is measured once (`python -m training.speed`) and kept in the workspace's folder
`speed`; what a run computes is counted (`labeler.work`); and what earlier runs of the same method took beside what had
been expected of them corrects the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data.formats import read_rows
from data.records import InputError
from labeler import before, work
from labeler.before import PARSERS, Material
from labeler.store import rows, scalar
from labeler.work import Lengths, Work
from labeler.workspace import Workspace
from training import run_folder
from training.config import METHODS, TrainingConfig
from training.files import write_json
from training.knobs import from_dict

PROJECT = Path(__file__).resolve().parent.parent
KINDS = {"sft": "demonstrations", "reward": "preferences", "dpo": "preferences", "ppo": "prompts"}
WORTH_COMPILING = 1e13
"""As `training.loop` has it: tokens learned from, times parameters."""
PER_ROW = 0.001
"""Seconds to read, check and tokenise a row."""
EARLIER = 3
"""Runs of a method, the newest, that its estimates are corrected by."""
BOUND = 3.0
"""What a correction may be at most, either way: beyond it something else was wrong with that run."""
RECOMPUTING = 4 / 3
"""Gradient checkpointing: a forward more, beside a forward and a backward that costs two."""
MARGIN = 1.3
"""Allocators keep some of what was given back: runs took up to 29% more than the measured forwards add up to."""
TEXTS = 100
"""Prompts and answers from which the tokens of a character are counted."""
ANSWERS = 500

_measuring: dict[str, subprocess.Popen[bytes]] = {}
_turn = threading.Lock()


@dataclass(frozen=True)
class Estimate:
    """Seconds from the start to the end, and the peak of memory in bytes beside what is free.

    `runs`: how many earlier runs corrected it. `compiled`: whether the layers will be. `busy`: how many cores others
    kept busy while the speed was measured.
    """

    seconds: float
    memory: float
    room: float
    runs: int = 0
    compiled: bool = False
    busy: float = 0.0


def estimate(
    workspace: Workspace, method: str, settings: Mapping[str, Any], filters: Mapping[str, Any] | None = None
) -> Estimate | None:
    """What a run with these settings will take; None while the machine's speed with the model is not known."""
    config = configured(workspace, method, settings)
    found = before.material(workspace, KINDS[method], filters)
    expected = _expect(workspace, config, found)
    if expected is None:
        return None
    ratios = [ratio for ratio in _earlier(workspace, method) if 1 / BOUND <= ratio <= BOUND]
    seconds = expected.start + expected.steps * (statistics.median(ratios) if ratios else 1.0)
    speed = expected.speed
    return Estimate(
        seconds,
        _memory(config, expected.work, speed),
        room(workspace, speed),
        len(ratios),
        bool(speed["compile"]),
        float(speed.get("busy", 0.0)),
    )


def admit(workspace: Workspace, method: str, settings: Mapping[str, Any], filters: Mapping[str, Any] | None) -> None:
    """Raises InputError where a run with these settings cannot fit into the free memory, with what to change.

    A measurement that goes on is ended: it would be in the run's way, and the run in its.
    """
    stop_measuring(workspace)
    config = configured(workspace, method, settings)
    free = room(workspace, None)
    weights = _weights(config.base_model)
    if weights > free:
        raise InputError(
            f"{Path(config.base_model).name} alone takes {gigabytes(weights)} and {gigabytes(free)} are free; choose a "
            "smaller base_model, or close other programs"
        )
    if speed_of(workspace, config, _plain(config)) is None:
        return
    found = before.material(workspace, KINDS[method], filters)
    expected = _expect(workspace, config, found)
    if expected is None:
        return
    needed, free = _memory(config, expected.work, expected.speed), room(workspace, expected.speed)
    if needed > free:
        raise InputError(
            f"this run needs about {gigabytes(needed)} of memory and {gigabytes(free)} are free; "
            f"{_remedy(workspace, config, found, free)}"
        )


def gigabytes(count: float) -> str:
    """ "2.4 GB"."""
    return f"{count / 1e9:.1f} GB"


def configured(workspace: Workspace, method: str, settings: Mapping[str, Any]) -> TrainingConfig:
    """The config of a run of this workspace. Raises InputError where a setting is wrong."""
    path = Path(workspace.base_model)
    model = str(path.resolve()) if path.exists() else workspace.base_model
    config: TrainingConfig = from_dict(METHODS[method], {**settings, "base_model": model})
    return config


def room(workspace: Workspace, speed: Mapping[str, Any] | None) -> float:
    """Bytes that the next run may take: what is free, and what a run that goes on will give back before."""
    if speed and "device_memory" in speed:
        return float(speed["device_memory"])
    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    for row in rows(workspace.store.db, "SELECT pid FROM jobs WHERE state = 'running' AND pid IS NOT NULL"):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(row["pid"])
            free += sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    return free


# -- the machine's speed -----------------------------------------------------------------------------------------------


def speed_of(workspace: Workspace, config: TrainingConfig, fast: str) -> dict[str, Any] | None:
    """What was measured of the config's model on this machine; None where nothing was, or a run was in its way."""
    file = _file(workspace, config, fast)
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "error" in found:
        return None
    disturbed = scalar(
        workspace.store.db,
        "SELECT 1 FROM jobs WHERE started_at < ? AND coalesce(finished_at, 1e12) > ?",
        [found["ended"], found["began"]],
    )
    if disturbed:
        file.unlink(missing_ok=True)
        return None
    return found


def measure(workspace: Workspace, method: str, settings: Mapping[str, Any]) -> str:
    """Begin to measure what an estimate of such a run needs and nobody knows yet; what is going on, in words.

    "": nothing is to be measured. It takes half a minute in a process of its own, and waits while runs are there.
    """
    with _turn:
        return _measure(workspace, method, configured(workspace, method, settings))


def _measure(workspace: Workspace, method: str, config: TrainingConfig) -> str:
    child = _measuring.get(str(workspace.folder))
    if child is not None and child.poll() is None:
        return "measuring this machine's speed with the model, about half a minute"
    fast = _wanted(workspace, config, before.material(workspace, KINDS[method]))
    if fast is None:
        return ""
    file = _file(workspace, config, fast)
    file.with_suffix(".texts").unlink(missing_ok=True)  # what people said stays in the store alone
    if child is not None and child.returncode != 0 and not file.exists():  # killed ones too: memory may be short
        write_json(file, {"error": f"exit status {child.returncode}"})
    _measuring.pop(str(workspace.folder), None)
    if file.exists():
        return f"the speed could not be measured: see {file.with_suffix('.log')}"
    if scalar(workspace.store.db, "SELECT 1 FROM jobs WHERE state IN ('queued', 'running')"):
        return "not measured yet: it waits until no run goes on"
    if _weights(config.base_model) > room(workspace, None):
        return "not measured: the model does not fit into the free memory"
    _measuring[str(workspace.folder)] = _start(workspace, config, fast, file)
    return "measuring this machine's speed with the model, about half a minute"


def stop_measuring(workspace: Workspace) -> None:
    """End the measurement that goes on, if there is one."""
    with _turn:
        child = _measuring.pop(str(workspace.folder), None)
    if child is not None and child.poll() is None:
        child.kill()
        child.wait()


def mark(workspace: Workspace) -> str:
    """Changes when a measurement has begun or ended: when to look again."""
    child = _measuring.get(str(workspace.folder))
    going = child is not None and child.poll() is None
    return f"{going} {sorted(path.name for path in (workspace.folder / 'speed').glob('*.json'))}"


def _start(workspace: Workspace, config: TrainingConfig, fast: str, file: Path) -> subprocess.Popen[bytes]:
    file.parent.mkdir(exist_ok=True)
    asked, texts = file.with_suffix(".config"), file.with_suffix(".texts")
    write_json(asked, _asked(config, fast))
    write_json(texts, _texts(workspace))
    words = [sys.executable, "-m", "training.speed", "--config", str(asked), "--texts", str(texts)]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    with open(file.with_suffix(".log"), "wb") as output:
        return subprocess.Popen(
            [*words, "--output", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": path},
        )


def _asked(config: TrainingConfig, fast: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("base_model", "dtype", "device", "num_threads")} | {"fast": fast}


def _file(workspace: Workspace, config: TrainingConfig, fast: str) -> Path:
    """Named after the model, how it is computed, and the machine."""
    key = json.dumps([_asked(config, fast), _machine()], sort_keys=True)
    return workspace.folder / "speed" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _machine() -> str:
    """The processor and how many cores of it we may use."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model} x {cores}"


def _texts(workspace: Workspace) -> dict[str, list[Any]]:
    db = workspace.store.db
    prompts = rows(db, "SELECT messages FROM prompts ORDER BY id DESC LIMIT ?", [TEXTS])
    answers = rows(db, "SELECT text FROM completions WHERE text != '' ORDER BY id DESC LIMIT ?", [TEXTS])
    return {"prompts": [json.loads(row["messages"]) for row in prompts], "responses": [row["text"] for row in answers]}


def _wanted(workspace: Workspace, config: TrainingConfig, found: Material) -> str | None:
    """What must be measured for an estimate: off, eager or compile; None where all of it is known."""
    plain = speed_of(workspace, config, _plain(config))
    if plain is None:
        return _plain(config)
    counted = _count(workspace, config, found, plain)
    if counted and _compiles(config, counted, plain) and speed_of(workspace, config, "compile") is None:
        return None if _file(workspace, config, "compile").exists() else "compile"
    return None


def _plain(config: TrainingConfig) -> str:
    return "off" if config.fast == "off" else "eager"


def _compiles(config: TrainingConfig, counted: Work, speed: Mapping[str, Any]) -> bool:
    """Whether the trainer will compile the layers (`training.loop.compile_if_it_pays`)."""
    if config.gradient_checkpointing or config.shard_base or config.lora_dropout > 0:
        return False
    pays = config.fast == "auto" and speed["device"] == "cpu" and counted.tokens * speed["parameters"] > WORTH_COMPILING
    return pays or config.fast == "compile"


def _weights(base_model: str) -> float:
    """Bytes of a model folder's weights; 0 where it is not on this disk by that name."""
    folder = Path(base_model)
    return float(sum(path.stat().st_size for path in folder.glob("*.safetensors"))) if folder.is_dir() else 0.0


# -- from work and speed to seconds and bytes --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expected:
    """Seconds before the first step, and of all steps."""

    start: float
    steps: float
    work: Work
    speed: dict[str, Any]


def _count(workspace: Workspace, config: TrainingConfig, found: Material, speed: Mapping[str, Any]) -> Work | None:
    if not found.records:
        return None
    texts = rows(
        workspace.store.db,
        "SELECT length(text) AS n FROM completions WHERE text != '' ORDER BY id DESC LIMIT ?",
        [ANSWERS],
    )
    per_character = speed["tokens_per_character"]
    answers = [round(row["n"] * per_character) + 1 for row in texts]
    return work.count(config, found, Lengths(per_character, speed["template"], int(speed["shared"]), answers))


def _expect(workspace: Workspace, config: TrainingConfig, found: Material) -> _Expected | None:
    speed = speed_of(workspace, config, _plain(config))
    counted = _count(workspace, config, found, speed) if speed else None
    if speed is None or counted is None:
        return None
    if _compiles(config, counted, speed):
        speed = speed_of(workspace, config, "compile") or speed
    share = _depth(config, speed)
    learn = float(counted.learn @ np.array(speed["learn"]))
    if share < 1:  # the layers below the adapter are only read
        learn = share * learn + (1 - share) * float(counted.learn @ np.array(speed["read"]))
    if config.gradient_checkpointing:
        learn *= RECOMPUTING
    step, row = speed["decode"]
    seconds = learn + float(counted.read @ np.array(speed["read"]))
    seconds += counted.decode_steps * step + counted.decode_rows * row
    seconds += counted.updates * speed["step"] * counted.adapters + counted.saves * speed["save"]
    return _Expected(speed["start"] + speed["compile"] + PER_ROW * counted.rows, seconds, counted, speed)


def _depth(config: TrainingConfig, speed: Mapping[str, Any]) -> float:
    """Share of the layers that have an adapter."""
    return min(1.0, config.lora_layers / speed["layers"]) if config.lora_layers else 1.0


def _memory(config: TrainingConfig, counted: Work, speed: Mapping[str, Any]) -> float:
    """Peak bytes. Each trainable number takes 16: itself, its gradient and Adam's two; one adapter was measured."""
    adapter = speed["trainable"] * 16 * config.lora_rank / TrainingConfig().lora_rank * _depth(config, speed)
    token = speed["memory_per_token"]
    if config.gradient_checkpointing:  # what goes into each layer, and all of one layer
        token = token / speed["layers"] + 4 * speed["layers"] * speed["hidden"]
    needed = speed["memory"] - speed["trainable"] * 16 + adapter * counted.adapters + token * counted.largest
    return float(MARGIN * needed)


def _remedy(workspace: Workspace, config: TrainingConfig, found: Material, free: float) -> str:
    """The smallest change that makes it fit."""

    def fits(**changes: Any) -> bool:
        changed = replace(config, **changes)
        expected = _expect(workspace, changed, found)
        return expected is not None and _memory(changed, expected.work, expected.speed) <= free

    for tokens in (1024, 768, 512, 256, 128):
        if tokens < config.tokens_per_forward and fits(tokens_per_forward=tokens):
            return f"lower tokens_per_forward to {tokens}"
    if not config.gradient_checkpointing and fits(gradient_checkpointing=True):
        return "turn on gradient_checkpointing"
    for length in (512, 256, 128):
        shorter = {"max_length": length, "tokens_per_forward": min(256, config.tokens_per_forward)}
        if length < config.max_length and fits(**shorter):
            return f"lower max_length to {length} and tokens_per_forward to {shorter['tokens_per_forward']}"
    return "close other programs, or choose a smaller base_model"


# -- what earlier runs took --------------------------------------------------------------------------------------------

_ratios: dict[tuple[str, float], float | None] = {}


def _earlier(workspace: Workspace, method: str) -> list[float]:
    """Of the newest finished runs of that method on this base: seconds of their steps over what was expected."""
    found = []
    sql = """SELECT j.id, j.config FROM jobs AS j JOIN checkpoints AS c ON c.id = j.parent_checkpoint_id
        WHERE j.method = ? AND c.base_model = ? AND j.state IN ('finished', 'stopped') AND j.resume = 0
        ORDER BY j.started_at DESC LIMIT ?"""
    for row in rows(workspace.store.db, sql, [method, workspace.base_model, 2 * EARLIER]):
        folder, config = workspace.runs_folder / row["id"], json.loads(row["config"])
        with contextlib.suppress(
            InputError, OSError, ValueError, TypeError
        ):  # an older version's, or its files are gone
            known = from_dict(METHODS[method], config)
            speed = speed_of(workspace, known, _plain(known))
            key = (str(folder), speed["began"] if speed else 0.0)
            if key not in _ratios:
                _ratios[key] = _ratio(workspace, folder, known, method)
            ratio = _ratios[key]
            if ratio:
                found.append(ratio)
    return found[:EARLIER]


def _ratio(workspace: Workspace, folder: Path, config: TrainingConfig, method: str) -> float | None:
    """Seconds of a run's steps over what is expected of them; a pause between two steps counts as a long step."""
    metrics = [row for row in run_folder.read_metrics(folder) if "time" in row]
    if len(metrics) < 4:
        return None
    parse = PARSERS[KINDS[method]]
    records = [parse(row) for _, row in islice(read_rows(config.data), before.LIMIT + 1)]
    total = len(records)
    if total > before.LIMIT:
        with open(config.data, "rb") as file:
            total = sum(1 for _ in file)
    expected = _expect(workspace, config, Material(KINDS[method], records[: before.LIMIT], total))
    if expected is None or not expected.steps:
        return None
    gaps = [later["time"] - earlier["time"] for earlier, later in pairwise(metrics)]
    longest = 5 * statistics.median(gaps)
    done = metrics[-1]["step"] - metrics[0]["step"]
    return sum(min(gap, longest) for gap in gaps) / (expected.steps * done / expected.work.steps)
