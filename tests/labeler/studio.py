"""What the tests of jobs, worker, chat and compare share: a small workspace with rankings, and bounded patience."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from labeler import checkpoints
from labeler.chat import Chat, Sampling
from labeler.rankings import record_comparison
from labeler.store import rows
from labeler.users import local_owner
from labeler.workspace import Workspace, open_workspace
from training.config import DPOConfig

T = TypeVar("T")

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
QUESTION = [{"role": "user", "content": "What is a good name for a cat?"}]
SHORT = Sampling(max_new_tokens=8, temperature=1.0, seed=5)


def small_workspace(folder: Path, base_model: str = "no-model", rankings: int = 4) -> Workspace:
    """A workspace without seed prompts in which somebody ranked two answers to each of a few prompts."""
    workspace = open_workspace(folder, base_model, seed_file=None)
    rank(workspace, rankings)
    return workspace


def rank(workspace: Workspace, count: int) -> None:
    """Add that many rankings of two answers, the first one preferred."""
    for number in range(count):
        record_comparison(
            workspace.store,
            local_owner(workspace.store),
            [{"role": "user", "content": f"Name the number {number}."}],
            [(f"It is {number}.", workspace.base_checkpoint_id, {}), ("Who knows?", workspace.base_checkpoint_id, {})],
            [1, 2],
            event_id=str(uuid.uuid4()),
        )


def chat_with_checkpoints(folder: Path, model: Path) -> Chat:
    """A workspace on that base, with two policy checkpoints that differ and something marked as a reward model."""
    from training.models import load_base

    workspace = small_workspace(folder, str(model), rankings=0)
    base = load_base(str(model))
    for number, method in ((1, "dpo"), (2, "dpo"), (3, "reward")):
        run_id = f"{number:04d}-{method}"
        path = workspace.runs_folder / run_id / "checkpoints" / "step-000001"
        path.mkdir(parents=True)
        base.new_adapter(run_id, DPOConfig(seed=number))
        assert base.peft is not None
        for name, parameter in base.peft.named_parameters():
            if run_id in name and "lora_B" in name:  # new adapters do nothing until they are trained
                parameter.data.normal_(std=0.5)
        base.save_adapter(run_id, path)
        kind = "reward" if method == "reward" else "policy"
        (path / "manifest.json").write_text(json.dumps({"kind": kind, "step": 1, "base_model": {"name": str(model)}}))
        checkpoints.register_run(workspace, run_id, workspace.base_checkpoint_id)
    return Chat(workspace)


def untrained_reward_model(workspace: Workspace) -> None:
    """Register a reward model, reward/0001 step 1, on the workspace's base."""
    from training.config import RewardConfig
    from training.models import load_base
    from training.reward_model import new_head

    base = load_base(workspace.base_model)
    base.new_adapter("reward", RewardConfig(lora_rank=2))
    path = workspace.runs_folder / "0001-reward" / "checkpoints" / "step-000001"
    path.mkdir(parents=True)
    base.save_adapter("reward", path, new_head(base.hidden_size, 0))
    manifest = {"kind": "reward", "step": 1, "base_model": {"name": workspace.base_model}, "config": {}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    checkpoints.register_run(workspace, "0001-reward", workspace.base_checkpoint_id)


def checkpoint_ids(workspace: Workspace) -> dict[str, int]:
    """Checkpoint ids by name."""
    found = rows(workspace.store.db, "SELECT id, name FROM checkpoints")
    return {row["name"]: row["id"] for row in found}


def wait_for(what: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true value of `what`; fails when there is none within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain; the last value was {value!r}")
        time.sleep(0.05)
