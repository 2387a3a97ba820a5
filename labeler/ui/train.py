"""The Train tab: choose a method and its settings, start a run, watch it."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, form, jobs, snapshots
from labeler.store import scalar
from labeler.ui import page, queue, recipes
from labeler.ui.run_view import RunView, notice
from labeler.workspace import Workspace
from training.config import METHODS

TICK_SECONDS = 1.0
FEW_COMPARISONS = 50

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
    groups, fields = {}, {}
    for name, config_class in METHODS.items():
        with gr.Column(visible=name == "reward", elem_id=f"form-{name}") as groups[name]:
            fields[name] = form.build(config_class)
    with gr.Row(elem_classes="start-row"):
        start = gr.Button("Start", variant="primary", scale=0, min_width=160, elem_id="train-start")
        problem = page.html(elem_id="train-problem")
    line = page.html(js_on_load=queue.ACT, elem_id="train-queue")
    queue_said = page.html(elem_id="train-queue-said")
    line_seen: Any = gr.State("")  # the queue as this page shows it
    waiting = page.html(elem_id="train-waiting")
    view = RunView(workspace)
    shown = gr.State("")  # the run that Stop and Resume mean

    order = list(METHODS)
    flat = [component for name in order for component in fields[name]]

    def values_of(name: str, values: tuple[Any, ...]) -> list[Any]:
        first = sum(len(fields[other]) for other in order[: order.index(name)])
        return list(values[first : first + len(fields[name])])

    def held_out(name: str, values: tuple[Any, ...]) -> float | None:
        names = [knob.name for knob in form.fields(METHODS[name])]
        value = dict(zip(names, values_of(name, values), strict=True)).get("validation_fraction")
        return float(value) if isinstance(value, int | float) else None

    def choose(name: str, parent_id: int | None, reward_id: int | None, *values: Any) -> list[Any]:
        policies = checkpoints.choices(workspace)
        scorers = checkpoints.choices(workspace, ["reward"])
        newest = scorers[0][1] if scorers else None
        return [
            data_line(workspace, name, held_out(name, values)),
            gr.Dropdown(policies, value=page.keep_choice(policies, parent_id, workspace.base_checkpoint_id)),
            gr.Dropdown(
                scorers,
                value=page.keep_choice(scorers, reward_id, newest),
                visible=name == "ppo",
                info="What scores the answers."
                if scorers
                else "There is none yet: train a reward model first, then it can be chosen here.",
            ),
            *(gr.update(visible=other == name) for other in order),
        ]

    def facts(name: str, *values: Any) -> str:
        return data_line(workspace, name, held_out(name, values))

    def begin(
        request: gr.Request, name: str, parent_id: int | None, reward_id: int | None, *values: Any
    ) -> tuple[Any, ...]:
        try:
            user = page.trainer(request, workspace)
            settings = form.read(METHODS[name], values_of(name, values))
            job_id = jobs.create(workspace, user, name, settings, parent_id=parent_id, reward_id=reward_id)
        except InputError as error:
            return notice(str(error)), gr.skip()
        told = f"Added as {checkpoints.run_label(job_id)}. Watch it below."
        return notice(told, "info"), gr.update(interactive=False)

    def look(before: str, seen: Any, request: gr.Request) -> list[Any]:
        job = current(workspace)
        drawn = queue.panel(workspace)
        changed = gr.skip() if drawn == before else drawn
        return [drawn, changed, job.id if job else "", waiting_line(workspace), *view.updates(job, seen)]

    def press(request: gr.Request, event: gr.EventData) -> list[Any]:
        said, pickers = "", [gr.skip()] * 3
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

    chosen = [method, parent, reward, *flat]
    form_outputs = [data, parent, reward, *(groups[name] for name in order)]
    page.on_show(choose, chosen, form_outputs)
    method.change(choose, chosen, form_outputs, **page.QUIET)
    for name in order:
        for knob, field in zip(form.fields(METHODS[name]), fields[name], strict=True):
            if knob.name == "validation_fraction":
                field.change(facts, [method, *flat], data, **page.QUIET)
    known = [line_seen, view.seen]
    live = [line_seen, line, shown, waiting, *view.outputs]
    started = start.click(begin, chosen, [problem, start], concurrency_limit=4, api_visibility="private")
    started.then(look, known, live, **page.QUIET).then(rest, None, start, **page.QUIET)
    recipe.then(look, known, live, **page.QUIET)
    line.select(press, None, [queue_said, *chosen], **page.QUIET).then(look, known, live, **page.QUIET)
    view.on_buttons(shown, problem)
    page.on_show(look, known, live)
    gr.Timer(TICK_SECONDS).tick(look, known, live, queue=False, **page.QUIET)


def current(workspace: Workspace) -> jobs.Job | None:
    """The run that the tab shows: the one that is going, else the next that waits, else the newest."""
    running = jobs.list_jobs(workspace.store, ["running"])
    if running:
        return running[0]
    next_up = jobs.queue(workspace.store)
    if next_up:
        return next_up[0]
    newest = jobs.list_jobs(workspace.store)
    return newest[0] if newest else None


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


def data_line(workspace: Workspace, method: str, held_out: float | None) -> str:
    """What a run would learn from, and what is missing where it is too little."""
    kind = jobs.SNAPSHOT_KINDS[method]
    counts = snapshots.count(workspace.store, kinds=[kind])
    share = f"{held_out:.0%} held out by prompt" if held_out else "nothing held out"
    warning = ""
    if kind == "preferences":
        comparisons = counts["comparisons"]
        ranked = int(
            scalar(
                workspace.store.db,
                "SELECT count(DISTINCT t.prompt_id) FROM in_force AS f JOIN tasks AS t ON t.id = f.task_id"
                " WHERE f.pairs > 0",
            )
        )
        parts = [
            _count(comparisons, "comparison"),
            _count(counts["annotators"], "annotator"),
            _count(ranked, "prompt"),
            share,
        ]
        if comparisons == 0:
            warning = "There is nothing to learn from yet: rank some answers in the Rank tab first."
        elif comparisons < FEW_COMPARISONS:
            warning = (
                f"Enough to try it out, too few to learn a taste from. Aim for {FEW_COMPARISONS * 2} comparisons or "
                "more; one ranking of four answers gives up to six."
            )
    elif kind == "demonstrations":
        parts = [_count(counts["demonstrations"], "demonstration"), share]
        if not counts["demonstrations"]:
            warning = "There is nothing to imitate yet: in the Rank tab, put one answer alone at the top."
    else:
        parts = [_count(counts["prompts"], "prompt"), "answers are written by the model itself", share]
        if not counts["prompts"]:
            warning = "There are no prompts yet: import some in the Data tab."
    facts = "".join(f"<span>{escape(part)}</span>" for part in parts)
    return f'<p class="facts"><b>Learns from</b>{facts}</p>{notice(warning, "info")}'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
