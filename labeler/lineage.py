"""Where checkpoints come from: which data, which labels, which parent, which reward model; and all of it as a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeler import checkpoints
from labeler.checkpoints import Checkpoint
from labeler.store import Store, one, rows
from labeler.workspace import Workspace

NOUNS = {"preferences": "comparison", "demonstrations": "demonstration", "prompts": "prompt"}


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made of. `labels` counts comparisons, demonstrations or prompts, as `noun` says.

    `erased`: somebody in the data was deleted, so the snapshot cannot be made again.
    """

    parent: Checkpoint | None = None
    reward_model: Checkpoint | None = None
    run_id: str | None = None
    method: str = ""
    data_sha256: str = ""
    labels: int | None = None
    noun: str = "comparison"
    annotators: int | None = None
    filters: Mapping[str, Any] | None = None
    erased: bool = False

    def data_line(self) -> str:
        """ "412 comparisons of 3 annotators (a1b2c3d4)"; "" where nothing was learned from here."""
        if not self.data_sha256 and self.labels is None:
            return ""
        parts = [] if self.labels is None else [_plural(self.labels, self.noun)]
        if self.annotators:
            parts.append(f"of {_plural(self.annotators, 'annotator')}")
        if self.data_sha256:
            parts.append(f"({self.data_sha256[:8]})")
        return " ".join(parts)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def origin(store: Store, checkpoint: Checkpoint) -> Origin:
    """From the run's row and its snapshot; of an imported checkpoint from what its own manifest says."""
    parent = checkpoints.get(store, checkpoint.parent_id) if checkpoint.parent_id else None
    row = one(
        store.db,
        """SELECT j.method, j.reward_checkpoint_id, s.kind, s.sha256, s.counts, s.filters, s.erased_at
            FROM jobs AS j LEFT JOIN snapshots AS s ON s.id = j.snapshot_id WHERE j.id = ?""",
        [checkpoint.run_id],
    )
    stated = _dict(checkpoint.manifest.get("data"))
    sha256 = str(stated.get("sha256") or "")
    if row is None:
        count = stated.get("comparisons")
        method = str(checkpoint.manifest.get("method") or "")
        labels = count if isinstance(count, int) else None
        return Origin(parent, None, checkpoint.run_id, method, sha256, labels)
    counts = json.loads(row["counts"] or "{}")
    reward_id = row["reward_checkpoint_id"]
    return Origin(
        parent,
        checkpoints.get(store, reward_id) if reward_id else None,
        checkpoint.run_id,
        row["method"],
        row["sha256"] or sha256,
        counts.get("comparisons", counts.get("rows")),
        NOUNS.get(row["kind"], "row"),
        counts.get("annotators"),
        json.loads(row["filters"] or "{}"),
        row["erased_at"] is not None,
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Lane:
    """The checkpoints of one run (or one base, or one import), which share where they come from.

    `depth` is the number of lanes above this one; `parent_id` and `reward_id` are checkpoints of other lanes.
    """

    label: str
    checkpoints: tuple[Checkpoint, ...]
    depth: int
    parent_id: int | None
    reward_id: int | None


def lanes(workspace: Workspace, hidden: bool = False) -> list[Lane]:
    """The graph, from the top: each lane stands below the one that it comes from, the oldest first.

    Without `hidden`, archived, pruned and deleted checkpoints are left out unless something shown comes from them.
    """
    everything = checkpoints.every(workspace.store)
    rewards = {
        row["id"]: row["reward_checkpoint_id"]
        for row in rows(workspace.store.db, "SELECT id, reward_checkpoint_id FROM jobs")
    }
    by_id = {c.id: c for c in everything}
    shown = {c.id for c in everything if hidden or (c.archived_at is None and checkpoints.present(workspace, c))}
    for checkpoint in reversed(everything):  # parents are older, so one pass reaches every ancestor
        if checkpoint.id in shown:
            above = (checkpoint.parent_id, rewards.get(checkpoint.run_id or ""))
            shown |= {i for i in above if i in by_id}
    return _arrange([c for c in everything if c.id in shown], rewards)


def _arrange(shown: Sequence[Checkpoint], rewards: Mapping[str, int | None]) -> list[Lane]:
    groups: dict[tuple[Any, ...], list[Checkpoint]] = {}
    for checkpoint in shown:
        alone = checkpoint.run_id is None
        key = (checkpoint.run_id, checkpoint.id if alone else checkpoint.parent_id)
        groups.setdefault(key, []).append(checkpoint)
    below: dict[int | None, list[list[Checkpoint]]] = {}
    ids = {c.id for c in shown}
    for group in groups.values():
        parent = group[0].parent_id
        below.setdefault(parent if parent in ids else None, []).append(group)
    found: list[Lane] = []
    waiting = [(group, 0) for group in reversed(below.get(None, []))]
    while waiting:
        group, depth = waiting.pop()
        first = group[0]
        label = checkpoints.run_label(first.run_id) if first.run_id else first.name
        parent_id = first.parent_id if first.parent_id in ids else None
        reward_id = rewards.get(first.run_id or "")
        found.append(Lane(label, tuple(group), depth, parent_id, reward_id))
        children = [each for checkpoint in group for each in below.get(checkpoint.id, [])]
        waiting += [(each, depth + 1) for each in reversed(children)]
    return found
