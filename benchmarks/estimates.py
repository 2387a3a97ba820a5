"""Whether runs take what they were estimated to take: python -m benchmarks.estimates [--model M] [--runs sft dpo ...]

Five different runs on the seed prompts, whose completions somebody ranks by a rule: SFT, a reward model, DPO on short
and on long answers, PPO with that reward model. The machine's speed is measured first, as the Train tab does it; then
each run is estimated, queued, and carried out by the worker. Prints one JSON line; exits 1 where a run took less than
1/1.5 or more than 1.5 times its estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from labeler import estimates, jobs, new_jobs, tasks
from labeler.checkpoints import choices
from labeler.events import Event
from labeler.rankings import record_event
from labeler.users import local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from training.config import DEFAULT_MODEL

FACTOR = 1.5
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"max_steps": 5, "eval_every": 5, "save_every": 5}),
    "reward": ("reward", {"max_steps": 5, "batch_size": 4, "validation_fraction": 0.05}),
    "dpo-short": ("dpo", {"max_steps": 5, "batch_size": 4, "max_length": 192, "validation_fraction": 0.05}),
    "dpo-long": ("dpo", {"max_steps": 4, "batch_size": 4, "eval_every": 4, "save_every": 4, "kl_prompts": 0}),
    "ppo": ("ppo", {"max_steps": 3, "batch_size": 8, "max_new_tokens": 32}),
}
RANKED = 60


def rank(workspace: Workspace) -> None:
    """The owner ranks the first tasks, the shortest answer best."""
    owner = local_owner(workspace.store)
    for number in range(RANKED):
        task = tasks.next_assignment(workspace.store, owner)
        assert task is not None
        lengths = [len(completion.text) for completion in task.completions]
        ranks = [sorted(lengths).index(length) + 1 for length in lengths]
        record_event(workspace.store, owner, Event(f"benchmark-{number}", task.id, "submit", ranks))


def measure(workspace: Workspace, method: str, settings: dict[str, Any]) -> float:
    """Measure the machine's speed until nothing more is wanted; returns the seconds it took."""
    began = time.monotonic()
    while said := estimates.measure(workspace, method, settings):
        if not said.startswith("measuring"):
            raise SystemExit(f"error: {said}")
        time.sleep(0.2)
    return time.monotonic() - began


def carry_out(workspace: Workspace, worker: Worker, job_id: str) -> tuple[float, float]:
    """(seconds, peak bytes) of a queued run, from its start to its end."""
    peak = 0.0
    while (job := jobs.get(workspace.store, job_id)).finished_at is None:
        worker.tick()
        if job.pid:
            try:
                lines = Path(f"/proc/{job.pid}/status").read_text().splitlines()
                peak = max([peak, *(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
            except OSError:
                pass
        time.sleep(0.2)
    if job.state != "finished":
        raise SystemExit(f"error: {job.label} is {job.state}: {job.error}")
    assert job.started_at is not None
    return job.finished_at - job.started_at, peak


def main(arguments: list[str] | None = None) -> int:
    """Measure, print one JSON line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    busy = 0.0
    with tempfile.TemporaryDirectory() as name:
        workspace = open_workspace(Path(name) / "workspace", options.model)
        rank(workspace)
        worker, owner = Worker(workspace), local_owner(workspace.store)
        took = measure(workspace, "sft", {})
        for title in options.runs:
            method, settings = RUNS[title]
            expected = estimates.estimate(workspace, method, settings)
            assert expected is not None
            busy = expected.busy
            scorers = choices(workspace, ["reward"])
            reward = scorers[0][1] if method == "ppo" and scorers else None
            job_id = new_jobs.create(workspace, owner, method, settings, reward_id=reward)
            seconds, peak = carry_out(workspace, worker, job_id)
            found[title] = {
                "estimate_s": round(expected.seconds, 1),
                "took_s": round(seconds, 1),
                "ratio": round(seconds / expected.seconds, 2),
                "earlier_runs": expected.runs,
                "estimate_mb": round(expected.memory / 1e6),
                "peak_mb": round(peak / 1e6),
            }
            print(title, found[title], file=sys.stderr, flush=True)
    within = all(1 / FACTOR <= run["ratio"] <= FACTOR for run in found.values())
    result = {"within_factor": within, "measured_in_s": round(took, 1), "busy_cores": round(busy, 2), **found}
    print(json.dumps(result | {"load": psutil.getloadavg()}))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
