"""Checkpoints from elsewhere: an adapter or a whole model, as a zip or as its files.

Weights are read as safetensors alone: a pickle can run code when it is loaded. Only the files of a model are taken
over; an adapter's configuration is written anew from the fields that we know, and its tokenizer is the base's. What is
staged here is loaded once by a process of its own (`checkpoint_run`) before it is registered.
"""

from __future__ import annotations

import json
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from data.records import InputError
from labeler import checkpoint_work, registry
from labeler.store import one, scalar
from labeler.workspace import Workspace
from training.files import write_json

MAX_BYTES = 8 << 30
"""Unpacked. A browser uploads at most 500 MB at once."""
MAX_FILES = 200
PIECE = 1 << 20
LEFT_BEHIND = 24 * 3600
"""Seconds after which a folder that belongs to nobody was left behind by an import that was killed."""
WEIGHTS = ".safetensors"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
MODEL_ENDINGS = (WEIGHTS, ".json", ".jinja", ".txt", ".model")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib", ".h5", ".msgpack")
KNOWN = (
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "use_rslora", "bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
    "alpha_pattern", "base_model_name_or_path",
)  # fmt: skip
"""The fields of adapter_config.json that are taken over."""
BEYOND = ("use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters",
          "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config")  # fmt: skip
"""Fields that, set, make an adapter do something that is not done here."""


def imports_folder(workspace: Workspace) -> Path:
    return workspace.folder / "imports"


def stage(workspace: Workspace, files: Sequence[Path]) -> tuple[Path, str]:
    """Take over and check the files: one zip, or the files of one folder. Returns (staged folder, form).

    The form is policy-adapter, reward-adapter, reward-model or base. Raises InputError, and leaves nothing behind,
    where something is not as it must be.
    """
    if not files:
        raise InputError("choose the files of an adapter or a model, or a zip of them")
    staged = imports_folder(workspace) / secrets.token_hex(6)
    try:
        _sweep(workspace)
        staged.mkdir(parents=True)
        if len(files) == 1 and files[0].suffix == ".zip":
            _unzip(files[0], staged)
        else:
            _take_files(files, staged)
        return staged, _check(workspace, staged)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise InputError(f"the files could not be taken over ({error.strerror}); free some space") from None
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _sweep(workspace: Workspace) -> None:
    """Remove what imports that were killed have left: no checkpoint lies there and none is being loaded from there."""
    for folder in imports_folder(workspace).glob("*"):
        relative, absolute = folder.relative_to(workspace.folder).as_posix(), str(folder.resolve())
        sql = "SELECT 1 FROM checkpoints WHERE path = ? OR base_model = ?"
        known = scalar(workspace.store.db, sql, [relative, absolute])
        if not known and time.time() - folder.stat().st_mtime > LEFT_BEHIND:
            work = checkpoint_work.look(workspace, "import", folder.name)
            if work is None or work.state != "running":
                shutil.rmtree(folder, ignore_errors=True)


# -- the files ---------------------------------------------------------------------------------------------------------


def _unzip(source: Path, staged: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                _check_entry(entry)
            _check_amount(len(entries), sum(entry.file_size for entry in entries), staged)
            top = _top([PurePosixPath(entry.filename) for entry in entries])
            wanted = [entry for entry in entries if PurePosixPath(entry.filename).parent == top]
            names = [PurePosixPath(entry.filename).name for entry in wanted]
            if len(set(names)) < len(names):
                raise InputError("the zip holds the same file twice; pack the folder again")
            room = MAX_BYTES
            for entry, name in zip(wanted, names, strict=True):
                if name in _wanted(names):
                    with archive.open(entry) as file:
                        room -= _copy(file, staged / name, room)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, IndexError) as error:
        raise InputError(f"the zip cannot be read ({error}); pack the folder again, without a password") from None


def _check_entry(entry: zipfile.ZipInfo) -> None:
    """Every name must lie inside the folder, and be a plain file."""
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.parts[0]:
        raise InputError(f"the zip holds {entry.filename!r}, which would be written elsewhere; it was not unpacked")
    mode = entry.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise InputError(f"the zip holds {entry.filename!r}, which is a link and no file; it was not unpacked")


def _top(paths: Sequence[PurePosixPath]) -> PurePosixPath:
    """The folder in the zip that holds the configuration, the outermost where there are several."""
    found = [path.parent for path in paths if path.name in ("adapter_config.json", "config.json")]
    if not found:
        raise InputError("it holds neither adapter_config.json nor config.json; choose the folder of a checkpoint")
    return min(found, key=lambda path: len(path.parts))


def _take_files(files: Sequence[Path], staged: Path) -> None:
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        raise InputError("two files have the same name; choose the files of one folder")
    _top([PurePosixPath(name) for name in names])
    _check_amount(len(files), sum(path.stat().st_size for path in files), staged)
    wanted, room = _wanted(names), MAX_BYTES
    for path in files:
        if path.name in wanted:
            with open(path, "rb") as file:
                room -= _copy(file, staged / path.name, room)


def _check_amount(count: int, size: int, staged: Path) -> None:
    if count > MAX_FILES:
        raise InputError(f"it holds {count:,} files, a checkpoint has at most {MAX_FILES}; choose its folder alone")
    if size > MAX_BYTES:
        raise InputError(f"it is {size / 2**30:.1f} GiB large; at most {MAX_BYTES >> 30} GiB can be imported")
    if size > shutil.disk_usage(staged).free:
        raise InputError(f"the disk has no room for its {size / 2**20:.0f} MiB; free some space")


def _wanted(names: Iterable[str]) -> set[str]:
    """Those that are taken over. Raises InputError where the weights are pickles."""
    names = set(names)
    if not any(name.endswith(WEIGHTS) for name in names):
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        what = f"its weights are {pickles[0]}, a pickle, which may run code" if pickles else "it holds no weights"
        raise InputError(f"{what}; save them as safetensors (save_pretrained does) and import that")
    if "adapter_config.json" in names:
        return names & set(ADAPTER)
    return {name for name in names if name.endswith(MODEL_ENDINGS) and not name.startswith(".")} - {"manifest.json"}


def _copy(file: IO[bytes], target: Path, room: int) -> int:
    """Copy at most `room` bytes, whatever the archive says of its size; returns how many there were."""
    done = 0
    with open(target, "xb") as out:
        while piece := file.read(PIECE):
            done += len(piece)
            if done > room:
                raise InputError(f"it unpacks to more than {MAX_BYTES >> 30} GiB; it was not imported")
            out.write(piece)
    return done


# -- what they hold ----------------------------------------------------------------------------------------------------


def _check(workspace: Workspace, staged: Path) -> str:
    """The form of what was staged; an adapter's configuration is rewritten."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(staged.glob(f"*{WEIGHTS}")):
        try:
            with safe_open(path, framework="numpy") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path.name} is no safetensors file ({error}); export it again") from None
    if (staged / "adapter_config.json").is_file():
        return _check_adapter(workspace, staged, shapes)
    config = _json(staged / "config.json")
    if "auto_map" in config:
        raise InputError("config.json asks for code of its own (auto_map), which is never run here; use a plain model")
    architectures = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "reward-model"
    if any(name.endswith("ForCausalLM") for name in architectures):
        return "base"
    raise InputError(f"config.json names {', '.join(architectures) or 'no architecture'}; import a causal language "
                     "model or a sequence classifier with one label")  # fmt: skip


def _check_adapter(workspace: Workspace, staged: Path, shapes: dict[str, list[int]]) -> str:
    config = _json(staged / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise InputError(f"the adapter is of the kind {config.get('peft_type')!r}; only LORA can be used here")
    for name in BEYOND:
        if config.get(name):
            raise InputError(f"the adapter uses {name}, which is not supported here; merge it into a model elsewhere")
    reward = config.get("task_type") == "SEQ_CLS"
    if not reward and config.get("task_type") not in ("CAUSAL_LM", None):
        raise InputError(f"the adapter is for {config['task_type']}; CAUSAL_LM and SEQ_CLS can be used here")
    if (config.get("modules_to_save") or []) != (["score"] if reward else []):
        raise InputError(f"the adapter saves whole modules ({config.get('modules_to_save')}); only a reward model's "
                         "score head can be taken over")  # fmt: skip
    if config.get("bias") not in (None, "none"):
        raise InputError("the adapter trains biases, which is not supported here; merge it into a model elsewhere")
    if reward and "base_model.model.score.weight" not in shapes:
        raise InputError("the reward model's adapter holds no score head")
    if not any(".lora_A." in name for name in shapes):
        raise InputError("adapter_model.safetensors holds no LoRA weights")
    _check_base(workspace, staged, config, shapes)
    kept = {key: value for key, value in config.items() if key in KNOWN} | {"inference_mode": True}
    write_json(staged / "adapter_config.json", kept)
    _write_manifest(workspace, staged, "reward" if reward else "policy")
    return "reward-adapter" if reward else "policy-adapter"


def _check_base(workspace: Workspace, staged: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """That the adapter is of the workspace's base: by the hash of the weights where both are known, else by name.

    Whether it fits is found out by loading it, after this.
    """
    manifest = _json(staged / "manifest.json") if (staged / "manifest.json").is_file() else {}
    stated = manifest.get("base_model")
    theirs = stated.get("sha256") if isinstance(stated, dict) else None
    sql = """SELECT json_extract(manifest, '$.base_model.sha256') AS sha256 FROM checkpoints
        WHERE base_model = ? AND sha256 IS NOT NULL ORDER BY id DESC LIMIT 1"""
    ours = scalar(workspace.store.db, sql, [workspace.base_model])
    named = Path(str(config.get("base_model_name_or_path") or "")).name
    wanted = Path(workspace.base_model).name
    if (theirs and ours and theirs != ours) or (not theirs and named and named.lower() != wanted.lower()):
        raise InputError(f"the adapter belongs to the base model {named or 'with other weights'}, and this workspace "
                         f"works on {wanted}; start the app with that BASE_MODEL to import it")  # fmt: skip


def _write_manifest(workspace: Workspace, staged: Path, kind: str) -> None:
    """The manifest that every checkpoint here has; of one made by this program what it says of itself is kept."""
    stated = _json(staged / "manifest.json") if (staged / "manifest.json").is_file() else {}
    texts = {key: stated[key] for key in ("method", "created_at") if isinstance(stated.get(key), str)}
    objects = ("config", "metrics", "data", "versions", "score_normalisation")
    kept = {key: stated[key] for key in objects if isinstance(stated.get(key), dict)}
    base = stated.get("base_model")
    sha256 = base.get("sha256") if isinstance(base, dict) else None
    step = stated.get("step")
    write_json(
        staged / "manifest.json",
        {"method": "import", "config": {}}
        | texts
        | kept
        | {
            "kind": kind,
            "step": step if isinstance(step, int) and step >= 0 else 0,
            "parent": None,
            "lineage": [],
            "imported": True,
            "base_model": {"name": workspace.base_model, **({"sha256": sha256} if isinstance(sha256, str) else {})},
        },
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read as JSON ({error}); export the checkpoint again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path.name} must hold one JSON object")
    return found


# -- the row -----------------------------------------------------------------------------------------------------------


def free_name(workspace: Workspace, name: str) -> str:
    """A name for the new checkpoint. Raises InputError where it cannot have that one."""
    name = " ".join(name.split())
    registry.check_name(name)
    if one(workspace.store.db, "SELECT 1 FROM checkpoints WHERE name = ?", [name]):
        raise InputError(f"another checkpoint is called {name} already; choose another name")
    return name


def register(workspace: Workspace, staged: Path, form: str, name: str) -> int:
    """Note what was staged and loads; returns the new checkpoint's id.

    A causal language model becomes a base model that the app can be started with; everything else is of the
    workspace's base.
    """
    name = free_name(workspace, name)
    base = form == "base"
    whole = form in ("base", "reward-model")
    manifest = {"method": "import", "imported": True} if whole else _json(staged / "manifest.json")
    with workspace.store.write() as db:
        row = one(
            db,
            """INSERT INTO checkpoints (name, kind, step, path, base_model, parent_id, manifest)
            VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id""",
            [
                name,
                {"policy-adapter": "policy", "base": "base"}.get(form, "reward"),
                manifest.get("step"),
                None if base else staged.resolve().relative_to(workspace.folder.resolve()).as_posix(),
                str(staged.resolve()) if base else workspace.base_model,
                None if whole else workspace.base_checkpoint_id,
                json.dumps(manifest),
            ],
        )
    assert row is not None
    return int(row["id"])
