"""The Chat tab: talk to the base model or to any policy checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

from data.records import InputError, Message
from labeler import checkpoints
from labeler.auth import current_user
from labeler.chat import Sampling, conversation, of_workspace
from labeler.ui import page
from labeler.ui.markdown import render
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

REDRAW_SECONDS = 0.05
"""Between two updates of the page; a token may come faster than a browser needs to draw it."""

GENERATION: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "generate"}
"""Shared with Compare: how many answers may be in the making at once. They take turns, token by token."""

PLACEHOLDER = "Your message. Enter sends it."


def sampling_fields() -> list[Any]:
    """Fields for how an answer is drawn, in the order of `Sampling`."""
    usual = Sampling()
    return [
        gr.Slider(0, 2, usual.temperature, step=0.05, label="Temperature", info="0: always the likeliest word."),
        gr.Slider(
            0.05, 1, usual.top_p, step=0.05, label="Top-p", info="Draw from the likeliest words up to this share."
        ),
        gr.Number(usual.max_new_tokens, label="Maximum length", info="In tokens; a word is about 1.3.", step=1),
        gr.Number(usual.seed, label="Seed", info="The same seed gives the same answer.", step=1),
    ]


def loading(model: str, seconds: float) -> str:
    """What to show while the model is loaded."""
    return (
        f"{notice(f'Loading {Path(model).name}, once: {seconds:.0f} s …', 'info')}"
        '<div class="bar busy" role="progressbar" aria-label="Loading the model"><div></div></div>'
    )


def display(history: list[Message]) -> list[dict[str, str]]:
    """The conversation for gr.Chatbot: safe HTML on one line, which its own Markdown leaves as it is."""
    return [
        {"role": turn["role"], "content": render(turn["content"]).replace("\n", "&#10;") or "…"} for turn in history
    ]


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    chat = of_workspace(workspace)
    stops: dict[str, threading.Event] = {}  # page -> what its Stop button sets

    with gr.Row(elem_classes="chat-top"):
        checkpoint = gr.Dropdown([], label="Talk to", scale=3, elem_id="chat-checkpoint")
        fresh = gr.Button("New conversation", scale=0, min_width=170, elem_id="chat-new")
    with gr.Accordion("Settings", open=False):
        system = gr.Textbox(
            label="System prompt", lines=2, info="Who the model should be. Empty: the model's own default."
        )
        with gr.Row(elem_classes="knobs"):
            settings = sampling_fields()
    log = gr.Chatbot(
        show_label=False,
        label="Conversation",
        height="50vh",
        sanitize_html=True,
        allow_tags=False,
        latex_delimiters=[],
        feedback_options=None,
        buttons=["copy"],
        layout="bubble",
        placeholder="Choose a checkpoint above and say something.",
        elem_id="chat-log",
    )
    status = page.html(elem_id="chat-status")
    with gr.Row(elem_classes="chat-input"):
        box = gr.Textbox(
            show_label=False,
            label="Message",
            placeholder=PLACEHOLDER,
            lines=1,
            max_lines=8,
            scale=5,
            elem_id="chat-box",
        )
        send = gr.Button("Send", variant="primary", scale=0, min_width=100, elem_id="chat-send")
        stop = gr.Button("Stop", variant="stop", scale=0, min_width=100, visible=False, elem_id="chat-stop")
    history: Any = gr.State([])  # on the server: what the page sends back is never trusted to be what was said

    outputs = [history, log, status, box, send, stop]

    def frame(turns: list[Message], line: Any, text: Any = None, busy: bool = False) -> list[Any]:
        return [turns, display(turns), line, gr.skip() if text is None else text, *buttons(busy)]

    def buttons(busy: bool) -> list[Any]:
        return [gr.update(visible=not busy), gr.update(visible=busy)]

    def answer(
        request: gr.Request, turns: list[Message], typed: str, checkpoint_id: int, prompt: str, sampling: Sampling
    ) -> Iterator[list[Any]]:
        """Stream the answer to `turns`, which end with the user's message; `typed` goes back to the box on an error."""
        key = request.session_hash or ""
        stopped = stops[key] = threading.Event()
        try:
            for seconds in chat.wait():
                yield frame(turns, loading(workspace.base_model, seconds), "", busy=True)
            name = chat.checkpoint(checkpoint_id).name
            started = drawn = time.monotonic()
            text, count, reason = "", 0, None
            with closing(chat.stream(checkpoint_id, conversation(turns, prompt), sampling)) as stream:  # type: ignore[type-var]
                yield frame([*turns, _reply("")], status_line(name, 0, 0.0, None), "", busy=True)
                for text, count, reason in stream:
                    if stopped.is_set():
                        reason = "stopped"
                        break
                    if time.monotonic() - drawn > REDRAW_SECONDS:
                        drawn = time.monotonic()
                        line = status_line(name, count, drawn - started, None)
                        yield frame([*turns, _reply(text)], line, busy=True)
            yield frame([*turns, _reply(text)], status_line(name, count, time.monotonic() - started, reason), busy=True)
        except InputError as error:
            yield frame(turns[:-1], notice(str(error)), typed, busy=True)
        finally:
            stops.pop(key, None)

    def respond(
        request: gr.Request, typed: str, turns: list[Message], checkpoint_id: int, prompt: str, *sampling: Any
    ) -> Iterator[list[Any]]:
        try:
            current_user(request, workspace)
            drawn = Sampling(*sampling)
        except InputError as error:
            yield frame(turns, notice(str(error)))
            return
        if not typed or not typed.strip():
            yield frame(turns, notice("Write a message first.", "info"))
            return
        yield from answer(request, [*turns, Message(role="user", content=typed)], typed, checkpoint_id, prompt, drawn)

    def retry(
        request: gr.Request, turns: list[Message], checkpoint_id: int, prompt: str, *sampling: Any
    ) -> Iterator[list[Any]]:
        """Answer the last message again, with the next seed, since the same one would give the same answer."""
        try:
            current_user(request, workspace)
            drawn = Sampling(*sampling)
        except InputError as error:
            yield [*frame(turns, notice(str(error))), gr.skip()]
            return
        kept = turns[: _last_question(turns) + 1]
        if not kept:
            return
        drawn = Sampling(drawn.temperature, drawn.top_p, drawn.max_new_tokens, (drawn.seed + 1) % 2**31)
        for update in answer(request, kept, kept[-1]["content"], checkpoint_id, prompt, drawn):
            yield [*update, drawn.seed]

    def undo(turns: list[Message]) -> list[Any]:
        index = _last_question(turns)
        return frame(turns[: max(index, 0)], "", turns[index]["content"] if index >= 0 else "")

    def halt(request: gr.Request) -> None:
        event = stops.get(request.session_hash or "")
        if event is not None:
            event.set()

    def refresh(chosen: Any) -> Any:
        choices = checkpoints.choices(workspace)
        return gr.Dropdown(choices, value=page.keep_choice(choices, chosen, workspace.base_checkpoint_id))

    asked = [box, history, checkpoint, system, *settings]
    answered = (
        gr.on([send.click, box.submit], respond, asked, outputs, **page.QUIET, **GENERATION),
        log.retry(retry, asked[1:], [*outputs, settings[-1]], **page.QUIET, **GENERATION),
    )
    for event in answered:  # Send comes back when the last word has reached the page, not before
        event.then(lambda: buttons(False), None, [send, stop], **page.QUIET)
    log.undo(undo, history, outputs, queue=False, **page.QUIET)
    gr.on([fresh.click, log.clear], lambda: frame([], "", ""), None, outputs, queue=False, **page.QUIET)
    stop.click(halt, None, None, queue=False, **page.QUIET)
    page.on_show(refresh, [checkpoint], [checkpoint])
    checkpoint.focus(refresh, checkpoint, checkpoint, queue=False, **page.QUIET)


def status_line(name: str, count: int, seconds: float, reason: str | None) -> str:
    """Who answers, how long and how fast; and why it ended, where that is not of itself."""
    if count == 0 and reason is None:
        return notice(f"{name} reads …", "quiet")
    speed = f" · {count / seconds:.0f} tokens/s" if seconds > 0.2 and count > 1 else ""
    why = {"length": " · cut at the maximum length", "stopped": " · stopped"}.get(reason or "", "")
    return notice(f"{name} · {count} token{'' if count == 1 else 's'}{speed}{why}", "quiet")


def _reply(text: str) -> Message:
    return Message(role="assistant", content=text)


def _last_question(turns: list[Message]) -> int:
    return max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
