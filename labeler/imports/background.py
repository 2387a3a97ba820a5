"""An import that goes on while its page is closed: one at a time for a workspace, watched and stopped from any page."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from data.records import InputError
from labeler.imports import Imported, Progress, import_file
from labeler.imports.columns import Columns
from labeler.store import Store, explain
from labeler.users import User


@dataclass
class Running:
    """An import that runs, or the last one that did. `problem` says why it failed."""

    name: str
    progress: Progress | None = None
    result: Imported | None = None
    problem: str = ""
    stopping: bool = False

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.result is not None or bool(self.problem)


class Importer:
    """Runs imports into one store in a thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.last: Running | None = None
        self._lock = threading.Lock()

    def start(self, path: Path, user: User, project_id: int, on_error: str, mapping: Columns | None) -> None:
        """Begin. Raises InputError while another one runs."""
        with self._lock:
            if self.last is not None and not self.last.over:
                raise InputError(f"{self.last.name} is being imported; wait for it or stop it")
            running = self.last = Running(path.name)

        def watch(progress: Progress) -> bool:
            running.progress = progress
            return not running.stopping

        def work() -> None:
            try:
                running.result = import_file(
                    self.store, path, user, project_id=project_id, on_error=on_error, mapping=mapping, watch=watch
                )
            except InputError as error:
                # people know the file by its name, not by where the upload was put
                running.problem = str(error).replace(str(path), path.name)
            except (sqlite3.Error, OSError, MemoryError) as error:
                running.problem = explain(error)
            finally:
                if not running.over:
                    running.problem = "it broke off; the log of the app says why"
                self.store.close()

        threading.Thread(target=work, name="import", daemon=True).start()

    def stop(self) -> None:
        """Ask the import to stop after its current batch."""
        if self.last is not None:
            self.last.stopping = True
