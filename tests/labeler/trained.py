"""A workspace on a tiny model with checkpoints that load: a reward model that held comparisons out, and a policy."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from labeler import checkpoints, new_jobs
from labeler.rankings import record_comparison
from labeler.users import local_owner
from labeler.workspace import Workspace, open_workspace

REWARD, POLICY = "reward/0001 step 1", "dpo/0002 step 1"


def trained_workspace(folder: Path, model: Path) -> Workspace:
    """Sixteen prompts with three ranked answers each, a finished reward run and a finished DPO run."""
    workspace = open_workspace(folder, str(model), seed_file=None)
    owner, base = local_owner(workspace.store), workspace.base_checkpoint_id
    for number in range(16):
        record_comparison(
            workspace.store,
            owner,
            [{"role": "user", "content": f"Name the number {number}."}],
            [(f"{word} {number}", base, {}) for word in ("It is", "Maybe the number is", "No")],
            [1, 2, 3],
            event_id=str(uuid.uuid4()),
        )
    for method in ("reward", "dpo"):
        run_id = new_jobs.create(workspace, owner, method, {"validation_fraction": 0.5, "lora_rank": 2})
        _save(workspace, run_id, method)
        with workspace.store.write() as db:
            db.execute("UPDATE jobs SET state = 'finished' WHERE id = ?", [run_id])
        checkpoints.register_run(workspace, run_id, base)
    return workspace


def _save(workspace: Workspace, run_id: str, method: str) -> None:
    """What the run would leave: a random adapter in a checkpoint's folder."""
    from training.config import DPOConfig
    from training.models import load_base
    from training.reward_model import new_head

    base = load_base(workspace.base_model)
    base.new_adapter(run_id, DPOConfig(lora_rank=2))
    assert base.peft is not None
    for name, parameter in base.peft.named_parameters():
        if "lora_B" in name:  # new adapters do nothing until they are trained
            parameter.data.normal_(std=0.5)
    path = workspace.runs_folder / run_id / "checkpoints" / "step-000001"
    path.mkdir(parents=True)
    reward = method == "reward"
    base.save_adapter(run_id, path, new_head(base.hidden_size, 0) if reward else None)
    manifest = {
        "kind": "reward" if reward else "policy",
        "method": method,
        "step": 1,
        "base_model": {"name": workspace.base_model, "sha256": base.sha256()},
        "config": json.loads((workspace.runs_folder / run_id / "config.json").read_text()),
        "metrics": {"eval/kl": 1.5},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
