"""Answers that are being written: each in a thread of its own, kept in the store as it grows.

A page looks at an answer and does not drive it, so a reload, a second browser or a lost connection changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field

from data.records import InputError, Message
from labeler import conversations
from labeler.chat import Chat, Sampling
from labeler.users import User

log = logging.getLogger(__name__)

MAX_AT_ONCE = 16
"""Answers in the making; each has a cache of keys and values in memory."""

SAVE_SECONDS = 0.5
"""What a crash may take: the words of this long."""


@dataclass(frozen=True)
class Choices:
    """What somebody chose for the next answer. `reward_id`: the reward model that scores it, or None."""

    checkpoint_id: int
    reward_id: int | None = None
    system_prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Answer:
    """One in the making. `waiting` says for what, while there is no word yet; `asked` is on the monotonic clock."""

    user_id: int
    turn_id: int
    conversation_id: int
    checkpoint: str
    prompt: list[Message]
    choices: Choices
    asked: float = field(default_factory=time.monotonic)
    text: str = ""
    num_tokens: int = 0
    waiting: str = ""
    first: float | None = None
    last: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def first_token_seconds(self) -> float | None:
        """From the question to the first token."""
        return None if self.first is None else self.first - self.asked

    @property
    def seconds(self) -> float | None:
        """From the first token to the newest."""
        return None if self.first is None or self.last is None else self.last - self.first


class Answers:
    """The answers of one workspace: at most one in a conversation at a time."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.store = chat, chat.workspace.store
        self._lock = threading.Lock()
        self._open: dict[int, Answer] = {}  # by conversation
        self._problems: dict[int, str] = {}  # why the last answer of a conversation failed
        conversations.close_interrupted(self.store)

    def ask(self, user: User, text: str, conversation_id: int | None, choices: Choices) -> int:
        """Add a question and begin to answer it; the conversation's id. Nothing is stored where that is refused."""
        with self._lock, self.store.write() as db:
            return self._begin(user, conversations.ask(db, user, text, conversation_id), choices)

    def edit(self, user: User, turn_id: int, text: str, choices: Choices) -> int:
        """Say something else in place of an earlier question, in a new branch; the conversation's id."""
        with self._lock, self.store.write() as db:
            found, turn = conversations.of_turn(db, user, turn_id)
            if turn.role != "user":
                raise InputError("what the model said cannot be edited; regenerate it")
            return self._begin(user, conversations.ask(db, user, text, found.id, replaces=turn), choices)

    def again(self, user: User, turn_id: int, choices: Choices) -> int:
        """Another version of an answer, with a seed that no version has had; the conversation's id.

        For a question without an answer: its answer.
        """
        with self._lock, self.store.write() as db:
            found, turn = conversations.of_turn(db, user, turn_id)
            if turn.role == "user":
                return self._begin(user, turn.id, choices)
            used = {each.settings.get("seed") for each in found.versions(turn)}
            seed = choices.sampling.seed
            while seed in used:
                seed = (seed + 1) % 2**31
            return self._begin(user, turn.parent_id or 0, choices, seed)

    def _begin(self, user: User, question_id: int, choices: Choices, seed: int | None = None) -> int:
        """Store an empty answer and start its thread. Call inside `write` and with the lock."""
        found, question = conversations.of_turn(self.store.db, user, question_id)
        if found.id in self._open:
            raise InputError("An answer is being written in this conversation. Wait for it, or stop it.")
        if len(self._open) >= MAX_AT_ONCE:
            raise InputError(f"{MAX_AT_ONCE} answers are being written for others. Try again in a minute.")
        checkpoint = self.chat.checkpoint(choices.checkpoint_id)
        system = choices.system_prompt.strip()
        prompt = found.prompt(question, system)
        if self.chat.ready:
            self.chat.room(prompt)
        sampling = choices.sampling if seed is None else Sampling(**{**choices.sampling.settings(), "seed": seed})
        settings = {**sampling.settings(), "system_prompt": system, "checkpoint": checkpoint.name}
        kept = asdict(choices) | {"sampling": choices.sampling.settings()}
        turn_id = conversations.begin_answer(self.store.db, question, checkpoint.id, settings, kept)
        drawn = Choices(choices.checkpoint_id, choices.reward_id, system, sampling)
        answer = self._open[found.id] = Answer(user.id, turn_id, found.id, checkpoint.name, prompt, drawn)
        self._problems.pop(found.id, None)
        threading.Thread(target=self._write, args=(answer,), name=f"answer {turn_id}", daemon=True).start()
        return found.id

    def find(self, conversation_id: int) -> Answer | None:
        """The answer that is being written in this conversation."""
        return self._open.get(conversation_id)

    def problem(self, conversation_id: int) -> str:
        """Why the last answer there failed, or an empty text."""
        return self._problems.get(conversation_id, "")

    def stop(self, conversation_id: int) -> None:
        """Let the answer there end with the next token. The caller has checked whose conversation it is."""
        answer = self.find(conversation_id)
        if answer is not None:
            answer.stop.set()

    def score(self, user: User, conversation_id: int, reward_id: int) -> None:
        """Have a reward model score the whole answers of the shown branch, where it has not."""
        found = conversations.get(self.store.db, user, conversation_id)
        known = conversations.scores(self.store.db, conversation_id)
        for turn in found.branch(found.leaf_id):
            if (
                turn.role == "assistant"
                and turn.finish_reason
                and turn.text
                and reward_id not in known.get(turn.id, {})
            ):
                question = found.turns[turn.parent_id or 0]
                prompt = found.prompt(question, turn.settings.get("system_prompt", ""))
                self._score(turn.id, prompt, turn.text, turn.finish_reason, reward_id)

    def _score(self, turn_id: int, prompt: list[Message], text: str, finish_reason: str, reward_id: int) -> None:
        score = self.chat.score(reward_id, prompt, text, finish_reason == "stop")
        conversations.save_score(self.store, turn_id, reward_id, score)

    def _write(self, answer: Answer) -> None:
        """The thread: sample, keep, score."""
        reason, problem = "interrupted", ""
        try:
            reason = self._sample(answer)
        except InputError as error:
            problem = str(error)
        except Exception:  # a mistake of ours: the person must still learn that nothing more will come
            log.exception("answer %d failed", answer.turn_id)
            problem = "Something went wrong in the app; its log says what. Regenerate the answer."
        try:
            if reason in ("stopped", "interrupted") and not answer.text:
                conversations.drop_answer(self.store, answer.turn_id)
            else:
                self._save(answer, reason)
                if answer.choices.reward_id is not None and answer.text:
                    answer.waiting = "being scored"
                    self._score(answer.turn_id, answer.prompt, answer.text, reason, answer.choices.reward_id)
        except InputError as error:
            problem = f"The answer has no score: {error}"
        except Exception:
            log.exception("answer %d could not be kept", answer.turn_id)
            problem = "The answer could not be stored; the app's log says why."
        finally:
            with self._lock:
                del self._open[answer.conversation_id]
                if problem:
                    self._problems[answer.conversation_id] = problem
            answer.done.set()
            self.store.close()  # this thread's connection

    def _sample(self, answer: Answer) -> str:
        """Let the answer grow to its end; why it ended."""
        name = self.chat.workspace.base_model.rstrip("/").rpartition("/")[2]
        for seconds in self.chat.wait():
            answer.waiting = f"loading {name}, once: {seconds:.0f} s"
            if answer.stop.is_set():
                return "stopped"
        answer.waiting = "reading"
        chosen, saved = answer.choices, time.monotonic()
        with closing(self.chat.stream(chosen.checkpoint_id, answer.prompt, chosen.sampling)) as tokens:  # type: ignore[type-var]
            for text, count, reason in tokens:
                now = answer.last = time.monotonic()
                answer.first = answer.first or now
                answer.text, answer.num_tokens, answer.waiting = text, count, ""
                if reason:
                    return reason
                if answer.stop.is_set():
                    return "stopped"
                if now - saved > SAVE_SECONDS:
                    saved = now
                    self._save(answer, None)
        raise AssertionError("a stream ends with a reason")

    def _save(self, answer: Answer, reason: str | None) -> None:
        conversations.save_answer(
            self.store,
            answer.turn_id,
            answer.text,
            answer.num_tokens,
            answer.first_token_seconds,
            answer.seconds,
            reason,
        )
