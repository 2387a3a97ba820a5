"""Files that are there whole or not at all, and what is said when the disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.records import InputError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Whatever is written inside must land; a full disk is one clear line."""
    try:
        yield path
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free some space and resume the run"
        ) from None


def sync(path: Path) -> None:
    """Until the disk has it. Folders too: a new name is theirs."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that nobody ever sees a part of it."""
    going = checkpoint.with_name(f".partial-{checkpoint.name}-old")
    os.replace(checkpoint, going)
    shutil.rmtree(going)
