"""The records everything else is made of, validated when they are made.

A completion is the text of one assistant turn; a prompt is the conversation before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant")
LARGEST = 1e6
"""The largest margin, weight and rank: beyond it fp32 losses lose their digits, and it is a slip of the pen."""


class InputError(ValueError):
    """A mistake in what a user gave us: one line that names the place and the remedy. Shown without a traceback."""


def shown(value: Any) -> str:
    """A value of a data file as an error message quotes it: in JSON's words, on one line, and short."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an assistant's answer. `place` says where it was read: "file:line"."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("the prompt has no messages; give a string or a list of chat messages")
        for message in self.messages:
            if message["role"] not in ROLES:
                raise InputError(f"unknown role {shown(message['role'])}; use one of {', '.join(ROLES)}")
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
    `annotator`: whose ranking it is; the same ranks by somebody else are another ranking, not a duplicate.
    `place`: where it was read, "file:line".
    """

    prompt: Prompt
    completions: tuple[str, ...]
    ranks: tuple[int | None, ...]
    margin: float = 0.0
    weight: float = 1.0
    ended: tuple[bool, ...] = ()
    annotator: str = ""
    place: str = field(default="", compare=False, repr=False)

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
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= LARGEST):
                raise InputError(
                    f"rank {shown(rank)} is not a whole number from 1 (best) to {LARGEST:,.0f}; use null for unranked"
                )
        if sum(rank is not None for rank in self.ranks) < 2:
            raise InputError("fewer than two completions are ranked, so nothing is compared")
        for number, completion in enumerate(self.completions, 1):
            if not completion.strip():
                raise InputError(f"completion {number} is empty")
        if not 0 <= self.margin <= LARGEST:  # NaN fails, too
            raise InputError(f"margin {self.margin!r} must be a number from 0 to {LARGEST:,.0f}")
        if not 1 / LARGEST <= self.weight <= LARGEST:
            raise InputError(
                f"weight {self.weight!r} must be above 0, from {1 / LARGEST:g} to {LARGEST:,.0f}; drop the row instead"
            )


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate. The loss falls on its assistant turns from index `first_target` on.

    `ended`: whether the last answer came to its end; where not, the model is not taught to stop there.
    """

    messages: tuple[Message, ...]
    first_target: int = 0
    ended: bool = True
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for message in self.messages:
            if message["role"] not in ROLES:
                raise InputError(f"unknown role {shown(message['role'])}; use one of {', '.join(ROLES)}")
        if self.messages and self.messages[0]["role"] == "assistant":
            raise InputError("the conversation begins with the assistant; a user message must come before")
        targets = [m for m in self.messages[self.first_target :] if m["role"] == "assistant"]
        if not targets:
            raise InputError("a demonstration needs at least one assistant message to learn from")
        if not any(m["content"].strip() for m in targets):
            raise InputError("the demonstration's assistant message is empty")


Row = dict[str, Any]
"""One line of a data file, before it is parsed."""
