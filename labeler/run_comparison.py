"""Several runs beside one another: what they were told differently, what they measured, and both as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.formats import guard
from data.records import InputError
from labeler import jobs
from labeler.jobs import Job
from labeler.readings import values
from labeler.workspace import Workspace
from training import run_folder

MOST = 6
"""Runs in one comparison: as many lines as can be told apart."""

PATHS = ("output", "data", "base_model")
"""Settings that name places; what a run learned from is told by its snapshot."""


def chosen(workspace: Workspace, run_ids: Sequence[str]) -> list[Job]:
    """The runs in the given order, each once. Raises InputError where one is missing or there are too many."""
    unique = list(dict.fromkeys(run_ids))
    if not 1 <= len(unique) <= MOST:
        raise InputError(f"choose one to {MOST} runs")
    return [jobs.get(workspace.store, run_id) for run_id in unique]


def metrics_of(workspace: Workspace, job: Job) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, as far as they can be read."""
    try:
        return run_folder.read_metrics(workspace.runs_folder / job.id)
    except (OSError, ValueError):
        return []


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Settings that are not the same everywhere: name -> the value in each config as JSON, None where it has none."""
    names = dict.fromkeys(name for config in configs for name in config if name not in PATHS)
    table = {
        name: [
            json.dumps(config[name], ensure_ascii=False, sort_keys=True) if name in config else None
            for config in configs
        ]
        for name in names
    }
    return {name: row for name, row in table.items() if len(set(row)) > 1}


def final_metrics(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[tuple[float, float] | None]]:
    """Metric -> for each run its last (step, value), None where the run has never measured it."""
    names = {name for rows in histories for row in rows for name in row} - {"step", "time", "epoch"}
    table = {
        name: [found[-1] if (found := values(rows, name)) else None for rows in histories] for name in sorted(names)
    }
    return {name: row for name, row in table.items() if any(row)}


def as_csv(workspace: Workspace, compared: Sequence[Job]) -> str:
    """A line for each run and step, a column for each metric."""
    histories = [(job, metrics_of(workspace, job)) for job in compared]
    names = sorted({name for _, rows in histories for row in rows for name in row} - {"step", "time"})
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run", "method", "step", "time", *(guard(name) for name in names)])
    for job, rows in histories:
        for row in rows:
            writer.writerow([job.id, job.method, row.get("step"), row.get("time"), *(row.get(name) for name in names)])
    return out.getvalue()


def as_png(workspace: Workspace, compared: Sequence[Job], metric: str) -> bytes:
    """The curves of one metric as a picture. Raises InputError where no run has measured it."""
    from matplotlib.figure import Figure  # slow to import, and needed for this alone

    lines = [(job.label, found) for job in compared if (found := values(metrics_of(workspace, job), metric))]
    if not lines:
        raise InputError(f"none of these runs has measured {metric}")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for label, found in lines:
        axes.plot([step for step, _ in found], [value for _, value in found], label=_plain(label))
    axes.set(xlabel="step", ylabel=_plain(metric))
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _plain(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def file_name(compared: Sequence[Job], suffix: str) -> str:
    """ "runs-0001-0003.csv"."""
    return f"runs-{'-'.join(Path(job.id).name[:4] for job in compared)}{suffix}"
