"""Talking to the models: one base in memory, an adapter for each checkpoint, answers token by token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.records import InputError, Message
from labeler import checkpoints, jobs
from labeler.checkpoints import Checkpoint
from labeler.workspace import Workspace

if TYPE_CHECKING:  # torch takes seconds to import, and the page should not wait for it
    from training.base import Base
    from training.rollout import Token

T = TypeVar("T")

SMALLEST_ANSWER = 16
"""With less room than this in the model's context, a conversation counts as too long."""


def _knob(default: float, low: float, high: float, step: float, label: str, info: str) -> Any:
    """One setting, its range, and how a form shows it."""
    return field(default=default, metadata={"low": low, "high": high, "step": step, "label": label, "info": info})


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. temperature 0 always takes the most likely token. Raises InputError."""

    temperature: float = _knob(0.7, 0, 5, 0.05, "Temperature", "0: always the likeliest word.")
    top_p: float = _knob(0.95, 0.01, 1, 0.01, "Top-p", "Draw from the likeliest words up to this share.")
    max_new_tokens: int = _knob(256, 1, 4096, 1, "Maximum length", "In tokens; a word is about 1.3.")
    seed: int = _knob(0, 0, 2**31 - 1, 1, "Seed", "The same seed gives the same answer.")
    top_k: int = _knob(0, 0, 2**31 - 1, 1, "Top-k", "Draw from so many likeliest words; 0: from all.")
    min_p: float = _knob(0, 0, 1, 0.01, "Min-p", "Leave out words below this share of the likeliest one's probability.")
    repetition_penalty: float = _knob(1, 0.5, 2, 0.05, "Repetition penalty", "Above 1: what was said is less likely.")

    def __post_init__(self) -> None:
        for knob in fields(self):
            value, low, high = getattr(self, knob.name), knob.metadata["low"], knob.metadata["high"]
            shown = knob.name.replace("_", " ")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"set {shown} to a number from {low} to {high}")
            if not low <= value <= high:
                raise InputError(f"{shown} must lie between {low} and {high}, not {value:g}")
            if knob.metadata["step"] == 1:
                object.__setattr__(self, knob.name, int(value))

    def settings(self) -> dict[str, Any]:
        """For the store: what this answer was drawn with."""
        return asdict(self)


class Chat:
    """The workspace's base model, loaded in the background when it is first needed, and its adapters."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        # One thread computes for everybody: whoever asks again for a token stands at the end of its queue, so that all
        # answers grow alike, and no threads of torch's for one answer wait busily beside those of another.
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loading: Future[Base] | None = None
        self._scoring = threading.Lock()
        self._scorer: tuple[tuple[Path, int], Any] | None = None

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
            from training import rollout
            from training.models import chat_dtype, load_base

            base = load_base(self.workspace.base_model, chat_dtype())
            hello: list[Message] = [{"role": "user", "content": "Hello"}]
            for _ in rollout.stream(base, hello, adapter=None, max_new_tokens=1):
                pass  # the first token of all packs the weights: nobody's answer waits for that
            base.sha256()  # nor for this: it is compared when the first adapter is attached
            future.set_result(base)
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

    def room(self, messages: Sequence[Message]) -> int:
        """How many tokens an answer may have. Raises InputError where the conversation leaves none."""
        from training import chat_template

        base = self.base()
        room = base.context_length - len(chat_template.encode_prompt(base, messages))
        if room < SMALLEST_ANSWER:
            raise InputError(
                f"This conversation has reached the {base.context_length} tokens that the model can read. "
                "Start a new conversation, or shorten your message."
            )
        return room

    def stream(self, checkpoint_id: int, messages: Sequence[Message], sampling: Sampling) -> Iterator[Token]:
        """The checkpoint's answer, growing. Close it to stop. All answers take turns, a token each.

        An answer is kept as short as the model's context asks for. Raises InputError (before anything is sampled)
        where the conversation leaves no room for one.
        """
        from training import rollout

        settings = sampling.settings()
        settings["max_new_tokens"] = min(sampling.max_new_tokens, self.room(messages))
        base, adapter = self.base(), self.adapter(checkpoint_id)
        return self._in_turn(rollout.stream(base, messages, adapter=adapter, **settings))

    def score(self, checkpoint_id: int, messages: Sequence[Message], text: str, ended: bool) -> float:
        """A reward model's raw score of an answer; `ended`: the answer came to its end. Raises InputError."""
        from training.chat_template import encode_prompt, encode_response
        from training.packs import Group
        from training.reward_model import load_reward_model

        checkpoint = checkpoints.get(self.workspace.store, checkpoint_id)
        folder = checkpoints.folder(self.workspace, checkpoint)
        if checkpoint.kind != "reward" or folder is None or checkpoint.base_model != self.workspace.base_model:
            raise InputError(f"{checkpoint.name} gives no scores here. Choose a reward model of this base model")
        base = self.base()
        with self._scoring:  # a whole model of its own is read from disk once, not for every answer
            key = folder, folder.stat().st_mtime_ns  # a resumed run may write the same folder again
            if self._scorer is None or self._scorer[0] != key:
                self._scorer = None  # never two at once
                self._scorer = key, load_reward_model(base, str(folder))
            model = self._scorer[1]

        def scores() -> Iterator[float]:
            group = Group(encode_prompt(model.reader, messages), [encode_response(model.reader, text, ended)])
            if group.length > model.reader.context_length:
                raise InputError(f"the conversation is longer than the {model.reader.context_length} tokens it reads")
            yield model.score([group])[0][0]

        return next(self._in_turn(scores()))

    def _in_turn(self, values: Iterator[T]) -> Iterator[T]:
        """Take each value in turn with all others, on the cores that a run leaves."""
        from training import cores

        training = bool(jobs.list_jobs(self.workspace.store, ["running"]))
        return self._each(cores.answering(values, self.workspace.chat_lock, training))

    def _each(self, values: Iterator[T]) -> Iterator[T]:
        with closing(values):  # type: ignore[type-var]
            while True:
                try:
                    turn = self._model.submit(next, values, None)
                except RuntimeError:
                    raise InputError("the app is ending; ask again when it has started") from None
                value = turn.result()
                if value is None:
                    return
                yield value


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
