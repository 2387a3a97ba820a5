"""The records everything else is made of, validated when they are made.

A completion is the text of one assistant turn; a prompt is the conversation before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant")


class InputError(ValueError):
    """A mistake in what a user gave us: one line that names the place and the remedy. Shown without a traceback."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an assistant's answer."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("the prompt has no messages; give a string or a list of chat messages")
        for message in self.messages:
            if message["role"] not in ROLES:
                raise InputError(f"unknown role {message['role']!r}; use one of {', '.join(ROLES)}")
        if self.messages[-1]["role"] != "user":
            raise InputError("the prompt must end with a user message, so that an assistant can answer it")
        if not self.messages[-1]["content"].strip():
            raise InputError("the prompt's last message is empty")


@dataclass(frozen=True)
class Ranking:
    """K completions of one prompt in somebody's order of preference.

    `ranks`: 1 is best, equal numbers tie, None (unranked) carries no information; kept as given.
    `margin`: strength of preference between neighbours, in units of the score (0 = not stated).
    `weight`: how much this ranking counts in the loss.
    `ended`: which completions came to their end; one cut at a length limit must not teach the model to stop there.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    ranks: tuple[int | None, ...]
    margin: float = 0.0
    weight: float = 1.0
    ended: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.ended:
            object.__setattr__(self, "ended", (True,) * len(self.completions))
        if len(self.ended) != len(self.completions):
            raise InputError(f"{len(self.completions)} completions but {len(self.ended)} finish reasons; give one each")
        if len(self.completions) < 2:
            raise InputError("a ranking needs at least two completions")
        if len(self.ranks) != len(self.completions):
            raise InputError(f"{len(self.completions)} completions but {len(self.ranks)} ranks; give one rank each")
        for rank in self.ranks:
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
                raise InputError(f"rank {rank!r} is not a whole number from 1 (best); use null for unranked")
        if sum(rank is not None for rank in self.ranks) < 2:
            raise InputError("fewer than two completions are ranked, so nothing is compared")
        for number, completion in enumerate(self.completions, 1):
            if not completion.strip():
                raise InputError(f"completion {number} is empty")
        if not math.isfinite(self.margin) or self.margin < 0:
            raise InputError(f"margin {self.margin!r} must be a finite number of at least 0")
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise InputError(f"weight {self.weight!r} must be a finite number above 0")


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate. The loss falls on its assistant turns from index `first_target` on.

    `ended`: whether the last answer came to its end; where not, the model is not taught to stop there.
    """

    messages: tuple[Message, ...]
    first_target: int = 0
    ended: bool = True

    def __post_init__(self) -> None:
        for message in self.messages:
            if message["role"] not in ROLES:
                raise InputError(f"unknown role {message['role']!r}; use one of {', '.join(ROLES)}")
        if self.messages and self.messages[0]["role"] == "assistant":
            raise InputError("the conversation begins with the assistant; a user message must come before")
        targets = [m for m in self.messages[self.first_target :] if m["role"] == "assistant"]
        if not targets:
            raise InputError("a demonstration needs at least one assistant message to learn from")
        if not any(m["content"].strip() for m in targets):
            raise InputError("the demonstration's assistant message is empty")


Row = dict[str, Any]
"""One line of a data file, before it is parsed."""
