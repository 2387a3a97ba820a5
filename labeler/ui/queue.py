"""The queue as people change it: what waits and in which order, and the runs that ended last, to try them again."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, form, jobs, queueing
from labeler.jobs import Job
from labeler.store import scalar
from labeler.ui import page
from labeler.ui.run_view import chip, data_line, notice
from labeler.users import User
from labeler.workspace import Workspace
from training.config import METHODS

RECENT = 5
"""How many runs that have ended are listed."""

# The list is redrawn at every change, so one listener serves all buttons, and the focus must come back to its place.
# Of a double click only moves count twice, of a key that is held nothing does: a run is tried anew once. Where the list
# is redrawn between press and release there is no click; what was pressed counts.
ACT = """
let pressed = null;
let held = null;
const press = (run, act) => { pressed = {run, act}; trigger('select', {run, act}); };
element.addEventListener('pointerdown', event => {
  held = event.button === 0 ? event.target.closest('[data-act]:enabled') : null;
});
element.addEventListener('pointerup', () => {
  if (held && !held.isConnected) press(held.dataset.run, held.dataset.act);
  held = null;
});
element.addEventListener('keydown', event => {
  if (event.repeat && event.target.closest('[data-act]')) event.preventDefault();
});
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (!button) return;
  const {run, act} = button.dataset;
  if (event.detail > 1 && act !== 'up' && act !== 'down') return;
  press(run, act);
});
watch('value', () => {
  if (!pressed) return;
  const own = [...element.querySelectorAll('[data-act]:enabled')].filter(button => button.dataset.run === pressed.run);
  const next = own.find(button => button.dataset.act === pressed.act) || own[0];
  const at = document.activeElement;
  if (next && (at === document.body || element.contains(at))) next.focus({preventScroll: true});
  pressed = null;
});
"""


def act(workspace: Workspace, user: User, job_id: str, what: str) -> str:
    """Do what a button says; what was done, for people. Raises InputError."""
    label = jobs.get(workspace.store, job_id).label
    if what in ("up", "down"):
        queueing.move(workspace.store, job_id, -1 if what == "up" else 1)
        return ""
    if what == "cancel":
        jobs.request_stop(workspace.store, job_id)
        return f"Took {label} off the queue. Resume puts it back."
    if what == "resume":
        jobs.resume(workspace, job_id)
        return f"{label} waits again."
    if what == "retry":
        new = checkpoints.run_label(queueing.retry(workspace, user, job_id))
        return f"Added {new}: the settings and labels of {label} from the start."
    raise InputError(f"there is no button {what!r}; reload the page")


def panel(workspace: Workspace) -> str:
    """HTML; "" where there was never a run."""
    queue = jobs.queue(workspace.store)
    ended = [job for job in jobs.list_jobs(workspace.store) if job.state not in jobs.OPEN_STATES]
    ended.sort(key=lambda job: -(job.finished_at or 0))
    parts = []
    if queue:
        rows = "".join(_waiting(workspace, job, place, len(queue)) for place, job in enumerate(queue))
        parts.append(f"<h3>Waiting</h3><ol>{rows}</ol>")
    if ended:
        rows = "".join(_ended(workspace, job) for job in ended[:RECENT])
        parts.append(f"<h3>Ended last</h3><ul>{rows}</ul>")
    inside = "".join(parts)
    return f'<section class="queue" aria-label="Queue"><h2>Queue</h2>{inside}</section>' if inside else ""


def _waiting(workspace: Workspace, job: Job, place: int, count: int) -> str:
    buttons = [
        _button(job, "up", "↑", f"Move {job.label} up", disabled=place == 0),
        _button(job, "down", "↓", f"Move {job.label} down", disabled=place == count - 1),
        _button(job, "cancel", "Cancel", f"Cancel {job.label}"),
    ]
    needs = " and ".join(checkpoints.run_label(need) for need in job.needs if _open(workspace, need))
    about = [data_line(workspace, job), *([f"waits for {needs}"] if needs else [])]
    return _row(job, " · ".join(about), buttons)


def _ended(workspace: Workspace, job: Job) -> str:
    buttons = []
    if job.state in jobs.RESUMABLE_STATES:
        buttons.append(_button(job, "resume", "Resume", f"Resume {job.label}"))
        buttons.append(_button(job, "retry", "Try anew", f"Try {job.label} anew"))
    if job.method in METHODS:
        buttons.append(_button(job, "copy", "Change and start", f"Copy the settings of {job.label} into the form"))
    return _row(job, job.error or data_line(workspace, job), buttons, chip(job.state))


def _open(workspace: Workspace, job_id: str) -> bool:
    return jobs.get(workspace.store, job_id).state in jobs.OPEN_STATES


def _row(job: Job, about: str, buttons: list[str], state: str = "") -> str:
    return (
        f'<li><span class="queue-run"><b>{escape(job.label)}</b> {state}</span>'
        f'<span class="queue-about">{escape(about)}</span><span class="queue-buttons">{"".join(buttons)}</span></li>'
    )


def _button(job: Job, what: str, text: str, label: str, disabled: bool = False) -> str:
    rest = " disabled" if disabled else ""
    return (
        f'<button type="button" data-run="{escape(job.id)}" data-act="{what}" aria-label="{escape(label)}"{rest}>'
        f"{escape(text)}</button>"
    )


def filled(workspace: Workspace, job: Job) -> tuple[str, list[Any], list[Any]]:
    """The form as it was for this run: what to say; updates of method, weighting, parent, reward model and judge; its
    fields.

    Raises InputError where the run has no form.
    """
    if job.method not in METHODS:
        raise InputError(f"{job.label} has no form; start it again where it was asked for")
    policies, scorers = checkpoints.choices(workspace), checkpoints.choices(workspace, ["reward"])
    parent = page.keep_choice(policies, job.parent_checkpoint_id, None)
    reward = page.keep_choice(scorers, job.reward_checkpoint_id, None)
    judge = checkpoints.at(workspace, job.config.get("judge_model"))
    said = f"The form holds the settings of {job.label}. It will learn from the labels there are when you press Start."
    judging = page.keep_choice(scorers, judge.id, None) if judge else None
    if parent is None or (reward is None and job.reward_checkpoint_id is not None) or (judge and judging is None):
        said += " A checkpoint that it used is gone: choose another one."
    pickers = [
        gr.update(value=job.method),
        gr.update(value=_weighed(workspace, job)),
        gr.Dropdown(policies, value=parent or workspace.base_checkpoint_id),
        gr.Dropdown(scorers, value=reward),
        judge_picker(scorers, judging),
    ]
    knobs = form.fields(METHODS[job.method])
    values = [
        "" if knob.type is str and job.config.get(knob.name) is None else job.config.get(knob.name, knob.default)
        for knob in knobs
    ]
    return notice(said, "info"), pickers, values


NO_JUDGE = 0


def judge_picker(scorers: list[tuple[str, int]], chosen: int | None, **more: Any) -> gr.Dropdown:
    """The choice of a reward model that only judges: one of `scorers`, or none."""
    choices = [("none", NO_JUDGE), *scorers]
    return gr.Dropdown(choices, value=page.keep_choice(choices, chosen, NO_JUDGE), **more)


def _weighed(workspace: Workspace, job: Job) -> bool:
    """Whether the run's rankings were weighted by reliability."""
    filters = scalar(workspace.store.db, "SELECT filters FROM snapshots WHERE id = ?", [job.snapshot_id])
    return bool(json.loads(filters or "{}").get("weight_by_reliability"))
