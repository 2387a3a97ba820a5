"""The Train tab: choose a method and its settings, start a run, watch it."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, estimates, form, jobs, new_jobs
from labeler.auth import current_user
from labeler.ui import before, page, queue, recipes
from labeler.ui.data import keeper
from labeler.ui.run_view import RunView, notice
from labeler.workspace import Workspace
from training.config import METHODS

TICK_SECONDS = 1.0
MARK_SECONDS = 3.0
PICKERS = 3
"""Checkpoints that are chosen: where it starts, the reward model, the judge."""

METHOD_CHOICES = [
    ("Reward model\nLearns to score answers as people ranked them. PPO needs one.", "reward"),
    ("DPO\nMoves the model towards preferred answers, straight from the rankings.", "dpo"),
    ("PPO\nThe model answers, a reward model scores, and it learns to score higher.", "ppo"),
    ("SFT\nImitates the best answers word by word. A good first step.", "sft"),
]
assert {value for _, value in METHOD_CHOICES} == set(METHODS)


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    recipe = recipes.build(workspace)
    page.html("<h2>One run, with settings of your own</h2>")
    method = gr.Radio(
        METHOD_CHOICES,
        value="reward",
        label="Method",
        show_label=False,
        elem_classes=["methods"],
        elem_id="train-method",
    )
    data = page.html(elem_id="train-data")
    weigh = before.weigh_box()
    with gr.Row(elem_classes="pickers"):
        parent = gr.Dropdown(
            [],
            label="Starts from",
            info="The base model, or a checkpoint whose training goes on.",
            elem_id="train-parent",
        )
        reward = gr.Dropdown(
            [], label="Reward model", info="What scores the answers.", visible=False, elem_id="train-reward"
        )
        judge = queue.judge_picker(
            [],
            None,
            label="Judge",
            info="A reward model trained apart: do the sample texts get better, or only please the first?",
            visible=False,
            elem_id="train-judge",
        )
    groups, fields = {}, {}
    for name, config_class in METHODS.items():
        with gr.Column(visible=name == "reward", elem_id=f"form-{name}") as groups[name]:
            fields[name] = form.build(config_class)
    with gr.Row(elem_classes="start-row"):
        start = gr.Button("Start", variant="primary", scale=0, min_width=160, elem_id="train-start")
        problem = page.html(elem_id="train-problem")
    line = page.html(js_on_load=queue.ACT, elem_id="train-queue")
    queue_said = page.html(elem_id="train-queue-said")
    line_seen = page.shown()
    waiting = page.html(elem_id="train-waiting")
    view = RunView(workspace)
    shown = gr.State("")  # the run that Stop and Resume mean

    order = list(METHODS)
    flat = [component for name in order for component in fields[name]]

    def values_of(name: str, values: tuple[Any, ...]) -> list[Any]:
        first = sum(len(fields[other]) for other in order[: order.index(name)])
        return list(values[first : first + len(fields[name])])

    def settings_of(name: str, values: tuple[Any, ...]) -> dict[str, Any]:
        return form.read(METHODS[name], values_of(name, values))

    def choose(
        request: gr.Request,
        name: str,
        weighed: bool,
        parent_id: int | None,
        reward_id: int | None,
        judge_id: int | None,
        *values: Any,
    ) -> list[Any]:
        policies = checkpoints.choices(workspace)
        scorers = checkpoints.choices(workspace, ["reward"])
        newest = scorers[0][1] if scorers else None
        return [
            described(request, name, weighed, values, measure=False),
            gr.update(visible=name in before.WEIGHED),
            gr.Dropdown(policies, value=page.keep_choice(policies, parent_id, workspace.base_checkpoint_id)),
            gr.Dropdown(
                scorers,
                value=page.keep_choice(scorers, reward_id, newest),
                visible=name == "ppo",
                info="What scores the answers."
                if scorers
                else "There is none yet: train a reward model first, then it can be chosen here.",
            ),
            queue.judge_picker(scorers, judge_id, visible=name == "ppo"),
            *(gr.update(visible=other == name) for other in order),
        ]

    def measured(request: gr.Request, name: str, weighed: bool, *values: Any) -> str:
        return described(request, name, weighed, values[PICKERS:], measure=True)

    def again(request: gr.Request, before: str, name: str, weighed: bool, *values: Any) -> list[Any]:
        now = estimates.mark(workspace)
        return [gr.skip()] * 2 if now == before else [now, measured(request, name, weighed, *values)]

    def described(request: gr.Request, name: str, weighed: bool, values: tuple[Any, ...], measure: bool) -> str:
        if current_user(request, workspace).role not in page.TRAINERS:
            return ""
        return before.view(workspace, name, lambda: settings_of(name, values), weighed, measure)

    def begin(
        request: gr.Request,
        name: str,
        weighed: bool,
        parent_id: int | None,
        reward_id: int | None,
        judge_id: int | None,
        *values: Any,
    ) -> tuple[Any, ...]:
        try:
            user = page.trainer(request, workspace)
            settings, filters = settings_of(name, values), before.filters(name, weighed)
            job_id = new_jobs.create(
                workspace, user, name, settings, filters,
                parent_id=parent_id, reward_id=reward_id, judge_id=judge_id or None,
            )  # fmt: skip
        except InputError as error:
            return notice(form.readable(str(error), METHODS[name])), gr.skip()
        told = f"Added as {checkpoints.run_label(job_id)}. Watch it below."
        return notice(told, "info"), gr.update(interactive=False)

    def look(before: str, seen: Any, request: gr.Request) -> list[Any]:
        try:
            keeper(request, workspace)
        except InputError:
            return [gr.skip() for _ in live]  # a page of somebody who does not see this tab
        job = current(workspace)
        drawn = queue.panel(workspace)
        changed = gr.skip() if drawn == before else drawn
        return [drawn, changed, job.id if job else "", waiting_line(workspace), *view.updates(job, seen)]

    def press(request: gr.Request, event: gr.EventData) -> list[Any]:
        said, pickers = "", [gr.skip()] * (2 + PICKERS)
        values: dict[str, list[Any]] = {name: [gr.skip()] * len(fields[name]) for name in order}
        try:
            user = page.trainer(request, workspace)
            if event.act == "copy":
                job = jobs.get(workspace.store, str(event.run))
                said, pickers, values[job.method] = queue.filled(workspace, job)
            else:
                said = notice(queue.act(workspace, user, str(event.run), str(event.act)), "info")
        except InputError as error:
            said = notice(str(error))
        return [said, *pickers, *(value for name in order for value in values[name])]

    def rest() -> Any:
        time.sleep(1)  # a double click must not start two runs
        return gr.update(interactive=True)

    chosen = [method, weigh, parent, reward, judge, *flat]
    form_outputs = [data, weigh, parent, reward, judge, *(groups[name] for name in order)]
    page.on_show(choose, chosen, form_outputs)
    method.change(choose, chosen, form_outputs, **page.QUIET)
    edited = [field.change for field in (weigh, *flat)]
    gr.on(edited, measured, chosen, data, trigger_mode="always_last", **page.QUIET)
    page.on_show(measured, chosen, [data])
    mark = gr.State("")  # changes when a measurement of the machine's speed has begun or ended
    gr.Timer(MARK_SECONDS).tick(again, [mark, *chosen], [mark, data], queue=False, **page.QUIET)
    known = [line_seen, view.seen]
    live = [line_seen, line, shown, waiting, *view.outputs]
    started = start.click(begin, chosen, [problem, start], concurrency_limit=4, api_visibility="private")
    started.then(look, known, live, **page.QUIET).then(rest, None, start, **page.QUIET)
    recipe.then(look, known, live, **page.QUIET)
    pressed = line.select(press, None, [queue_said, *chosen], trigger_mode="multiple", **page.QUIET)
    pressed.then(look, known, live, **page.QUIET)
    view.on_buttons(shown, problem)
    page.on_show(look, known, live)
    gr.Timer(TICK_SECONDS).tick(look, known, live, queue=False, **page.QUIET)


def current(workspace: Workspace) -> jobs.Job | None:
    """The run that the tab shows: the one that is going, else the next that waits, else the one that ended last."""
    running = jobs.list_jobs(workspace.store, ["running"])
    if running:
        return running[0]
    next_up = jobs.queue(workspace.store)
    if next_up:
        return next_up[0]
    return max(jobs.list_jobs(workspace.store), key=lambda job: job.finished_at or 0.0, default=None)


def waiting_line(workspace: Workspace) -> str:
    """The heading of the lower half: what is shown below and what waits behind it."""
    job = current(workspace)
    if job is None:
        return '<p class="empty">No run yet. Choose a method above and press Start; its curves appear here.</p>'
    title = {"running": "Running now", "queued": "Starts next"}.get(job.state, "Last run")
    behind = [waiting for waiting in jobs.queue(workspace.store) if waiting.id != job.id]
    line = ""
    if behind:
        names = ", ".join(escape(waiting.label) for waiting in behind)
        line = f'<p class="meta">Waiting behind it: {names}. Their order can be changed in the queue.</p>'
    return f"<h2>{title}</h2>{line}"
