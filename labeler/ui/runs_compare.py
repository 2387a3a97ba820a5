"""Runs beside one another, in the Runs tab: one metric's curves, the settings that differ, and the last figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from data.records import InputError
from labeler import jobs, run_comparison
from labeler.jobs import Job
from labeler.run_comparison import MOST
from labeler.ui import page, plots, theme
from labeler.ui.data import keeper
from labeler.ui.run_view import data_line, notice, parent_name
from labeler.workspace import Workspace

FEW = '<p class="empty">Choose two to six runs above: their curves, settings and last figures appear here.</p>'


def build(workspace: Workspace) -> None:
    """Make the part's content where the caller stands in the page."""
    with gr.Accordion("Compare runs", open=False, elem_id="runs-compare"):
        with gr.Row(elem_classes="pickers"):
            runs = gr.Dropdown(
                [], multiselect=True, max_choices=MOST, label="Runs", elem_id="compare-runs",
                info=f"Two to {MOST}. Of a run that goes on the figures so far; choose again to renew them.",
            )  # fmt: skip
            metric = gr.Dropdown([], label="Metric", elem_id="compare-metric", info="What the curves show.")
        curves = page.html(js_on_load=theme.script("run_curves.js"), elem_id="compare-curves")
        tables = page.html(elem_id="compare-tables")

    def offer(request: gr.Request, now: list[str] | None) -> Any:
        try:
            keeper(request, workspace)
        except InputError:
            return gr.skip()  # a page of somebody who does not see this tab
        choices = [(job.label, job.id) for job in jobs.list_jobs(workspace.store) if job.method != jobs.SELECT]
        known = {run_id for _, run_id in choices}
        return gr.Dropdown(choices, value=[run_id for run_id in now or [] if run_id in known])

    def choose(request: gr.Request, run_ids: list[str] | None, name: str | None) -> tuple[Any, str, str]:
        try:
            keeper(request, workspace)
            if len(run_ids or []) < 2:
                return gr.skip(), "", FEW
            compared = run_comparison.chosen(workspace, run_ids or [])
        except InputError as error:
            return gr.skip(), "", notice(str(error))
        histories = [run_comparison.metrics_of(workspace, job) for job in compared]
        names = metric_names(compared, histories)
        shown = name if name in names else next(iter(names), None)
        return (
            gr.Dropdown(names, value=shown),
            overlay(compared, histories, shown),
            downloads(compared, shown) + comparison_tables(workspace, compared, histories),
        )

    page.on_show(offer, [runs], [runs])
    for field in (runs, metric):
        field.input(choose, [runs, metric], [metric, curves, tables], **page.QUIET)
    page.on_show(lambda: FEW, [], [tables])


def metric_names(compared: Sequence[Job], histories: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Metrics that one may look at: what most runs have measured first, and of that a method's key metrics."""
    table = run_comparison.final_metrics(histories)
    key = [name for job in compared for panel in plots.PANELS.get(job.method, ()) for name in panel.names]
    rank = {name: place for place, name in reversed(list(enumerate(key)))}
    return sorted(table, key=lambda name: (-sum(map(bool, table[name])), rank.get(name, len(key)), name))


def overlay(compared: Sequence[Job], histories: Sequence[list[dict[str, Any]]], metric: str | None) -> str:
    """One plot with a line for each run that has measured the metric; HTML."""
    if metric is None:
        return notice("These runs have measured nothing yet.", "info")
    lines = [
        (job.label, found)
        for job, rows in zip(compared, histories, strict=True)
        if (found := plots.series(rows, metric))
    ]
    return f'<div class="curves large">{plots.overlay(metric, lines)}</div>' if lines else ""


def downloads(compared: Sequence[Job], metric: str | None) -> str:
    """Links to the same as files."""
    query = [("run", job.id) for job in compared]
    links = [(f"runs.csv?{urlencode(query)}", "Download CSV (every step and metric)")]
    if metric:
        links.append((f"runs.png?{urlencode([*query, ('metric', metric)])}", "Download PNG (these curves)"))
    return (
        '<p class="downloads">' + "".join(f'<a href="{escape(to)}" download>{name}</a>' for to, name in links) + "</p>"
    )


def comparison_tables(workspace: Workspace, compared: Sequence[Job], histories: Sequence[list[dict[str, Any]]]) -> str:
    """What differs between the runs, and the last figures; HTML."""
    labels = [escape(job.label) for job in compared]
    told = {"state": [job.state for job in compared], "method": [job.method for job in compared]}
    told |= {"learned from": [data_line(workspace, job) for job in compared]}
    told |= {"started from": [parent_name(workspace, job) for job in compared]}
    settings: dict[str, list[str | None]] = {name: list(row) for name, row in told.items() if len(set(row)) > 1}
    settings |= run_comparison.differences([job.config for job in compared])
    different = [[escape(name), *(_cell(value) for value in row)] for name, row in settings.items()]
    final = [
        [
            escape(name),
            *(f"{plots.number(cell[1])} <span class='muted'>at {cell[0]:g}</span>" if cell else "–" for cell in row),
        ]
        for name, row in run_comparison.final_metrics(histories).items()
    ]
    first = (
        page.table(["Setting", *labels], different, "Settings that differ")
        if different
        else '<p class="muted">None: all of them were told the same.</p>'
    )
    second = (
        page.table(["Metric", *labels], final, "Last figures")
        if final
        else '<p class="muted">Nothing is measured yet.</p>'
    )
    return f"<h3>Settings that differ</h3>{first}<h3>Last figures, and at which step</h3>{second}"


def _cell(value: str | None) -> str:
    return "–" if value is None else escape(value)
