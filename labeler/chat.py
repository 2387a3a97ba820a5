"""Talking to the models: one base in memory, an adapter for each checkpoint, answers token by token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.records import InputError, Message
from labeler import checkpoints, jobs
from labeler.checkpoints import Checkpoint
from labeler.workspace import Workspace

if TYPE_CHECKING:  # torch takes seconds to import, and the page should not wait for it
    from training.base import Base
    from training.rollout import Token

SMALLEST_ANSWER = 16
"""With less room than this in the model's context, a conversation counts as too long."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. temperature 0 always takes the most likely token. Raises InputError."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0, 5),
            ("top_p", 0.01, 1),
            ("max_new_tokens", 1, 4096),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            shown = name.replace("_", " ")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"set {shown} to a number from {low} to {high}")
            if not low <= value <= high:
                raise InputError(f"{shown} must lie between {low} and {high}, not {value:g}")
        object.__setattr__(self, "max_new_tokens", int(self.max_new_tokens))
        object.__setattr__(self, "seed", int(self.seed))

    def settings(self) -> dict[str, Any]:
        """For the store: what this answer was drawn with."""
        return asdict(self)


class Chat:
    """The workspace's base model, loaded in the background when it is first needed, and its adapters."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._loading: Future[Base] | None = None

    @property
    def ready(self) -> bool:
        """Whether the base is in memory."""
        loading = self._loading
        return loading is not None and loading.done() and loading.exception() is None

    def load(self) -> Future[Base]:
        """Begin to load the base, unless that has been done; a failure before is tried again."""
        with self._lock:
            if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
                self._loading = Future()
                threading.Thread(target=self._load, args=(self._loading,), name="load model", daemon=True).start()
            return self._loading

    def _load(self, future: Future[Base]) -> None:
        try:
            from training.models import load_base

            future.set_result(load_base(self.workspace.base_model))
        except BaseException as error:
            future.set_exception(error)

    def wait(self, every: float = 0.5) -> Iterator[float]:
        """Load the base; yields the seconds waited so far until it is there. Raises InputError where it cannot be."""
        future, started = self.load(), time.monotonic()
        while not future.done():
            yield time.monotonic() - started
            try:
                future.result(timeout=every)
            except TimeoutError:
                continue
            except BaseException:
                break  # raised below, once, with a message
        _result(future)

    def base(self) -> Base:
        """The loaded base; waits for it."""
        return _result(self.load())

    def checkpoint(self, checkpoint_id: int) -> Checkpoint:
        """One that can answer. Raises InputError for reward models and for checkpoints of another base."""
        checkpoint = checkpoints.get(self.workspace.store, checkpoint_id)
        if checkpoint.kind == "reward":
            raise InputError(f"{checkpoint.name} is a reward model: it gives scores and cannot answer. Choose a policy")
        if checkpoint.base_model != self.workspace.base_model:
            raise InputError(
                f"{checkpoint.name} belongs to another base model ({Path(checkpoint.base_model).name}); "
                f"start the app with BASE_MODEL={checkpoint.base_model} to talk to it"
            )
        return checkpoint

    def adapter(self, checkpoint_id: int) -> str | None:
        """The name of the checkpoint's adapter on the base, attached where it was not yet; None for the base itself."""
        path = checkpoints.folder(self.workspace, self.checkpoint(checkpoint_id))
        return None if path is None else self.base().attach(path)

    def stream(self, checkpoint_id: int, messages: Sequence[Message], sampling: Sampling) -> Iterator[Token]:
        """The checkpoint's answer, growing. Close it to stop.

        An answer is kept as short as the model's context asks for. Raises InputError (before anything is sampled)
        where the conversation leaves no room for one.
        """
        from training import chat_template, cores, rollout

        base, adapter = self.base(), self.adapter(checkpoint_id)
        room = base.context_length - len(chat_template.encode_prompt(base, messages))
        if room < SMALLEST_ANSWER:
            raise InputError(
                f"This conversation has reached the {base.context_length} tokens that the model can read. "
                "Start a new conversation, or shorten your message."
            )
        tokens = rollout.stream(
            base,
            messages,
            adapter=adapter,
            max_new_tokens=min(sampling.max_new_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        training = bool(jobs.list_jobs(self.workspace.store, ["running"]))
        return cores.answering(tokens, self.workspace.chat_lock, training)


def _result(future: Future[Base]) -> Base:
    try:
        return future.result()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model could not be loaded: {error or type(error).__name__}") from error


def conversation(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The messages with the system prompt, if there is one, in front."""
    system = (system_prompt or "").strip()
    return [Message(role="system", content=system), *messages] if system else list(messages)


_chats: dict[Path, Chat] = {}
_chats_lock = threading.Lock()


def of_workspace(workspace: Workspace) -> Chat:
    """The one Chat of a workspace, so that Chat and Compare share one base in memory."""
    with _chats_lock:
        return _chats.setdefault(workspace.folder, Chat(workspace))
