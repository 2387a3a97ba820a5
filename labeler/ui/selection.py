"""Active selection as a lead sees it: which project, by which reward model, how far it is, and what came of it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, jobs, selection, worker
from labeler.auth import current_user
from labeler.projects import all_projects
from labeler.ui import page
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

TICK_SECONDS = 2.0
ABOUT = """<h2>Active order</h2>
<p class="muted" style="max-width: 75ch">Ask first where an answer teaches most. Several heads, each fitted to
another resample of the rankings, predict every comparison of the open tasks; the tasks on which they disagree most come
first in projects with active order. A task whose answers are simply equally good is not preferred.</p>"""
NO_MODEL = "There is no reward model yet: train one in Train, then order the tasks by what it is not sure of."


def build(workspace: Workspace) -> None:
    """Make the section where the caller stands in the page."""
    page.html(ABOUT)
    with gr.Row(elem_classes="pickers"):
        project = gr.Dropdown([], label="Project", elem_id="select-project")
        model = gr.Dropdown([], label="Reward model", elem_id="select-model")
    again = gr.Checkbox(
        label="Ask for a second opinion on ranked tasks where the model confidently disagrees with a person",
        elem_id="select-again",
    )
    with gr.Row(elem_classes="start-row"):
        start = gr.Button("Order the open tasks", variant="primary", scale=0, min_width=220,
                          elem_id="select-start")  # fmt: skip
        stop = gr.Button("Stop", visible=False, scale=0, min_width=100, elem_id="select-stop")
    problem = page.html(elem_id="select-problem")
    state = page.html(elem_id="select-state")
    seen = page.shown()

    def show(request: gr.Request, project_id: int | None, model_id: int | None, before: str) -> list[Any]:
        try:
            asking(request, workspace)
        except InputError as error:
            return [gr.skip(), gr.skip(), notice(str(error)), *(gr.skip() for _ in live)]
        projects = [(each.name, each.id) for each in all_projects(workspace.store.db) if not each.archived]
        models = checkpoints.choices(workspace, ["reward"])
        chosen = page.keep_choice(projects, project_id, projects[0][1] if projects else None)
        return [
            gr.Dropdown(projects, value=chosen),
            gr.Dropdown(models, value=page.keep_choice(models, model_id, models[0][1] if models else None)),
            "" if models else notice(NO_MODEL, "info"),
            *look(request, chosen, before),
        ]

    def look(request: gr.Request, project_id: int | None, before: str) -> list[Any]:
        try:
            asking(request, workspace)
        except InputError:
            return [gr.skip() for _ in live]
        job = selection.newest(workspace.store, project_id) if project_id else None
        busy = job is not None and job.state in jobs.OPEN_STATES
        ready = not busy and bool(checkpoints.list_checkpoints(workspace, ["reward"]))
        drawn = state_html(workspace, job)
        now = f"{ready}{drawn}"
        if now == before:
            return [gr.skip() for _ in live]
        return [now, drawn, gr.update(interactive=ready), gr.update(visible=busy)]

    def begin(request: gr.Request, project_id: int | None, model_id: int | None, second: bool) -> str:
        try:
            user = asking(request, workspace)
            if project_id is None or model_id is None:
                raise InputError("choose a project and a reward model")
            job = selection.newest(workspace.store, project_id)
            if job is not None and job.state in jobs.OPEN_STATES:  # a double click
                return ""
            selection.create(workspace, user, project_id, model_id, second_opinions=second)
        except InputError as error:
            return notice(str(error))
        return ""

    def end(request: gr.Request, project_id: int | None) -> str:
        try:
            user = asking(request, workspace)
            job = selection.newest(workspace.store, project_id) if project_id else None
            if job is not None:
                selection.stop(workspace, user, job.id)
        except InputError as error:
            return notice(str(error))
        return ""

    live = [seen, state, start, stop]
    known = [project, seen]
    page.on_show(show, [project, model, seen], [project, model, problem, *live])
    project.change(look, known, live, **page.QUIET)
    start.click(begin, [project, model, again], problem, **page.QUIET).then(look, known, live, **page.QUIET)
    stop.click(end, project, problem, **page.QUIET).then(look, known, live, **page.QUIET)
    gr.Timer(TICK_SECONDS).tick(look, known, live, queue=False, **page.QUIET)


def asking(request: gr.Request, workspace: Workspace) -> Any:
    """The user who asks, if they may order tasks. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in selection.SELECTORS:
        raise InputError(f"{user.name} may not order tasks; ask a lead")
    return user


def state_html(workspace: Workspace, job: jobs.Job | None) -> str:
    """Where the project's last selection stands; HTML."""
    if job is None:
        return '<p class="empty">The tasks of this project have not been ordered yet.</p>'
    if job.state == "finished":
        return f'<p class="now" role="status">{escape(selection.describe(workspace, job))}</p>'
    if job.state == "queued":
        return '<p class="now" role="status">Waits until the run before it is done, then starts by itself.</p>'
    if job.state == "running":
        status = worker.read_status(workspace.runs_folder / job.id)
        message = str(status.get("message") or "") if jobs.fresh(job, status) else ""
        detail = f" · {escape(message)}" if message else ""
        return f'<p class="now" role="status">{escape(jobs.progress_line(job, status))}{detail}</p>'
    said = f"{job.label} {job.state}"
    return notice(f"{said}: {job.error}. Order them again; its log in Runs says more." if job.error else f"{said}.")
