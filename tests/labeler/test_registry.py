"""Checkpoints are named, archived and deleted by rules, and history keeps their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.records import InputError
from labeler import checkpoints, jobs, lineage, new_jobs, registry
from labeler.rankings import record_comparison
from labeler.store import one, scalar
from labeler.ui import queue, run_view
from labeler.ui.checkpoints_graph import graph
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import QUESTION, small_workspace
from tests.labeler.test_checkpoints import save

HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{x}}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path / "w", rankings=4)


def checkpoint(
    workspace: Workspace, run_id: str, kind: str = "policy", parent: int | None = None, step: int = 1
) -> int:
    save(workspace, run_id, step, kind)
    parent = parent or workspace.base_checkpoint_id
    return checkpoints.register_run(workspace, run_id, parent)[0]


def job(workspace: Workspace, run_id: str, state: str, parent: int, reward: int | None = None, **config: Any) -> None:
    """A run's row as it stands in the queue."""
    import json

    with workspace.store.write() as db:
        db.execute(
            """INSERT INTO jobs (id, method, config, state, parent_checkpoint_id, reward_checkpoint_id, queued_at,
            created_at) VALUES (?, 'ppo', ?, ?, ?, ?, 0, 0)""",
            [run_id, json.dumps(config), state, parent, reward],
        )


def names(workspace: Workspace) -> list[str]:
    return [name for name, _ in checkpoints.choices(workspace)]


def test_name_note_and_tags(workspace: Workspace) -> None:
    made = checkpoint(workspace, "0001-dpo")
    registry.edit(workspace.store, made, "  my   first ", " good ", "Chat, chat,  for us ,")
    found = checkpoints.get(workspace.store, made)
    assert (found.name, found.note, found.tags) == ("my first", "good", ("chat", "for us"))
    registry.edit(workspace.store, made, "my first", "", "")  # its own name is not taken
    assert names(workspace) == ["base no-model", "my first"]
    # the next look at the run's folder does not find it again under its first name
    assert checkpoints.register_run(workspace, "0001-dpo", workspace.base_checkpoint_id) == []


@pytest.mark.parametrize(
    ("name", "note", "tags", "why"),
    [
        ("", "", "", "1 to 80"),
        ("x" * 81, "", "", "1 to 80"),
        ("a\x00b", "", "", "1 to 80"),
        ("base no-model", "", "", "names checkpoints itself"),
        ("dpo/0009 step 60", "", "", "names checkpoints itself"),
        ("taken", "", "", "called taken already"),
        ("fine", "x" * 4001, "", "shorten it"),
        ("fine", "", "t" * 41, "at most 12 tags"),
        ("fine", "", ",".join(map(str, range(13))), "at most 12 tags"),
    ],
)
def test_what_is_refused(workspace: Workspace, name: str, note: str, tags: str, why: str) -> None:
    made = checkpoint(workspace, "0001-dpo")
    registry.edit(workspace.store, checkpoint(workspace, "0002-dpo"), "taken", "", "")
    with pytest.raises(InputError, match=why):
        registry.edit(workspace.store, made, name, note, tags)
    assert checkpoints.get(workspace.store, made).name == "dpo/0001 step 1"


def test_archived_ones_are_not_offered(workspace: Workspace) -> None:
    made = checkpoint(workspace, "0001-dpo")
    registry.archive(workspace, made, True)
    assert names(workspace) == ["base no-model"]
    assert [c.id for c in checkpoints.list_checkpoints(workspace, archived=True)][1:] == [made]
    assert checkpoints.usable(workspace, made, "policy")  # what names it still works
    registry.archive(workspace, made, False)
    assert len(names(workspace)) == 2
    with pytest.raises(InputError, match="everything starts from it"):
        registry.archive(workspace, workspace.base_checkpoint_id, True)


def test_what_rests_on_a_checkpoint(workspace: Workspace) -> None:
    owner = local_owner(workspace.store)
    made = checkpoint(workspace, "0001-sft")
    job(workspace, "0002-ppo", "finished", made)
    checkpoint(workspace, "0002-ppo", parent=made)
    answers = [("yes", made, {}), ("no", workspace.base_checkpoint_id, {})]
    record_comparison(workspace.store, owner, QUESTION, answers, [1, 2], event_id="1" * 36)
    found = registry.dependents(workspace.store.db, made)
    assert found == registry.Dependents(("ppo/0002 step 1",), ("ppo/0002",), 1, 1)
    assert str(found) == "1 later checkpoint (ppo/0002 step 1), 1 run (ppo/0002), 1 completion, 1 vote on them"
    # a reward model's dependents are what learned from its scores
    reward = checkpoint(workspace, "0003-reward", "reward")
    job(workspace, "0004-ppo", "finished", workspace.base_checkpoint_id, reward)
    checkpoint(workspace, "0004-ppo")
    assert registry.dependents(workspace.store.db, reward).trained == ("ppo/0004 step 1",)


def test_a_judge_is_another_reward_model_and_is_kept_while_it_is_needed(workspace: Workspace) -> None:
    reward, judge = (checkpoint(workspace, run, "reward") for run in ("0001-reward", "0002-reward"))

    def ppo(judge_id: int, **settings: int) -> str:
        owner = local_owner(workspace.store)
        return new_jobs.create(workspace, owner, "ppo", settings, reward_id=reward, judge_id=judge_id)

    with pytest.raises(InputError, match="is the reward model itself"):
        ppo(reward, sample_prompts=10)
    with pytest.raises(InputError, match="fewer than 10 say little"):
        ppo(judge, sample_prompts=4)
    with pytest.raises(InputError, match="a reward model is needed here"):
        ppo(checkpoint(workspace, "0003-dpo"), sample_prompts=10)
    run = jobs.get(workspace.store, ppo(judge, sample_prompts=10))
    assert run.config["judge_model"] == str(workspace.runs_folder / "0002-reward" / "checkpoints" / "step-000001")
    assert "judged by reward/0002 step 1" in run_view.head(workspace, run, {})
    assert queue.filled(workspace, run)[1][-1].value == judge
    with pytest.raises(InputError, match="reward/0002 step 1 is in use by ppo/0004"):
        registry.delete(workspace, judge)
    jobs.request_stop(workspace.store, run.id)
    registry.delete(workspace, judge)
    assert "A checkpoint that it used is gone" in queue.filled(workspace, run)[0]


def test_deleting_leaves_a_tombstone(workspace: Workspace) -> None:
    made = checkpoint(workspace, "0001-dpo")
    child = checkpoint(workspace, "0002-dpo", parent=made)
    folder = workspace.runs_folder / "0001-dpo"
    (folder / "state").mkdir()
    (folder / "state" / "step-000001").write_bytes(b"optimizer")
    registry.delete(workspace, made)
    assert not list((folder / "checkpoints").iterdir())
    assert not list((folder / "state").iterdir())
    assert names(workspace) == ["base no-model", "dpo/0002 step 1"]
    found = checkpoints.get(workspace.store, child)
    parent = lineage.origin(workspace.store, found).parent
    assert parent is not None
    assert parent.name == "dpo/0001 step 1"
    assert parent.deleted_at
    with pytest.raises(InputError, match="was deleted"):
        checkpoints.folder(workspace, parent)
    # the worker's look at the run's folder does not bring it back
    assert checkpoints.register_run(workspace, "0001-dpo", workspace.base_checkpoint_id) == []
    registry.delete(workspace, made)  # a double click
    assert 'class="checkpoint  deleted"' in graph(workspace, None)  # its child still hangs on it


def test_a_base_is_not_deleted(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="base model cannot be deleted"):
        registry.delete(workspace, workspace.base_checkpoint_id)


@pytest.mark.parametrize("how", ["parent", "reward", "own run", "one of several", "sampled"])
@pytest.mark.parametrize("state", ["queued", "running", "stopped"])
def test_what_a_run_works_with_is_not_deleted(workspace: Workspace, how: str, state: str) -> None:
    made = checkpoint(workspace, "0001-dpo", "reward" if how == "reward" else "policy")
    base = workspace.base_checkpoint_id
    if how == "own run":
        job(workspace, "0001-dpo", state, base)
    elif how == "one of several":
        job(workspace, "0009-sample", state, base, checkpoints=[{"id": base, "path": None}, {"id": made, "path": "x"}])
    elif how == "sampled":
        job(workspace, "0009-select", state, base, checkpoint_id=made)
    else:
        job(workspace, "0009-ppo", state, made if how == "parent" else base, made if how == "reward" else None)
    if state == "stopped":
        registry.delete(workspace, made)
        return
    with pytest.raises(InputError, match="is in use by"):
        registry.delete(workspace, made)
    path = checkpoints.get(workspace.store, made).path
    assert (workspace.folder / str(path) / "manifest.json").is_file()
    assert scalar(workspace.store.db, "SELECT count(*) FROM checkpoints WHERE deleted_at IS NOT NULL") == 0


def test_the_graph_follows_parents_and_reward_models(workspace: Workspace) -> None:
    base = workspace.base_checkpoint_id
    sft = checkpoint(workspace, "0001-sft")
    reward = checkpoint(workspace, "0002-reward", "reward")
    job(workspace, "0003-ppo", "finished", sft, reward)
    first = checkpoint(workspace, "0003-ppo", parent=sft)
    second = checkpoint(workspace, "0003-ppo", parent=sft, step=2)
    drawn = [
        (lane.label, [c.id for c in lane.checkpoints], lane.depth, lane.parent_id, lane.reward_id)
        for lane in lineage.lanes(workspace)
    ]
    assert drawn == [
        ("base no-model", [base], 0, None, None),
        ("sft/0001", [sft], 1, base, None),
        ("ppo/0003", [first, second], 2, sft, reward),
        ("reward/0002", [reward], 1, base, None),
    ]
    # an archived leaf leaves the drawing; an archived ancestor of something shown stays
    registry.archive(workspace, second, True)
    registry.archive(workspace, sft, True)
    shown = {c.id for lane in lineage.lanes(workspace) for c in lane.checkpoints}
    assert shown == {base, sft, reward, first}
    assert len({c.id for lane in lineage.lanes(workspace, hidden=True) for c in lane.checkpoints}) == 5


def test_names_are_text_in_the_drawing(workspace: Workspace) -> None:
    made = checkpoint(workspace, "0001-dpo")
    registry.edit(workspace.store, made, HOSTILE, "", "")
    drawn = graph(workspace, made)
    assert "<img" not in drawn
    assert "${" not in drawn
    assert "{{" not in drawn
    assert f'data-checkpoint="{made}"' in drawn
    assert 'tabindex="0"' in drawn


def test_the_data_of_a_run(workspace: Workspace) -> None:
    run_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    made = checkpoint(workspace, run_id)
    found = lineage.origin(workspace.store, checkpoints.get(workspace.store, made))
    row = one(workspace.store.db, "SELECT sha256 FROM snapshots")
    assert row is not None
    assert (found.method, found.labels, found.annotators, found.data_sha256) == ("dpo", 4, 1, row["sha256"])
    assert found.data_line() == f"4 comparisons of 1 annotator ({row['sha256'][:8]})"
