"""Blind comparisons: several checkpoints answer one prompt, a person votes, and only then the names are shown.

Which side is which lives in this process and nowhere else until the vote is stored; the page knows a round by an id
that cannot be guessed.
"""

from __future__ import annotations

import random
import secrets
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from data.records import InputError, Message, Prompt
from labeler import rankings
from labeler.chat import Chat, Sampling
from labeler.checkpoints import Checkpoint
from labeler.users import User

LETTERS = "ABCDEF"
MAX_ROUNDS = 1000
"""Rounds kept in memory; the oldest are forgotten."""


@dataclass
class Side:
    """One answer of a round, in the place where the person sees it."""

    checkpoint: Checkpoint
    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None


@dataclass
class Round:
    """One prompt, its answers in display order, and the vote (the task it became) once there is one."""

    user: User
    messages: list[Message]
    sides: list[Side]
    sampling: Sampling
    blind: bool
    id: str = field(default_factory=secrets.token_urlsafe)
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    task_id: int | None = None
    ranks: list[int | None] = field(default_factory=list)
    all_bad: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def finished(self) -> bool:
        return all(side.finish_reason is not None for side in self.sides)

    @property
    def revealed(self) -> bool:
        """Whether the page may say which checkpoint is which."""
        return not self.blind or self.task_id is not None

    @property
    def preferred(self) -> int | None:
        """The place of the answer that the vote put first (the first of them in a tie); None without a vote for one."""
        ranked = [(rank, place) for place, rank in enumerate(self.ranks) if rank is not None]
        return min(ranked)[1] if ranked and not self.all_bad else None


class Rounds:
    """The rounds of one workspace."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._rounds: OrderedDict[str, Round] = OrderedDict()
        self._lock = threading.Lock()

    def start(
        self, user: User, messages: Sequence[Message], checkpoint_ids: Sequence[int], sampling: Sampling, blind: bool
    ) -> Round:
        """A new round, not yet answered. Blind: the sides are shuffled. Raises InputError."""
        prompt = Prompt(tuple(messages))
        if not 2 <= len(checkpoint_ids) <= len(LETTERS):
            raise InputError(f"Choose two to {len(LETTERS)} checkpoints.")
        if len(set(checkpoint_ids)) < len(checkpoint_ids):
            raise InputError("The same checkpoint is chosen twice: with one seed its answers would be the same.")
        sides = [Side(self.chat.checkpoint(checkpoint_id)) for checkpoint_id in checkpoint_ids]
        if blind:
            random.SystemRandom().shuffle(sides)
        made = Round(user, list(prompt.messages), sides, sampling, blind)
        with self._lock:
            self._rounds[made.id] = made
            while len(self._rounds) > MAX_ROUNDS:
                self._rounds.popitem(last=False)
        return made

    def proceed(self, round_id: str | None, user: User, text: str) -> Round:
        """The next turn of a conversation that was voted on: it goes on with the preferred answer, for all alike.

        One conversation, because answers can only be compared, and learned from, where the prompt is the same. The
        sides are shuffled anew. Raises InputError without a message or without a preferred answer.
        """
        found = self.get(round_id, user)
        if found.preferred is None:
            raise InputError("Vote for an answer first: the conversation goes on with the preferred one.")
        if not text or not text.strip():
            raise InputError("Write the next message first.")
        answer = Message(role="assistant", content=found.sides[found.preferred].text)
        messages = [*found.messages, answer, Message(role="user", content=text)]
        return self.start(user, messages, [side.checkpoint.id for side in found.sides], found.sampling, found.blind)

    def get(self, round_id: str | None, user: User) -> Round:
        """Raises InputError where the round is not known here, or is somebody else's."""
        with self._lock:
            found = self._rounds.get(round_id or "")
        if found is None or found.user.id != user.id:
            raise InputError("This comparison is gone, since the app was restarted. Run it again.")
        return found

    def answer(self, round: Round) -> Iterator[Round]:
        """Let all sides answer, token by token in turns; yields after each turn. Close it to stop.

        Every adapter is attached before the first token, so that a side's pace says nothing about what it is.
        """
        for side in round.sides:
            self.chat.adapter(side.checkpoint.id)
        with ExitStack() as stack:
            streams = [
                stack.enter_context(closing(self.chat.stream(side.checkpoint.id, round.messages, round.sampling)))  # type: ignore[type-var]
                for side in round.sides
            ]
            while not round.finished:
                for side, stream in zip(round.sides, streams, strict=True):
                    if side.finish_reason is None:
                        side.text, side.num_tokens, side.finish_reason = next(stream)
                yield round

    def vote(self, round_id: str | None, user: User, ranks: Sequence[int | None], all_bad: bool = False) -> Round:
        """Store the vote, then let the names be shown. A second vote on a round changes nothing.

        ranks: one a side in display order, 1 is best, equal numbers tie. Raises InputError before all have answered.
        """
        found = self.get(round_id, user)
        with found.lock:
            if found.task_id is not None:
                return found
            if not found.finished:
                raise InputError("Wait until every side has answered; after a stop, run the comparison again.")
            found.task_id = rankings.record_comparison(
                self.chat.workspace.store,
                user,
                found.messages,
                [self._completion(found, place) for place in range(len(found.sides))],
                list(ranks),
                all_bad=all_bad,
                source="compare",
                event_id=found.event_id,
            )
            found.ranks, found.all_bad = list(ranks), all_bad
            return found

    def _completion(self, round: Round, place: int) -> tuple[str, int, dict[str, object]]:
        side = round.sides[place]
        provenance = {
            **round.sampling.settings(),
            "num_tokens": side.num_tokens,
            "finish_reason": side.finish_reason,
            "side": LETTERS[place],
            "blind": round.blind,
        }
        return side.text, side.checkpoint.id, provenance
