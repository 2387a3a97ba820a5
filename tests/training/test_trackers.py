"""Metrics sent to a tracker: what is installed gets them, and what is not is said before anything is trained."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from training.run_folder import read_metrics, read_status

MISSING = [name for name in ("tensorboard", "wandb", "trackio") if find_spec(name) is None]


@pytest.mark.skipif("tensorboard" in MISSING, reason="tensorboard is not installed")
def test_tensorboard_gets_every_step(command, arguments, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command(*arguments("dpo", "run", "--max-steps", 3, "--report-to", "tensorboard", "--sample-prompts", 0))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run")}
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval/loss")):
        sent = {event.step: event.value for event in events.Scalars(tag)}
        assert sent == pytest.approx({step: row[name] for step, row in rows.items() if name in row}, rel=1e-5)


@pytest.mark.skipif(not MISSING, reason="all of them are installed")
def test_a_missing_package_is_said_before_the_run(command, arguments, tmp_path):
    done = command(*arguments("dpo", "run", "--max-steps", 1, "--report-to", MISSING[0]), check=False)
    assert done.returncode == 2
    assert f"pip install {MISSING[0]}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert read_status(tmp_path / "run") is None
