"""The folder that holds everything a user made: the database and the runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from data.records import InputError
from labeler.imports import import_file
from labeler.store import Store, scalar
from labeler.users import local_owner

SEED_FILE = Path(__file__).resolve().parents[1] / "data" / "prompts" / "seed.jsonl"
DATABASE_NAME = "preferences.sqlite"


@dataclass(frozen=True)
class Workspace:
    """An open workspace. `base_model` is the name or folder of the model that training and chat start from.

    `launcher` are the words that start a run in place of this python (accelerate launch, srun python, ssh host python).
    """

    folder: Path
    base_model: str
    store: Store
    base_checkpoint_id: int
    launcher: tuple[str, ...] = ()

    @property
    def runs_folder(self) -> Path:
        """One folder a training run."""
        return self.folder / "runs"

    @property
    def chat_lock(self) -> Path:
        """Held while an answer is written, so that a run leaves it half of the cores."""
        return self.folder / "chat.lock"

    @property
    def snapshots_folder(self) -> Path:
        """Exports made from the Data tab."""
        return self.folder / "snapshots"


def open_workspace(
    folder: Path | str, base_model: str, seed_file: Path | None = SEED_FILE, launcher: str = ""
) -> Workspace:
    """Open the workspace; make, migrate and seed it where that has not been done.

    Raises InputError with the remedy where the folder or the database cannot be used.
    """
    folder = Path(folder).expanduser().resolve()
    try:
        words = tuple(shlex.split(launcher))
    except ValueError as error:
        raise InputError(f"LAUNCHER={launcher} is no command ({error}); quote it as in a shell") from None
    try:
        for path in (folder, folder / "runs", folder / "snapshots"):
            path.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{folder}: cannot be used as a workspace ({reason}); set WORKSPACE to another folder"
        ) from None
    store = Store(folder / DATABASE_NAME)
    base_checkpoint_id = _base_checkpoint(store, base_model)
    workspace = Workspace(folder, base_model, store, base_checkpoint_id, words)
    if seed_file is not None and seed_file.exists() and not scalar(store.db, "SELECT count(*) FROM prompts"):
        import_file(store, seed_file, local_owner(store), source="seed")
    return workspace


def _base_checkpoint(store: Store, base_model: str) -> int:
    """The id of the base model's row. A workspace may have seen several base models; the first has id 1."""
    sql = "SELECT id FROM checkpoints WHERE kind = 'base' AND base_model = ?"
    found = scalar(store.db, sql, [base_model])
    if found is None:
        name = Path(base_model).name or base_model
        with store.write() as db:
            taken = scalar(db, "SELECT 1 FROM checkpoints WHERE name = ?", [f"base {name}"])
            db.execute(
                "INSERT INTO checkpoints (name, kind, base_model) VALUES (?, 'base', ?)",
                [f"base {base_model if taken else name}", base_model],
            )
            found = scalar(db, sql, [base_model])
    return int(found)
