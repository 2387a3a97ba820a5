"""The Compare tab: one prompt, two to six checkpoints side by side, a blind vote, then the names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError, Message
from labeler import checkpoints
from labeler.auth import current_user
from labeler.chat import Sampling, conversation, of_workspace
from labeler.compare import LETTERS, Round, Rounds
from labeler.ui import compare_batch, page, theme
from labeler.ui.chat import GENERATION, REDRAW_SECONDS, loading, sampling_fields
from labeler.ui.markdown import render
from labeler.ui.run_view import notice
from labeler.users import User
from labeler.workspace import Workspace

NOBODY = 0
"""The choice "–" of a rank."""

PAIR_VOTES: dict[str, tuple[list[int | None], bool]] = {
    "A better": ([1, 2], False),
    "B better": ([2, 1], False),
    "Tie": ([1, 1], False),
    "Both bad": ([None, None], True),
}

EMPTY = (
    '<p class="empty">The answers appear here side by side. You vote without knowing which is which; your vote becomes '
    "a preference to train on.</p>"
)


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    chat = of_workspace(workspace)
    rounds = Rounds(chat)
    stops: dict[str, threading.Event] = {}

    models = gr.Dropdown(
        [],
        multiselect=True,
        max_choices=len(LETTERS),
        label=f"Checkpoints, 2 to {len(LETTERS)}",
        elem_id="compare-models",
    )
    prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, elem_id="compare-prompt")
    with gr.Row(elem_classes="compare-bar"):
        run = gr.Button("Compare", variant="primary", scale=0, min_width=140, elem_id="compare-run")
        stop = gr.Button("Stop", variant="stop", scale=0, min_width=140, visible=False, elem_id="compare-stop")
        blind = gr.Checkbox(
            True, label="Blind: shuffle the sides and hide their names", scale=1, elem_id="compare-blind"
        )
    with gr.Accordion("Settings", open=False):
        system = gr.Textbox(label="System prompt", lines=2, info="The same for all. Empty: the model's own default.")
        with gr.Row(elem_classes="knobs"):
            settings = sampling_fields()
    problem = page.html(elem_id="compare-problem")
    script = theme.script("ranking/differences.js") + theme.script("compare.js")
    sides = page.html(EMPTY, js_on_load=script, elem_id="compare-sides")
    with gr.Row(visible=False, elem_classes="votes", elem_id="compare-votes") as pair_row:
        pair_buttons = [gr.Button(name, min_width=120) for name in PAIR_VOTES]
    with gr.Column(visible=False, elem_id="compare-ranks") as rank_row:
        page.html('<p class="meta">1 is best; equal numbers tie; – says nothing about that answer.</p>')
        with gr.Row(elem_classes="knobs"):
            ranks = [
                gr.Radio(rank_choices(len(LETTERS)), value=NOBODY, label=letter, visible=False) for letter in LETTERS
            ]
        with gr.Row(elem_classes="votes"):
            submit = gr.Button("Submit ranking", variant="primary", min_width=140)
            all_bad = gr.Button("All bad", min_width=140)
    with gr.Row(visible=False, elem_classes="compare-bar", elem_id="compare-next") as next_row:
        next_box = gr.Textbox(
            label="Go on from the preferred answer", placeholder="Your next message, to all of them", lines=2, scale=1
        )
        proceed = gr.Button("Send to all", scale=0, min_width=140, elem_id="compare-proceed")
    compare_batch.build(workspace, models, settings)
    # an id that cannot be guessed, and that names nothing: the round itself, with its names, stays in `rounds`
    round_id = gr.State("")

    outputs = [round_id, problem, sides, run, stop, pair_row, rank_row, next_row, *ranks]

    def frame(found: Round | None, problem_html: str = "", busy: bool = False) -> list[Any]:
        votable = not busy and found is not None and found.finished and found.task_id is None
        count = len(found.sides) if found else 0
        return [
            found.id if found else "",
            problem_html,
            draw(found) if found else EMPTY,
            gr.update(visible=not busy),
            gr.update(visible=busy),
            gr.update(visible=votable and count == 2),
            gr.update(visible=votable and count > 2),
            gr.update(visible=not busy and found is not None and found.preferred is not None),
            *(gr.Radio(visible=votable and 2 < count > place) for place in range(len(LETTERS))),
        ]

    def run_round(request: gr.Request, start: Callable[[User], Round]) -> Iterator[list[Any]]:
        key = request.session_hash or ""
        stopped = stops[key] = threading.Event()
        found: Round | None = None
        try:
            found = start(current_user(request, workspace))
            for seconds in chat.wait():
                yield frame(found, loading(workspace.base_model, seconds), busy=True)
            blank = gr.Radio(rank_choices(len(found.sides)), value=NOBODY, visible=False)
            yield [*frame(found, "", busy=True)[: -len(ranks)], *(blank for _ in ranks)]
            drawn = time.monotonic()
            with closing(rounds.answer(found)) as turns:  # type: ignore[type-var]
                for _ in turns:
                    if stopped.is_set():
                        break
                    if time.monotonic() - drawn > REDRAW_SECONDS:
                        drawn = time.monotonic()
                        yield frame(found, "", busy=True)
            told = "" if found.finished else "Stopped. A vote needs whole answers: run the comparison again."
            yield frame(found, notice(told, "info"), busy=True)
        except InputError as error:
            yield frame(None, notice(str(error)), busy=True)
        finally:
            stops.pop(key, None)

    def compare(
        request: gr.Request, text: str, hidden: bool, chosen: list[int], prompt_text: str, *drawn: Any
    ) -> Iterator[list[Any]]:
        def start(user: User) -> Round:
            sampling = Sampling(*drawn)
            if not text or not text.strip():
                raise InputError("Write a prompt first.")
            messages = conversation([Message(role="user", content=text)], prompt_text)
            return rounds.start(user, messages, chosen or [], sampling, hidden)

        yield from run_round(request, start)

    def go_on(request: gr.Request, round_key: str, text: str) -> Iterator[list[Any]]:
        try:
            user = current_user(request, workspace)
            made = rounds.proceed(round_key, user, text)
        except InputError as error:  # the round and what was typed stay
            yield [round_key, notice(str(error)), *(gr.skip() for _ in outputs[2:]), gr.skip()]
            return
        for update in run_round(request, lambda _: made):
            yield [*update, ""]

    def settle(request: gr.Request, round_key: str) -> list[Any]:
        """Offer the vote, once the last word of `compare` has reached the page: it would undo the names otherwise."""
        try:
            found = rounds.get(round_key, current_user(request, workspace)) if round_key else None
        except InputError:
            found = None
        update = frame(found)
        update[1] = gr.skip()  # why there is nothing to vote on
        return update

    def vote(name: str) -> Any:
        def handler(request: gr.Request, round_key: str, *given: Any) -> list[Any]:
            try:
                user = current_user(request, workspace)
                if name in PAIR_VOTES:
                    order, bad = PAIR_VOTES[name]
                else:
                    count = len(rounds.get(round_key, user).sides)
                    bad = name == "All bad"
                    order = [None if bad or not rank else int(rank) for rank in given[:count]]
                found = rounds.vote(round_key, user, order, bad)
            except InputError as error:
                return [gr.skip(), notice(str(error)), *(gr.skip() for _ in outputs[2:])]
            return frame(found, notice("Stored. It counts in the next training run.", "info"))

        return handler

    def halt(request: gr.Request) -> None:
        event = stops.get(request.session_hash or "")
        if event is not None:
            event.set()

    def refresh(chosen: list[int] | None) -> Any:
        found = checkpoints.choices(workspace)
        known = [value for _, value in found]
        kept = [value for value in chosen or [] if value in known]
        newest = [value for value in known if value != workspace.base_checkpoint_id][:1]
        if len(kept) < 2:  # one is nothing to compare
            kept = list(dict.fromkeys([*(kept or [workspace.base_checkpoint_id]), *newest]))
        return gr.Dropdown(found, value=kept)

    def advice() -> str:
        if len(checkpoints.choices(workspace)) > 1:
            return ""
        return notice(
            "There is only the base model so far. Train a DPO, PPO or SFT run to have something to compare.", "info"
        )

    compared = run.click(compare, [prompt, blind, models, system, *settings], outputs, **page.QUIET, **GENERATION)
    compared.then(settle, round_id, outputs, **page.QUIET)
    proceeded = proceed.click(go_on, [round_id, next_box], [*outputs, next_box], **page.QUIET, **GENERATION)
    proceeded.then(settle, round_id, outputs, **page.QUIET)
    stop.click(halt, None, None, queue=False, **page.QUIET)
    for button in (*pair_buttons, submit, all_bad):
        button.click(vote(str(button.value)), [round_id, *ranks], outputs, **page.QUIET)
    page.on_show(refresh, [models], [models])
    page.on_show(advice, [], [problem])


def rank_choices(count: int) -> list[tuple[str, int]]:
    """Ranks that `count` answers can have, and none."""
    return [*((str(rank), rank) for rank in range(1, count + 1)), ("–", NOBODY)]


def draw(found: Round) -> str:
    """The answers side by side, below the conversation so far; names only where they may be known."""
    tools = ""
    if found.finished:
        tools = (
            '<p class="compare-tools"><button type="button" data-differences aria-pressed="false">'
            "Show differences from A</button></p>"
        )
    sides = "".join(_side(found, place) for place in range(len(found.sides)))
    return f'{_talk(found)}{tools}<div class="sides sides-{len(found.sides)}">{sides}</div>'


def _talk(found: Round) -> str:
    """What was said before the last message, folded."""
    before = [message for message in found.messages if message["role"] != "system"][:-1]
    if not before:
        return ""
    who = {"user": "You", "assistant": "Preferred answer"}
    said = "".join(f"<p dir='auto'><b>{who[m['role']]}</b><br>{escape(m['content'])}</p>" for m in before)
    last = f"<p dir='auto'><b>You</b><br>{escape(found.messages[-1]['content'])}</p>"
    return f'<div class="talk"><details><summary>The conversation so far</summary>{said}</details>{last}</div>'


def _side(found: Round, place: int) -> str:
    side = found.sides[place]
    name = f'<span class="name">{escape(side.checkpoint.name)}</span>' if found.revealed else ""
    mark = ""
    if found.task_id is not None:
        mark = f'<span class="chip">{verdict(found, place)}</span>'
    # how many tokens and why it ended are shown with the vote's result only: they may give a side away
    ended = ""
    if found.task_id is not None and side.finish_reason:
        cut = ", cut at the maximum length" if side.finish_reason == "length" else ""
        ended = f'<p class="meta">{side.num_tokens} tokens{cut}</p>'
    raw = f' data-text="{escape(side.text, quote=True)}"' if found.finished else ""  # for compare.js
    text = render(side.text) if side.text.strip() else "<p>(empty answer)</p>" if side.finish_reason else "<p>…</p>"
    return (
        f'<article class="side" aria-label="Answer {LETTERS[place]}"{raw}>'
        f"<header><b>{LETTERS[place]}</b>{name}{mark}</header>"
        f'<div class="answer markdown" dir="auto">{text}</div><div class="differences"></div>{ended}</article>'
    )


def verdict(found: Round, place: int) -> str:
    """What the vote said of one side."""
    rank = found.ranks[place]
    if found.all_bad:
        return "bad"
    if rank is None:
        return "not ranked"
    if len(found.sides) > 2:
        return f"rank {rank}"
    return "tie" if len(set(found.ranks)) == 1 else "preferred" if rank == 1 else "not preferred"
