"""A checkpoint as a file to take away: a zip of its PEFT folder, or of the merged model, with a model card inside."""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from data.records import InputError
from labeler import auth, checkpoints, lineage, model_card
from labeler.checkpoints import Checkpoint
from labeler.workspace import Workspace

TAKERS = ("researcher", "owner")
"""Roles that may take a model away, or bring one in."""
KEPT = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Endings of what belongs to a checkpoint."""
PIECE = 1 << 22


def exports_folder(workspace: Workspace) -> Path:
    """Where merged models wait to be fetched."""
    return workspace.folder / "exports"


def merged_zip(workspace: Workspace, checkpoint_id: int) -> Path:
    return exports_folder(workspace) / f"{checkpoint_id}-merged.zip"


def file_name(checkpoint: Checkpoint, what: str) -> str:
    """ "dpo-0003-step-60-adapter": the checkpoint's name, as a file may be called."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", checkpoint.name).strip("-.") or f"checkpoint-{checkpoint.id}"
    return f"{plain}-{what}"


def adapter_parts(workspace: Workspace, checkpoint: Checkpoint) -> dict[str, Path | bytes]:
    """What the adapter's folder holds for others: its files, a card, and a manifest without this machine's paths."""
    folder = checkpoints.folder(workspace, checkpoint)
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise InputError(f"{checkpoint.name} has no adapter; a base or a whole model is taken from its own folder")
    parts: dict[str, Path | bytes] = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in KEPT
    }
    for name in ("manifest.json", "adapter_config.json"):
        stated = json.loads((folder / name).read_text(encoding="utf-8"))
        parts[name] = json.dumps(portable(workspace, stated), ensure_ascii=False, indent=1).encode()
    origin = lineage.origin(workspace.store, checkpoint)
    return {"README.md": model_card.card(checkpoint, origin).encode(), **parts}


def portable(workspace: Workspace, value: Any) -> Any:
    """The same JSON with paths of this machine made relative to the workspace, or cut to their last part."""
    if isinstance(value, dict):
        return {key: portable(workspace, each) for key, each in value.items()}
    if isinstance(value, list):
        return [portable(workspace, each) for each in value]
    if isinstance(value, str) and value.startswith("/"):
        path = Path(value)
        inside = path.is_relative_to(workspace.folder)
        return path.relative_to(workspace.folder).as_posix() if inside else path.name
    return value


def write_zip(
    target: Path, parts: dict[str, Path | bytes], folder: str, look: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write the parts under `folder` of a zip that appears whole or not at all; `look` is told (bytes done, of all).

    Stored, not compressed: weights do not shrink.
    """
    total = sum(part.stat().st_size if isinstance(part, Path) else len(part) for part in parts.values())
    done = 0
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, part in parts.items():
                with archive.open(zipfile.ZipInfo(f"{folder}/{name}", (1980, 1, 1, 0, 0, 0)), "w",
                                  force_zip64=True) as file:  # fmt: skip
                    for piece in _pieces(part):
                        file.write(piece)
                        done += len(piece)
                        look(done, total)
        os.replace(partial, target)
    except OSError as error:
        raise InputError(
            f"{target.name} could not be written ({error.strerror}); free some space, then again"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _pieces(part: Path | bytes) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part
        return
    with open(part, "rb") as file:
        while piece := file.read(PIECE):
            yield piece


def add_routes(app: FastAPI, workspace: Workspace) -> None:
    """GET /checkpoints/3/adapter.zip and /checkpoints/3/merged.zip, for those who may."""

    @app.get("/checkpoints/{checkpoint_id}/{what}.zip")
    def download(checkpoint_id: int, what: str, request: Request) -> Response:
        user = auth.user_of(workspace.store, request.cookies)
        if user is None or user.role not in TAKERS:
            return JSONResponse({"detail": "ask a researcher or the owner for this file"}, 403)
        try:
            checkpoint = checkpoints.get(workspace.store, checkpoint_id)
            checkpoints.folder(workspace, checkpoint)
            name = file_name(checkpoint, what)
            if what == "merged" and merged_zip(workspace, checkpoint_id).is_file():
                return _file(merged_zip(workspace, checkpoint_id), name)
            if what != "adapter":
                raise InputError(f"there is no such file of {checkpoint.name}; prepare it in Checkpoints first")
            descriptor, path = tempfile.mkstemp(".zip", ".adapter-", workspace.folder)
            os.close(descriptor)
            try:
                write_zip(Path(path), adapter_parts(workspace, checkpoint), name)
            except BaseException:
                Path(path).unlink(missing_ok=True)
                raise
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 404)
        return _file(Path(path), name, BackgroundTask(Path(path).unlink, missing_ok=True))


def _file(path: Path, name: str, after: BackgroundTask | None = None) -> FileResponse:
    return FileResponse(path, media_type="application/zip", filename=f"{name}.zip", background=after)
