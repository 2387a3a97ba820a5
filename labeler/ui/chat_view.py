"""What the Chat tab's widget is sent, and how what it sends is read. Nothing a browser sends is believed unchecked."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from data.records import InputError
from labeler import chat_preferences, checkpoints, conversations
from labeler.answers import Answer, Answers, Choices
from labeler.chat import Sampling
from labeler.conversations import Turn
from labeler.ui.markdown import render
from labeler.users import User
from labeler.workspace import Workspace

View = dict[str, Any]

PRESETS = {
    "Brief": "Answer in one or two short sentences.",
    "Teacher": "You are a patient teacher. Explain step by step, with a small example.",
    "Honest": "Say plainly what you do not know. Never invent facts, names or sources.",
}
"""System prompts that everybody has."""

ENDINGS = {
    "length": "cut at the maximum length",
    "stopped": "stopped",
    "interrupted": "interrupted when the app ended: this is how far it came",
}


def whole_view(workspace: Workspace, answers: Answers, user: User, conversation_id: int | None) -> View:
    """Everything the tab shows; `conversation_id` None: the conversation that was open last."""
    mine = conversations.list_conversations(workspace.store, user)
    if conversation_id is None and mine:
        conversation_id = mine[0][0]
    return {
        "conversations": [{"id": number, "name": title} for number, title in mine],
        "checkpoints": _named(checkpoints.choices(workspace)),
        "rewards": _named(checkpoints.choices(workspace, ["reward"])),
        "presets": PRESETS,
        "own_presets": conversations.presets(workspace.store, user),
        "knobs": [
            {"name": knob.name, "value": knob.default, **{key: knob.metadata[key] for key in KNOB}}
            for knob in fields(Sampling)
        ],
        "conversation": None if conversation_id is None else view(answers, user, conversation_id),
    }


KNOB = ("label", "info", "low", "high", "step")


def _named(choices: list[tuple[str, int]]) -> list[View]:
    return [{"id": number, "name": name} for name, number in choices]


def view(answers: Answers, user: User, conversation_id: int) -> View:
    """One conversation: its shown branch, with the versions of each turn."""
    writing = answers.find(conversation_id)  # asked first: what ends meanwhile is then in the store
    db = answers.store.db
    found = conversations.get(db, user, conversation_id)
    scored = conversations.scores(db, conversation_id)
    said = chat_preferences.said(db, user, found)
    turns = []
    for turn in found.branch(found.leaf_id):
        versions = [each.id for each in found.versions(turn)]
        shown = live_view(writing) if writing and writing.turn_id == turn.id else turn_view(turn, scored.get(turn.id))
        words = [(versions.index(other), word) for other, word in said.get(turn.id, [])]
        turns.append(shown | {"versions": versions, "said": [f"{SAID[word]} version {n + 1}" for n, word in words]})
    return {
        "id": found.id,
        "title": found.title,
        "settings": found.settings,
        "turns": turns,
        "writing": writing is not None,
        "problem": answers.problem(conversation_id),
    }


SAID = {"better": "better than", "worse": "worse than", "tie": "as good as"}


def turn_view(turn: Turn, scores: dict[int, float] | None) -> View:
    """One turn as it is stored."""
    facts = []
    if turn.role == "assistant":
        facts = _facts(
            turn.settings,
            turn.num_tokens or 0,
            turn.first_token_seconds,
            turn.seconds,
            ENDINGS.get(turn.finish_reason or ""),
        )
    return {
        "id": turn.id,
        "role": turn.role,
        "text": turn.text,
        "html": render(turn.text),
        "facts": facts,
        "scores": {str(reward_id): score for reward_id, score in (scores or {}).items()},
        "whole": turn.finish_reason in conversations.WHOLE,
        "live": False,
    }


def live_view(answer: Answer) -> View:
    """One that is being written."""
    settings = answer.choices.sampling.settings() | {"checkpoint": answer.checkpoint}
    facts = _facts(settings, answer.num_tokens, answer.first_token_seconds, answer.seconds, answer.waiting)
    html = render(answer.text)
    return {"id": answer.turn_id, "role": "assistant", "text": answer.text, "html": html, "facts": facts, "live": True}


def _facts(
    settings: dict[str, Any], count: int, first: float | None, seconds: float | None, ending: str | None
) -> list[str]:
    """Who answered, from which seed, how much and how fast, and why it ended where that is not of itself."""
    said = [str(settings.get("checkpoint", "")), f"seed {settings.get('seed')}"]
    if count:
        said.append(f"{count} token{'' if count == 1 else 's'}")
    if count > 1 and seconds:
        said.append(f"{(count - 1) / seconds:.0f} tokens/s")
    if first is not None:
        said.append(f"first after {first:.1f} s")
    return [*said, ending] if ending else said


def read_choices(data: Any) -> Choices:
    """What was chosen for the next answer. Raises InputError."""
    settings = data.get("settings") if isinstance(data, dict) else None
    given = settings.get("sampling") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(given, dict):
        raise InputError("the browser sent something unknown; reload the page")
    system = settings.get("system_prompt") or ""
    if not isinstance(system, str) or len(system) > conversations.MAX_TEXT:
        raise InputError(f"keep the system prompt under {conversations.MAX_TEXT:,} characters")
    sampling = Sampling(**{knob.name: given[knob.name] for knob in fields(Sampling) if knob.name in given})
    return Choices(read_id(settings, "checkpoint_id"), read_optional(settings, "reward_id"), system, sampling)


def read_id(data: Any, key: str) -> int:
    """An id that must be there."""
    value = read_optional(data, key)
    if value is None:
        what = key.removesuffix("_id").replace("_", " ")
        raise InputError(f"choose a {what} first; reload the page where there is none to choose")
    return value


def read_optional(data: Any, key: str) -> int | None:
    """An id that may be missing."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def read_text(data: Any, key: str) -> str:
    """A text; what is none counts as empty."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""
