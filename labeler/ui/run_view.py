"""One run as people see it: where it stands, its curves, log, configuration and checkpoints. For Train and for Runs.

Everything is drawn from the store and the run folder, so a reload, another browser or a restart shows the same.
Whatever comes from a run (names, messages, logs) is escaped here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, jobs, readings, resources, sampling, worker
from labeler.jobs import Job
from labeler.store import one, scalar
from labeler.ui import page, plots, run_alarm, run_samples, theme
from labeler.workspace import Workspace
from training import run_folder

STATES = {
    "queued": ("…", "waiting"),
    "running": ("●", "running"),
    "finished": ("✓", "finished"),
    "failed": ("✕", "failed"),
    "stopped": ("■", "stopped"),
    "interrupted": ("⚡", "interrupted"),
}
"""A sign beside the word: state is never told by colour alone."""

EMPTY_LOG = "The log is empty so far."

SMOOTHING = """<label class="smoothing">Smoothing
<input type="range" min="0" max="0.98" step="0.02" value="0"><output>off</output>
<span class="muted">of every curve; the faint line is what was measured</span></label>"""


class RunView:
    """The components that show one run, made where the caller stands in the page.

    `outputs` take what `updates` gives.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.head = page.html()
        with gr.Row(elem_classes="run-buttons"):
            self.stop = gr.Button("Stop and save", visible=False, min_width=140, scale=0)
            self.resume = gr.Button("Resume", variant="primary", visible=False, min_width=140, scale=0)
        self.resources = page.html()
        self.puzzles = page.html()
        self.smoothing = page.html(SMOOTHING, js_on_load=theme.script("run_smoothing.js"), visible=False)
        self.curves = page.html(js_on_load=theme.script("run_curves.js"))
        with gr.Accordion("What it says", open=True, visible=False) as self.samples_fold:
            self.samples = page.html(js_on_load=theme.script("run_samples.js"))
        with gr.Accordion("Score, KL, length and blind votes", open=True, visible=False) as self.alarm_fold:
            self.alarm = page.html()
        self.checkpoints = page.html()
        with gr.Accordion("Log", open=False, visible=False) as self.log_fold:
            self.log = page.html()
        with gr.Accordion("All other metrics", open=False, visible=False) as self.others_fold:
            self.others = page.html()
        with gr.Accordion("Command line and configuration", open=False, visible=False) as self.command_fold:
            self.command = page.html()
        self.seen = page.shown()
        self.outputs = [
            self.seen,
            self.resources,
            self.head,
            self.stop,
            self.resume,
            self.puzzles,
            self.smoothing,
            self.curves,
            self.samples_fold,
            self.samples,
            self.alarm_fold,
            self.alarm,
            self.checkpoints,
            self.log_fold,
            self.log,
            self.others_fold,
            self.others,
            self.command_fold,
            self.command,
        ]

    def on_buttons(self, run_id: Any, problem: Any) -> list[Any]:
        """Let Stop and Resume act on the run named in `run_id`; what goes wrong is said in `problem`."""

        def acting(act: Callable[[str], None]) -> Callable[[str, gr.Request], str]:
            def handler(job_id: str, request: gr.Request) -> str:
                try:
                    page.trainer(request, self.workspace)
                    act(job_id)
                except InputError as error:
                    return notice(str(error))
                return ""

            return handler

        stop = acting(lambda job_id: jobs.request_stop(self.workspace.store, job_id))
        resume = acting(lambda job_id: jobs.resume(self.workspace, job_id))
        return [
            button.click(handler, run_id, problem, **page.QUIET)
            for button, handler in ((self.stop, stop), (self.resume, resume))
        ]

    def updates(self, job: Job | None, seen: str) -> list[Any]:
        """New values for `outputs`; nothing where the page shows this already."""
        if job is None:
            if seen == "none":
                return [gr.skip() for _ in self.outputs]
            hidden = gr.update(visible=False)
            return [
                "none",
                "",
                "",
                hidden,
                hidden,
                "",
                hidden,
                "",
                hidden,
                "",
                hidden,
                "",
                "",
                hidden,
                "",
                hidden,
                "",
                hidden,
                "",
            ]
        folder = self.workspace.runs_folder / job.id
        store = self.workspace.store
        voted = scalar(store.db, "SELECT max(event_id) FROM in_force")
        key = repr((_stamp(folder, job), len(checkpoints.of_run(store, job.id)), voted))
        used = resource_line(job)
        seen_key, _, seen_used = seen.partition("\n")
        if seen_key == key:
            unchanged = [gr.skip() for _ in self.outputs[2:]]
            return [gr.skip(), gr.skip(), *unchanged] if seen_used == used else [f"{key}\n{used}", used, *unchanged]
        status = worker.read_status(folder)
        metrics = read_metrics(folder)
        log = worker.log_tail(folder)
        curves = plots.key_curves(job.method, metrics)
        told = run_samples.read_samples(folder)
        samples = run_samples.view(job, told)
        alarm = run_alarm.view(store, job, metrics, told)
        others = plots.other_curves(job.method, metrics)
        stoppable = job.state in jobs.OPEN_STATES and job.stop_requested_at is None
        return [
            f"{key}\n{used}",
            used,
            head(self.workspace, job, status),
            gr.update(visible=stoppable, value="Cancel" if job.state == "queued" else "Stop and save"),
            gr.update(visible=job.state in jobs.RESUMABLE_STATES),
            puzzle_list(job, metrics),
            gr.update(visible=bool(curves)),
            curves or _no_curves(job),
            gr.update(visible=bool(samples)),
            samples,
            gr.update(visible=bool(alarm)),
            alarm,
            checkpoint_list(self.workspace, job),
            gr.update(visible=True),
            f'<div class="log" role="log" tabindex="0"><pre>{escape(log or EMPTY_LOG)}</pre></div>',
            gr.update(visible=bool(others)),
            others,
            gr.update(visible=True),
            command_and_config(self.workspace, job),
        ]


def resource_line(job: Job) -> str:
    """What the run uses of this machine now; "" where it does not run, or not here."""
    used = resources.usage(job.pid, job.process_started) if job.state == "running" else None
    return f'<p class="meta resources">Uses {escape(resources.in_words(used))}</p>' if used else ""


def puzzle_list(job: Job, metrics: list[dict[str, Any]]) -> str:
    """What this run does that puzzles people, explained."""
    found = readings.puzzles(job.method, job.config, metrics)
    items = "".join(f"<div><h4>{escape(title)}</h4><p>{escape(explanation)}</p></div>" for title, explanation in found)
    return f'<div class="puzzles">{items}</div>' if items else ""


def _stamp(folder: Path, job: Job) -> tuple[Any, ...]:
    """Changes whenever something that is shown does."""
    marks = []
    for name in ("status.json", "metrics.jsonl", "samples.jsonl", "log.txt"):
        try:
            stat = (folder / name).stat()
            marks.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            marks.append((0, 0))
    return (job.id, job.state, job.stop_requested_at, job.queued_at, silence(folder, job), *marks)


def silence(folder: Path, job: Job) -> int:
    """Whole minutes for which a running run has not said a word; it should every few seconds."""
    if job.state != "running" or job.started_at is None:
        return 0
    last = float(worker.read_status(folder).get("updated_at") or 0)
    return int((time.time() - max(last, job.started_at)) // 60)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics, as far as they can be read."""
    try:
        return run_folder.read_metrics(folder)
    except (OSError, ValueError):
        return []


def chip(state: str) -> str:
    """A run's state as a small label."""
    sign, word = STATES.get(state, ("?", state))
    return f'<span class="chip chip-{escape(state)}"><span aria-hidden="true">{sign}</span> {escape(word)}</span>'


def head(workspace: Workspace, job: Job, status: dict[str, Any]) -> str:
    """Name, state, progress and, where it went wrong, why and what to do."""
    title = f"<h3>{escape(job.label)}</h3>{chip(job.state)}"
    facts = [f"learns from {escape(data_line(workspace, job))}", f"starts from {escape(parent_name(workspace, job))}"]
    if job.reward_checkpoint_id is not None:
        facts.append(f"scored by {escape(checkpoints.get(workspace.store, job.reward_checkpoint_id).name)}")
    judge = checkpoints.at(workspace, job.config.get("judge_model"))
    if judge is not None:
        facts.append(f"judged by {escape(judge.name)}")
    if job.started_at is not None:
        facts.append(
            f"took {jobs.duration((job.finished_at or time.time()) - job.started_at)}" if job.finished_at else ""
        )
    meta = " · ".join(fact for fact in facts if fact)
    progress = _progress(job, status, silence(workspace.runs_folder / job.id, job))
    return (
        f'<section class="run-head" data-run="{escape(job.id)}" data-state="{escape(job.state)}">'
        f'<div class="run-title">{title}</div><p class="meta">{meta}</p>'
        f"{progress}{_trouble(job)}{_result(job)}</section>"
    )


def _progress(job: Job, status: dict[str, Any], quiet: int) -> str:
    if job.state == "queued":
        return '<p class="now">Waits until the run before it is done, then starts by itself.</p>'
    step, total = status.get("step") or 0, status.get("total_steps") or 0
    if job.state != "running":
        return f'<p class="now">{step} of {total} steps</p>' if total and job.state != "finished" else ""
    now = jobs.progress_line(job, status)
    message = str(status.get("message") or "") if jobs.fresh(job, status) else ""
    detail = f" · {escape(message)}" if message and not message.startswith("step ") else ""
    bar = ""
    if total and jobs.fresh(job, status):
        bar = (
            f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="{int(total)}" '
            f'aria-valuenow="{int(step)}"><div style="width:{100 * step / total:.1f}%"></div></div>'
        )
    warning = (
        notice(f"No sign of life for {quiet} min. If the machine is not asleep, stop it and resume.") if quiet else ""
    )
    return f'<p class="now">{escape(now)}{detail}</p>{bar}{warning}'


def _trouble(job: Job) -> str:
    if job.state not in ("failed", "interrupted") or not job.error:
        return ""
    advice = "Resume goes on from the newest checkpoint, or starts again where there is none. The log says more."
    return f'<div class="notice error" role="alert"><p>{escape(job.error)}</p><p>{advice}</p></div>'


def _result(job: Job) -> str:
    numbers = final_metrics(job)
    if not numbers:
        return ""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers)
    return f'<dl class="result">{cells}</dl>'


def final_metrics(job: Job, limit: int = 8) -> list[tuple[str, str]]:
    """What the run reports at its end: (name, value) for people, in the order of the curves.

    What has no curve of its own is left to the page's other metrics, unless there is nothing else.
    """
    telling = [name for panel in plots.PANELS.get(job.method, ()) for name in panel.names]
    found = [
        (name, plots.number(float(value)))
        for name, value in (job.result or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "steps"
    ]
    found = sorted((item for item in found if item[0] in telling), key=lambda item: telling.index(item[0])) or found
    return [(plots.plain_name(job.method, name), value) for name, value in found[:limit]]


def parent_name(workspace: Workspace, job: Job) -> str:
    return checkpoints.get(workspace.store, job.parent_checkpoint_id).name


def data_line(workspace: Workspace, job: Job) -> str:
    """ "412 comparisons (a1b2c3d4)": what the run's snapshot holds and the beginning of its hash."""
    row = one(workspace.store.db, "SELECT kind, counts, sha256 FROM snapshots WHERE id = ?", [job.snapshot_id])
    if row is None:
        return sampling.describe(workspace, job.config) if job.method == jobs.SAMPLE else "unknown data"
    counts = json.loads(row["counts"])
    number = counts.get("comparisons", counts.get("rows", 0))
    noun = {"preferences": "comparison", "demonstrations": "demonstration", "prompts": "prompt"}[row["kind"]]
    return f"{number:,} {noun}{'' if number == 1 else 's'} ({row['sha256'][:8]})"


def _no_curves(job: Job) -> str:
    if job.method in jobs.LOCAL:
        return ""
    if job.state == "running":
        return '<p class="empty">Curves appear with the first step. Loading the model comes first.</p>'
    return "" if job.state == "queued" else '<p class="empty">This run ended before its first step.</p>'


def checkpoint_list(workspace: Workspace, job: Job) -> str:
    """The run's checkpoints and what to do with them."""
    made = checkpoints.of_run(workspace.store, job.id)
    if not made:
        return ""
    items = []
    for checkpoint in made:
        gone = not (workspace.folder / str(checkpoint.path) / "manifest.json").is_file()
        note = ' <span class="muted">(pruned)</span>' if gone else ""
        items.append(f"<li><code>{escape(checkpoint.name)}</code>{note}</li>")
    what = (
        "Choose it as the reward model of a PPO run in Train."
        if job.method == "reward"
        else "Choose it in Chat to talk to it, or in Compare to vote on it blindly."
    )
    listed = "".join(items)
    return f'<section class="checkpoints"><h4>Checkpoints</h4><ul>{listed}</ul><p class="muted">{what}</p></section>'


def command_and_config(workspace: Workspace, job: Job) -> str:
    line = escape(jobs.command_line(workspace, job))
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(json.dumps(value) if not isinstance(value, str) else value)}</td></tr>"
        for name, value in job.config.items()
    )
    return (
        f'<p class="muted">The same run without this page:</p><pre class="command"><code>{line}</code></pre>'
        f'<table class="config"><tbody>{rows}</tbody></table>'
    )


def notice(message: str, kind: str = "error") -> str:
    """A message beside what it is about."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}"><p>{escape(message)}</p></div>' if message else ""
