"""Estimates: what a run computes is counted as the trainer computes it; what cannot fit is refused with a remedy."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.records import InputError
from labeler import before, estimates, jobs, new_jobs, work
from labeler.store import rows
from labeler.users import local_owner
from labeler.work import Lengths
from labeler.worker import Worker
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace, wait_for
from training import run_folder
from training.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from training.packs import Group, packs
from training.prices import features, forwards, prices

SPEED: dict[str, Any] = {
    "start": 10.0, "compile": 0.0, "parameters": 1e6, "layers": 2, "device": "cpu", "context": 2048,
    "tokens_per_character": 0.25, "template": 10.0, "shared": 5.0, "step": 0.0, "save": 0.0, "trainable": 1e6,
    "read": [0.0, 1e-3, 0.0, 0.0], "learn": [0.0, 4e-3, 0.0, 0.0], "decode": [0.1, 0.01], "memory": 1e9,
    "memory_per_token": 1e6, "hidden": 32, "began": 1.0, "ended": 2.0, "busy": 0.0,
}  # fmt: skip
LENGTHS = Lengths(0.25, 10, 5, answers=[8])


def knows(workspace: Workspace, **changes: Any) -> None:
    """As if the machine's speed had been measured."""
    config = estimates.configured(workspace, "dpo", {})
    file = estimates._file(workspace, config, "eager")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(SPEED | changes))


def test_prices_are_found_again() -> None:
    held = [features([(40, (60, 60))] * n, targets) for n, targets in ((1, True), (6, True), (3, False))]
    held.append(features([(200, (380, 380))]))
    true = np.array([0.05, 1e-3, 2e-6, 3e-4])
    assert prices(held, list(held @ true)) == pytest.approx(list(true), rel=1e-6)
    noisy = prices(held, [seconds * factor for seconds, factor in zip(held @ true, (1.2, 0.9, 1.1, 0.8), strict=True)])
    assert min(noisy) >= 0


def test_forwards_hold_what_the_trainers_hold() -> None:
    random = np.random.default_rng(0)
    same = list(range(1, 8))  # what all prompts begin with
    groups = [
        Group(same + [100 + number] * int(random.integers(1, 50)), [[3] * int(random.integers(1, 80))] * 2)
        for number in range(40)
    ]
    found = [each.input_ids.shape[1] for each in packs(groups, 300, torch.device("cpu"))]
    sizes = [(len(group.prompt), [len(response) for response in group.responses]) for group in groups]
    assert [features(row, shared=7)[1] for row in forwards(sizes, 300, shared=7)] == found


def test_the_work_of_a_run_is_counted(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, rankings=10)  # "Name the number 3." (18), "It is 3." (8), "Who knows?" (10)
    found = before.material(workspace, "preferences")
    group = (10 + 5, [3, 4])
    assert {str(LENGTHS.sizes(record)) for record in found.records} == {str(group)}
    config = RewardConfig(batch_size=3, epochs=2, validation_fraction=0.1, save_every=4, eval_every=3)
    counted = work.count(config, found, LENGTHS)
    assert counted is not None
    assert (counted.steps, counted.saves) == (6, 2)  # nine to train on, three a step, twice; saved at 4 and 6
    assert counted.learn[1] == pytest.approx(6 * (3 * 22 - 2 * 5))  # what the prompts begin with is read once
    assert counted.learn[3] == 0  # no token's probability is asked for
    assert counted.read[1] == pytest.approx(4 * 22)  # evaluations before the first step and at 3, 4 and 6
    quiet = DPOConfig(batch_size=3, max_steps=6, kl_prompts=0, eval_every=6, save_every=6, sample_prompts=0)
    dpo = work.count(quiet, found, LENGTHS)
    assert dpo is not None
    assert dpo.read[1] == pytest.approx(2 * 22 + 3 * 56 + 22)  # evaluations, and the reference of everything once
    says = work.count(replace(quiet, sample_prompts=2, sample_every=3), found, LENGTHS)
    assert says is not None  # two prompts answered by eight tokens each, before the first step, at 3 and at 6
    assert (says.decode_steps, says.decode_rows) == (3 * 8, 3 * 2 * 8)
    assert says.read[1] == pytest.approx(dpo.read[1] + 3 * (2 * 15 - 5))
    assert work.count(DPOConfig(max_length=16), found, LENGTHS) is None  # nothing fits
    asked = before.material(workspace, "prompts")
    ppo = work.count(
        PPOConfig(batch_size=5, max_steps=2, minibatches=1, ppo_epochs=3, sample_prompts=0), asked, LENGTHS
    )
    assert ppo is not None
    assert (ppo.updates, ppo.decode_steps, ppo.decode_rows) == (6, 2 * 8, 2 * 5 * 8)
    assert ppo.learn[1] == pytest.approx(2 * 3 * (5 * 23 - 4 * 5))
    demonstrated = before.material(workspace, "demonstrations")
    sft = work.count(SFTConfig(batch_size=9, validation_fraction=0), demonstrated, LENGTHS)
    assert sft is not None
    assert (sft.steps, sft.learn[3]) == (2, pytest.approx(2 * (9 + 1) / 2 * 3))


def test_the_estimate_follows_the_work_and_earlier_runs(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, rankings=10)
    short = {"max_steps": 10, "batch_size": 3, "validation_fraction": 0.0}
    assert estimates.estimate(workspace, "reward", short) is None  # nothing was measured
    knows(workspace)
    ten = estimates.estimate(workspace, "reward", short)
    twenty = estimates.estimate(workspace, "reward", short | {"max_steps": 20})
    assert ten is not None
    assert twenty is not None
    # three rankings of 22 tokens a step, one at an epoch's end, and all ten scored at each save; what the prompts of a
    # forward begin with is read once
    assert ten.seconds == pytest.approx(10 + 0.01 + 10 * (3 * 56 + 22) / 4 * 4e-3 + 10 * 175e-3)
    assert twenty.seconds - 10.01 == pytest.approx(20 * (3 * 56 + 22) / 4 * 4e-3 + 10 * 175e-3)
    # an earlier run whose steps took half a second each, but for a pause, where less was expected
    job_id = new_jobs.create(workspace, local_owner(workspace.store), "reward", short)
    steps = [{"step": step, "time": 1000 + 0.5 * step + 900 * (step > 5), "loss": 0.7} for step in range(1, 11)]
    folder = workspace.runs_folder / job_id
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    with workspace.store.write() as db:
        db.execute("UPDATE jobs SET state = 'finished', started_at = 900, finished_at = 2000 WHERE id = ?", [job_id])
    again = estimates.estimate(workspace, "reward", short)
    assert again is not None
    assert again.runs == 1
    assert again.seconds - 10.01 == pytest.approx((8 * 0.5 + 2.5) / 9 * 10)  # the pause counts as five steps


def test_what_cannot_fit_is_refused_with_a_remedy_that_fits(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, rankings=60)
    owner = local_owner(workspace.store)
    free = estimates.room(workspace, None)
    knows(workspace, memory=0.2 * free, memory_per_token=1.6 * free / 1500)
    whole = {"batch_size": 54, "validation_fraction": 0.0}  # 54 rankings of 17 tokens and what they begin with
    with pytest.raises(
        InputError, match=r"needs about .* GB of memory and .* free; lower tokens_per_forward to (\d+)"
    ) as told:
        new_jobs.create(workspace, owner, "dpo", whole)
    assert list(workspace.runs_folder.iterdir()) == []
    tokens = int(str(told.value).rpartition(" ")[2])
    new_jobs.create(workspace, owner, "dpo", whole | {"tokens_per_forward": tokens})
    knows(workspace, memory=0.2 * free, memory_per_token=free / 20, layers=1000)
    with pytest.raises(InputError, match="turn on gradient_checkpointing"):
        new_jobs.create(workspace, owner, "dpo", whole)
    knows(workspace, memory=2 * free)
    with pytest.raises(InputError, match="smaller base_model"):
        new_jobs.create(workspace, owner, "dpo", whole)


def test_a_model_larger_than_the_memory_is_refused_unmeasured(tmp_path: Path) -> None:
    model = tmp_path / "huge"
    model.mkdir()
    with open(model / "model.safetensors", "wb") as file:
        file.truncate(1 << 42)  # of nothing: it takes no room
    workspace = small_workspace(tmp_path / "w", str(model))
    assert "does not fit" in estimates.measure(workspace, "dpo", {})
    with pytest.raises(InputError, match=r"huge alone takes .* choose a smaller base_model"):
        new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})


def test_a_measurement_with_a_run_beside_it_is_forgotten(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path)
    knows(workspace, began=100.0, ended=130.0)
    config = estimates.configured(workspace, "dpo", {})
    assert estimates.speed_of(workspace, config, "eager") is not None
    job_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    with workspace.store.write() as db:
        db.execute("UPDATE jobs SET state = 'finished', started_at = 120, finished_at = 200 WHERE id = ?", [job_id])
    assert estimates.speed_of(workspace, config, "eager") is None
    assert not estimates._file(workspace, config, "eager").exists()


def test_measured_once_then_estimated_then_run(tmp_path: Path, tiny_model: Path) -> None:
    """The real measurement and a real run, on a tiny model."""
    workspace = small_workspace(tmp_path, str(tiny_model), rankings=6)
    settings = {"max_steps": 5, "batch_size": 2}
    seen = estimates.mark(workspace)
    assert estimates.measure(workspace, "dpo", settings).startswith("measuring")
    assert estimates.mark(workspace) != seen
    wait_for(lambda: not estimates.measure(workspace, "dpo", settings).startswith("measuring"), 400)
    assert estimates.measure(workspace, "dpo", settings) == "", "it is known now"
    (kept,) = (workspace.folder / "speed").glob("*.json")
    speed = json.loads(kept.read_text())
    assert speed["start"] > 0
    assert min(*speed["read"], *speed["learn"], *speed["decode"]) >= 0
    assert sum(speed["learn"]) > 0
    assert 0.1 < speed["tokens_per_character"] < 0.6
    assert speed["template"] > 5  # the system message and the turns' marks
    first = estimates.estimate(workspace, "dpo", settings)
    assert first is not None
    assert first.runs == 0
    assert 1e8 < first.memory < first.room
    job_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", settings)
    worker = Worker(workspace)
    end = time.monotonic() + 400
    while jobs.get(workspace.store, job_id).finished_at is None:
        assert time.monotonic() < end
        worker.tick()
        time.sleep(0.05)
    assert jobs.get(workspace.store, job_id).state == "finished"
    status = run_folder.read_status(workspace.runs_folder / job_id)
    assert status is not None
    counted = work.count(
        estimates.configured(workspace, "dpo", settings), before.material(workspace, "preferences"), LENGTHS
    )
    assert counted is not None
    assert status["total_steps"] == counted.steps
    saved = rows(workspace.store.db, "SELECT step FROM checkpoints WHERE run_id = ?", [job_id])
    assert len(saved) == counted.saves
