"""The Chat tab: talk to the base model or to any policy checkpoint.

The widget (chatting/*.js) calls the functions below by name and draws what they answer (chat_view.py says what that
is). What it shows is in the store, so a reload, another browser or a restart shows the same.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import chat_preferences, conversations
from labeler.answers import Answers
from labeler.auth import current_user
from labeler.chat import Sampling, of_workspace
from labeler.store import explain
from labeler.ui import theme
from labeler.ui.chat_view import (
    View,
    live_view,
    read_choices,
    read_id,
    read_optional,
    read_text,
    view,
    whole_view,
)
from labeler.ui.run_view import notice
from labeler.users import User
from labeler.workspace import Workspace

log = logging.getLogger(__name__)

REDRAW_SECONDS = 0.05
"""Between two updates of the Compare tab; a token may come faster than a browser needs to draw it."""

GENERATION: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "generate"}
"""How many comparisons may be in the making at once. They take turns with Chat, token by token."""

SCRIPTS = ("base", "turns", "settings", "page")  # one scope, in this order
MARKUP = '<section class="chat" aria-label="Chat"><p>Loading …</p></section>'


def sampling_fields() -> list[Any]:
    """Gradio fields for how an answer is drawn, in the order of `Sampling`."""
    return [_sampling_field(getattr(Sampling(), knob.name), **knob.metadata) for knob in fields(Sampling)]


def _sampling_field(value: float, low: float, high: float, step: float, label: str, info: str) -> Any:
    if step < 1:
        return gr.Slider(low, high, value, step=step, label=label, info=info)
    return gr.Number(value, label=label, info=info, step=step)


def loading(model: str, seconds: float) -> str:
    """What to show while the model is loaded."""
    return (
        f"{notice(f'Loading {Path(model).name}, once: {seconds:.0f} s …', 'info')}"
        '<div class="bar busy" role="progressbar" aria-label="Loading the model"><div></div></div>'
    )


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    chat, store = of_workspace(workspace), workspace.store
    answers = Answers(chat)

    def answer(request: gr.Request, act: Callable[[User], View]) -> View:
        """What `act` returns, or what went wrong in words."""
        try:
            return act(current_user(request, workspace))
        except InputError as error:
            return {"error": f"{str(error)[:1].upper()}{str(error)[1:]}"}
        except sqlite3.Error as error:
            log.exception("the Chat tab could not use the database")
            return {"error": f"Could not be saved: {explain(error)}. What you wrote is still here."}
        except Exception:  # a mistake of ours: the person must still learn that nothing happened
            log.exception("the Chat tab failed")
            return {"error": "Something went wrong in the app; its log says what. What you wrote is still here."}

    def change(request: gr.Request, act: Callable[[User], int]) -> View:
        """Do it, then show the conversation whose id it gives."""
        return answer(request, lambda user: {"conversation": view(answers, user, act(user))})

    def chat_open(data: Any, request: gr.Request) -> View:
        """Everything the tab shows. Whoever looks is likely to ask, so the model is loaded now."""

        def opened(user: User) -> View:
            conversation_id = read_optional(data, "conversation_id")
            if conversation_id is not None:
                conversations.open_conversation(store, user, conversation_id)
            found = whole_view(workspace, answers, user, conversation_id)
            chat.load()
            return found

        return answer(request, opened)

    def chat_look(data: Any, request: gr.Request) -> View:
        """The answer that is being written, as far as it has come; the conversation once it has ended."""

        def look(user: User) -> View:
            conversation_id = read_id(data, "conversation_id")
            writing = answers.find(conversation_id)
            if writing is None or writing.user_id != user.id:
                return {"conversation": view(answers, user, conversation_id)}
            return {"turn": live_view(writing)}

        return answer(request, look)

    def chat_ask(data: Any, request: gr.Request) -> View:
        """Say something; the answer begins."""

        def ask(user: User) -> View:
            conversation_id = answers.ask(
                user, read_text(data, "text"), read_optional(data, "conversation_id"), read_choices(data)
            )
            return whole_view(workspace, answers, user, conversation_id)

        return answer(request, ask)

    def chat_edit(data: Any, request: gr.Request) -> View:
        """Say something else in an earlier place: a branch."""
        return change(
            request,
            lambda user: answers.edit(user, read_id(data, "turn_id"), read_text(data, "text"), read_choices(data)),
        )

    def chat_again(data: Any, request: gr.Request) -> View:
        """Another version of an answer."""
        return change(request, lambda user: answers.again(user, read_id(data, "turn_id"), read_choices(data)))

    def chat_stop(data: Any, request: gr.Request) -> View:
        """Let the answer end here."""

        def stop(user: User) -> int:
            conversation_id = read_id(data, "conversation_id")
            conversations.get(store.db, user, conversation_id)
            answers.stop(conversation_id)
            return conversation_id

        return change(request, stop)

    def chat_choose(data: Any, request: gr.Request) -> View:
        """Show another version of a turn."""
        return change(request, lambda user: conversations.choose(store, user, read_id(data, "turn_id")))

    def chat_prefer(data: Any, request: gr.Request) -> View:
        """One version is better than another, or as good."""

        def prefer(user: User) -> int:
            better, other = read_id(data, "turn_id"), read_id(data, "other_id")
            chat_preferences.prefer(store, user, better, other, data.get("tie") is True)
            return conversations.of_turn(store.db, user, better)[0].id

        return change(request, prefer)

    def chat_score(data: Any, request: gr.Request) -> View:
        """Have the chosen reward model score the answers that are shown."""

        def score(user: User) -> int:
            conversation_id = read_id(data, "conversation_id")
            answers.score(user, conversation_id, read_id(data, "reward_id"))
            return conversation_id

        return change(request, score)

    def chat_rename(data: Any, request: gr.Request) -> View:
        """Give a conversation another title."""

        def rename(user: User) -> View:
            conversation_id = read_id(data, "conversation_id")
            conversations.rename(store, user, conversation_id, read_text(data, "title"))
            return whole_view(workspace, answers, user, conversation_id)

        return answer(request, rename)

    def chat_delete(data: Any, request: gr.Request) -> View:
        """Delete a conversation; what is open then is the one before."""

        def delete(user: User) -> View:
            conversation_id = read_id(data, "conversation_id")
            conversations.delete(store, user, conversation_id)
            answers.stop(conversation_id)
            return whole_view(workspace, answers, user, None)

        return answer(request, delete)

    def chat_preset(data: Any, request: gr.Request) -> View:
        """Keep a system prompt under a name, or take it away."""

        def keep(user: User) -> View:
            conversations.save_preset(store, user, read_text(data, "name"), read_text(data, "text"))
            return {"own_presets": conversations.presets(store, user)}

        return answer(request, keep)

    gr.HTML(
        html_template=MARKUP,
        js_on_load="\n".join(theme.script(f"chatting/{name}.js") for name in SCRIPTS),
        server_functions=[
            *(chat_open, chat_look, chat_ask, chat_edit, chat_again, chat_stop, chat_choose),
            *(chat_prefer, chat_score, chat_rename, chat_delete, chat_preset),
        ],
        apply_default_css=False,
        elem_id="chat",
    )
