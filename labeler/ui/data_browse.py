"""The Data tab's list: rankings newest first, searched and filtered; a lead takes a wrong one back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import rankings, search
from labeler.projects import all_projects
from labeler.store import Row, rows
from labeler.ui import page
from labeler.ui.data import keeper, notice, sentence
from labeler.ui.data_import import short
from labeler.workspace import Workspace

AGREEMENTS = [("Any agreement", ""), ("Low: under half of the pairs", "low"), ("High: half or more", "high")]

# The list is redrawn at every search, so one listener serves all buttons in it.
PICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-retract]');
  if (button) trigger('select', {event: button.dataset.retract});
});
"""


def build(workspace: Workspace, changed: Sequence[Any]) -> list[Any]:
    """Make the list; it is read again when one of `changed` changes. Returns the filters' components."""
    gr.HTML("<h2>Rankings</h2>")
    words = gr.Textbox(
        placeholder='Words, or "a phrase"', label="Search prompts, completions and comments", elem_id="data-words",
        max_lines=1,
    )  # fmt: skip
    with gr.Row(elem_classes="data-search"):
        project = gr.Dropdown([("Any project", 0)], value=0, label="Project", elem_id="data-in-project")
        annotator = gr.Dropdown([("Anybody", "")], value="", label="Annotator", elem_id="data-annotator")
        checkpoint = gr.Dropdown([("Any checkpoint", 0)], value=0, label="Checkpoint", elem_id="data-checkpoint")
        agreement = gr.Dropdown(AGREEMENTS, value="", label="Agreement", elem_id="data-agreement")
        since = gr.Textbox(label="From day", placeholder="2026-01-31", max_lines=1, elem_id="data-since")
        until = gr.Textbox(label="Until day", placeholder="2026-12-31", max_lines=1, elem_id="data-until")
    listed = page.html(js_on_load=PICK, elem_id="data-list")
    with gr.Row(elem_classes="data-paging"):
        newer = gr.Button("Newer", visible=False, scale=0, min_width=120, elem_id="data-newer")
        older = gr.Button("Older", visible=False, scale=0, min_width=120, elem_id="data-older")
    with gr.Group(visible=False, elem_id="data-retract") as panel:
        about = page.html()
        reason = gr.Textbox(label="Why is it wrong? (kept with your name)", elem_id="data-reason")
        with gr.Row():
            retract = gr.Button("Retract this ranking", variant="stop", elem_id="data-retract-do")
            cancel = gr.Button("Cancel", elem_id="data-retract-cancel")
    problem = page.html(elem_id="data-retracted")
    places: Any = gr.State([None])  # where each page seen so far begins; the last is the one shown
    event_id: Any = gr.State(0)
    filters = [words, project, annotator, checkpoint, agreement, since, until]

    def show(seen: list[int | None], request: gr.Request, *values: Any) -> list[Any]:
        """[list, newer, older, places]"""
        try:
            keeper(request, workspace)
            found = search.find(workspace.store, query(values), seen[-1])
        except InputError as error:
            hidden = gr.update(visible=False)
            return [notice(sentence(error), bad=True), hidden, hidden, seen]
        html = list_html(found, any(values), search.has_index(workspace.store.db))
        more = gr.update(visible=found.before is not None)
        return [html, gr.update(visible=len(seen) > 1), more, [*seen, found.before]]

    def first(request: gr.Request, *values: Any) -> list[Any]:
        return show([None], request, *values)

    def next_page(seen: list[int | None], request: gr.Request, *values: Any) -> list[Any]:
        return show(seen, request, *values)

    def previous_page(seen: list[int | None], request: gr.Request, *values: Any) -> list[Any]:
        return show(seen[:-2] or [None], request, *values)

    def choices(request: gr.Request) -> list[Any]:
        try:
            keeper(request, workspace)
        except InputError:
            return [gr.update(), gr.update(), gr.update()]
        db = workspace.store.db
        names = [row["name"] for row in rows(db, "SELECT name FROM users ORDER BY name")]
        models = rows(db, "SELECT id, name FROM checkpoints WHERE kind != 'reward' ORDER BY id DESC")
        return [
            gr.update(choices=[("Any project", 0), *((p.name, p.id) for p in all_projects(db))]),
            gr.update(choices=[("Anybody", ""), *names]),
            gr.update(choices=[("Any checkpoint", 0), *((row["name"], row["id"]) for row in models)]),
        ]

    def ask(request: gr.Request, event: gr.EventData) -> list[Any]:
        keeper(request, workspace)
        chosen = int(event.event)
        text = f"Ranking {chosen} will no longer count, and its task waits in the queue again."
        return [gr.update(visible=True), notice(text), chosen, ""]

    def take_back(chosen: int, why: str, request: gr.Request) -> list[Any]:
        try:
            rankings.retract(workspace.store, keeper(request, workspace), chosen, why)
        except InputError as error:
            return [gr.update(), notice(sentence(error), bad=True)]
        return [gr.update(visible=False), notice(f"Ranking {chosen} was retracted.")]

    shown = [listed, newer, older, places]
    typed = [listen for field in (words, since, until) for listen in (field.submit, field.blur)]
    for chosen_by in (project.input, annotator.input, checkpoint.input, agreement.input, *typed):
        chosen_by(first, filters, shown, **page.QUIET)
    older.click(next_page, [places, *filters], shown, **page.QUIET)
    newer.click(previous_page, [places, *filters], shown, **page.QUIET)
    listed.select(ask, None, [panel, about, event_id, problem], **page.QUIET)
    cancel.click(lambda: gr.update(visible=False), None, panel, **page.QUIET)
    retract.click(take_back, [event_id, reason], [panel, problem], **page.QUIET).then(
        first, filters, shown, **page.QUIET
    )
    page.on_show(choices, [], [project, annotator, checkpoint])
    page.on_show(first, filters, shown)
    for component in changed:
        component.change(first, filters, shown, **page.QUIET)
    return filters


def query(values: Sequence[Any]) -> search.Query:
    """What the fields say."""
    words, project, annotator, checkpoint, agreement, since, until = values
    return search.Query(
        words=str(words or ""),
        project_id=int(project) if project else None,
        checkpoint_id=int(checkpoint) if checkpoint else None,
        annotator=str(annotator or ""),
        agreement=str(agreement or ""),
        since=day(since),
        until=day(until, days=1),
    )


def day(text: Any, days: int = 0) -> float | None:
    """When that day begins on this machine's clock, or so many days later, in unix seconds; None for no text."""
    if not str(text or "").strip():
        return None
    try:
        return (datetime.strptime(str(text).strip(), "%Y-%m-%d") + timedelta(days=days)).timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"{str(text).strip()!r} is no day; write it like 2026-01-31") from None


def export_filters(values: Sequence[Any]) -> dict[str, Any]:
    """The same fields as filters of a snapshot; words and agreement are no such filters."""
    chosen = query(values)
    return {
        "project_ids": [chosen.project_id] if chosen.project_id else None,
        "annotators": [chosen.annotator] if chosen.annotator else None,
        "checkpoint_ids": [chosen.checkpoint_id] if chosen.checkpoint_id else None,
        "since": chosen.since,
        "until": chosen.until,
    }


def list_html(found: search.Page, filtered: bool, index: bool) -> str:
    """One foldable entry a ranking."""
    slow = "" if index else notice("This SQLite has no FTS5: searching goes through every ranking and is slow.")
    if not found.rows:
        if found.before is not None:
            return slow + notice("None among the newest 20,000. Press Older to look further back.")
        if filtered:
            return slow + notice("No ranking fits. Take a word or a filter away.")
        return slow + notice("No ranking yet. Open the Rank tab, or import preferences above.")
    return slow + f"<div class='rankings'>{''.join(map(_entry, found.rows))}</div>"


def _entry(row: Row) -> str:
    ranks = "all bad" if row["all_bad"] else " ".join("–" if rank is None else str(rank) for rank in row["ranks"])
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
    share = ""
    if row["agreement"] is not None:
        share = f"<span class='meta'>{row['people']} people, {row['agreement']:.0%} of pairs agree</span>"
    answers = "".join(
        f"<li><span class='rank'>{'–' if rank is None else rank}</span><div class='said'>{escape(text)}</div></li>"
        for rank, text in sorted(
            zip(row["ranks"], row["completions"], strict=True), key=lambda pair: (pair[0] is None, pair[0])
        )
    )
    turns = "".join(
        f"<div class='said'><span class='meta'>{escape(turn['role'])}</span> {escape(turn['content'])}</div>"
        for turn in row["prompt"]
    )
    comment = f"<p class='comment'>{escape(row['comment'])}</p>" if row["comment"] else ""
    facts = " · ".join(
        filter(None, (row["project"] or "no project", f"from {row['source']}", f"ranking {row['event_id']}"))
    )
    return (
        f"<details class='ranking'><summary><span class='when'>{when}</span>"
        f"<span class='who'>{escape(row['annotator'])}</span>"
        f"<span class='what'>{escape(short(row['prompt'][-1]['content'], 160))}</span>"
        f"<span class='ranks'>{ranks}</span>{share}"
        f"<span class='remark'>{escape(short(row['comment'] or '', 100))}</span></summary>"
        f"{turns}<ol class='answers'>{answers}</ol>{comment}<p class='meta'>{escape(facts)}</p>"
        f"<button type='button' class='link' data-retract='{int(row['event_id'])}'>Retract this ranking …</button>"
        "</details>"
    )
