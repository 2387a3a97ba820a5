"""The Data tab: how much there is, files in and out, what was said, and what is deleted on request."""

from __future__ import annotations

from html import escape

import gradio as gr

from data.records import InputError
from labeler import snapshots
from labeler.auth import current_user
from labeler.store import scalar
from labeler.users import User
from labeler.workspace import Workspace

KEEPERS = ("lead", "researcher", "owner")
"""Roles that see what everybody said, and bring data in and out."""


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    from labeler.ui import data_browse, data_erase, data_export, data_import, page

    counts = gr.HTML(elem_id="data-counts")

    def refresh(request: gr.Request) -> str:
        try:
            keeper(request, workspace)
        except InputError as error:
            return notice(str(error), bad=True)
        return counts_html(workspace)

    with gr.Row(elem_classes="data-files"):
        with gr.Column(min_width=320):
            imported = data_import.build(workspace)
        with gr.Column(min_width=320):
            export = data_export.Export(workspace)
    filters = data_browse.build(workspace, changed=[imported])
    export.listen(filters)
    data_erase.build(workspace)
    page.on_show(refresh, [], [counts])
    imported.change(refresh, None, counts, **page.QUIET)


def keeper(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may see and move data. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in KEEPERS:
        raise InputError(f"{user.name} may not see or move everybody's data; ask a lead")
    return user


def counts_html(workspace: Workspace) -> str:
    """How much there is of what."""
    db = workspace.store.db
    counted = snapshots.count(workspace.store, kinds=("preferences", "prompts"))
    counted["completions"] = scalar(db, "SELECT count(*) FROM completions")
    counted["written answers"] = scalar(db, "SELECT count(*) FROM completions WHERE source = 'demonstration'")
    names = ("prompts", "completions", "rankings", "comparisons", "annotators", "written answers")
    items = "".join(f"<div><dt>{name.capitalize()}</dt><dd>{counted[name]:,}</dd></div>" for name in names)
    sql = """SELECT count(*) FROM in_force AS f CROSS JOIN events AS e ON e.id = f.event_id
        WHERE f.pairs = 0 AND json_extract(e.payload, '$.all_bad')"""
    flagged = scalar(db, sql)
    more = (
        f"<p>{plural(flagged, 'task')} marked all bad: kept as {'a flag' if flagged == 1 else 'flags'}, "
        "not counted as rankings.</p>"
        if flagged
        else ""
    )
    return f'<dl class="counts">{items}</dl>{more}'


def notice(text: str, bad: bool = False, more: str = "") -> str:
    """A line beside what caused it; `more` is HTML of ours."""
    return f'<p class="data-notice" role="{"alert" if bad else "status"}" data-bad="{bad}">{escape(text)} {more}</p>'


def sentence(error: BaseException | str) -> str:
    """An error as a sentence of its own."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def plural(count: int, word: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
