"""The register of checkpoints: complete, with lineage, and only what can still be loaded is offered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.records import InputError
from labeler import checkpoints
from labeler.workspace import Workspace, open_workspace
from tests.labeler.studio import small_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path / "w", rankings=0)


def save(workspace: Workspace, run_id: str, step: int, kind: str = "policy") -> Path:
    path = workspace.runs_folder / run_id / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"kind": kind, "step": step, "method": "dpo"}))
    return path


def test_new_checkpoints_are_noted_once(workspace: Workspace) -> None:
    save(workspace, "0003-dpo", 60)
    base = workspace.base_checkpoint_id
    first = checkpoints.register_run(workspace, "0003-dpo", base)
    assert len(first) == 1
    assert checkpoints.register_run(workspace, "0003-dpo", base) == []
    save(workspace, "0003-dpo", 120)
    assert len(checkpoints.register_run(workspace, "0003-dpo", base)) == 1
    made = checkpoints.of_run(workspace.store, "0003-dpo")
    assert [c.name for c in made] == ["dpo/0003 step 60", "dpo/0003 step 120"]
    assert made[0].manifest["step"] == 60


def test_lineage(workspace: Workspace) -> None:
    save(workspace, "0001-sft", 5)
    parent = checkpoints.register_run(workspace, "0001-sft", workspace.base_checkpoint_id)[0]
    save(workspace, "0002-dpo", 5)
    child = checkpoints.register_run(workspace, "0002-dpo", parent)[0]
    assert checkpoints.get(workspace.store, child).parent_id == parent
    assert checkpoints.get(workspace.store, parent).parent_id == workspace.base_checkpoint_id


def test_a_half_written_or_foreign_folder_is_left_out(workspace: Workspace) -> None:
    folder = workspace.runs_folder / "0001-dpo" / "checkpoints"
    (folder / ".partial-step-000001").mkdir(parents=True)
    (folder / "step-000002").mkdir()
    (folder / "step-000003").mkdir()
    (folder / "step-000003" / "manifest.json").write_text("{broken")
    save(workspace, "0001-dpo", 4)
    checkpoints.register_run(workspace, "0001-dpo", workspace.base_checkpoint_id)
    assert [c.step for c in checkpoints.of_run(workspace.store, "0001-dpo")] == [4]


def test_what_is_offered(workspace: Workspace) -> None:
    base = workspace.base_checkpoint_id
    pruned = save(workspace, "0001-dpo", 1)
    save(workspace, "0001-dpo", 2)
    save(workspace, "0002-reward", 1, kind="reward")
    checkpoints.register_run(workspace, "0001-dpo", base)
    checkpoints.register_run(workspace, "0002-reward", base)
    shutil.rmtree(pruned)
    assert [name for name, _ in checkpoints.choices(workspace)] == ["base no-model", "dpo/0001 step 2"]
    assert [name for name, _ in checkpoints.choices(workspace, ["reward"])] == ["reward/0002 step 1"]
    gone = checkpoints.of_run(workspace.store, "0001-dpo")[0]
    with pytest.raises(InputError, match="the files of dpo/0001 step 1 are gone"):
        checkpoints.folder(workspace, gone)


def test_checkpoints_of_another_base_are_not_offered(workspace: Workspace) -> None:
    save(workspace, "0001-dpo", 1)
    checkpoints.register_run(workspace, "0001-dpo", workspace.base_checkpoint_id)
    other = open_workspace(workspace.folder, "other-model", seed_file=None)
    assert [name for name, _ in checkpoints.choices(other)] == ["base other-model"]
    save(other, "0001-dpo", 2)  # the run goes on although the app was opened with another model
    made = checkpoints.register_run(other, "0001-dpo", workspace.base_checkpoint_id)
    assert checkpoints.get(other.store, made[0]).base_model == "no-model"


def test_the_workspace_can_be_moved(workspace: Workspace, tmp_path: Path) -> None:
    save(workspace, "0001-dpo", 1)
    checkpoint_id = checkpoints.register_run(workspace, "0001-dpo", workspace.base_checkpoint_id)[0]
    workspace.store.close()
    shutil.move(workspace.folder, tmp_path / "moved")
    moved = open_workspace(tmp_path / "moved", "no-model", seed_file=None)
    path = checkpoints.folder(moved, checkpoints.get(moved.store, checkpoint_id))
    assert path == (tmp_path / "moved/runs/0001-dpo/checkpoints/step-000001").resolve()
