"""Recipes: several runs that follow one another, asked for at once with the default settings.

A recipe is queued whole or not at all, with the labels there are at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.records import InputError
from labeler import checkpoints, jobs, new_jobs
from labeler.checkpoints import Checkpoint
from labeler.new_jobs import Batch
from labeler.store import Store, scalar
from labeler.users import User
from labeler.workspace import Workspace


@dataclass(frozen=True)
class Recipe:
    """A chain of runs. `queue` puts them into a batch and raises InputError where something is missing."""

    name: str
    title: str
    about: str
    queue: Callable[[Workspace, Batch], None]


def start(workspace: Workspace, user: User, name: str) -> list[str]:
    """Queue the runs of a recipe; their ids in the order in which they will be carried out.

    Raises InputError, and queues none of them, where one has nothing to learn from.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise InputError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    with new_jobs.together(workspace, user) as batch:
        recipe.queue(workspace, batch)
        return [new.folder.name for new in batch.made]


def _reward_dpo(workspace: Workspace, batch: Batch) -> None:
    batch.create("reward", {})
    batch.create("dpo", {})  # needs no reward model, so it does not wait for one to succeed


def _sft_reward_ppo(workspace: Workspace, batch: Batch) -> None:
    sft = batch.create("sft", {})
    reward = batch.create("reward", {})
    batch.create("ppo", {}, parent_job=sft, reward_job=reward)


def _again(workspace: Workspace, batch: Batch) -> None:
    newest = newest_policy(workspace)
    if newest is None:
        raise InputError("there is no policy to go on from yet; start one of the other recipes first")
    since = first_label_since(workspace.store, newest)
    if since is None:
        raise InputError(
            f"nobody has ranked anything since {newest.name} began to learn; rank its answers first, then go on"
        )
    if newest.run_id is not None and jobs.get(workspace.store, newest.run_id).method == "ppo":
        # all labels: a reward model of the new ones alone would forget what the old ones taught
        reward = batch.create("reward", {})
        batch.create("ppo", {}, parent_id=newest.id, reward_job=reward)
    else:
        batch.create("dpo", {}, {"since": since}, parent_id=newest.id)


def newest_policy(workspace: Workspace) -> Checkpoint | None:
    """The policy that was trained last, of those that can still be loaded."""
    found = checkpoints.list_checkpoints(workspace, ["policy"])
    return found[0] if found else None


def first_label_since(store: Store, checkpoint: Checkpoint) -> float | None:
    """When the first ranking was made that the checkpoint's run did not know, in unix seconds; None: there is none.

    Of a checkpoint from elsewhere: since it was added.
    """
    known = scalar(
        store.db,
        "SELECT s.event_high_water FROM jobs AS j JOIN snapshots AS s ON s.id = j.snapshot_id WHERE j.id = ?",
        [checkpoint.run_id],
    )
    where, value = ("f.event_id", known) if known is not None else ("f.created_at", checkpoint.created_at)
    sql = f"SELECT min(f.created_at) FROM in_force AS f WHERE {where} > ? AND f.pairs > 0"
    found: Any = scalar(store.db, sql, [value])
    return None if found is None else float(found)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "reward-dpo",
            "Reward model → DPO",
            "The shortest way to a better model: DPO learns from the rankings themselves. The reward model learns the "
            "same taste, so that it can judge the answers afterwards.",
            _reward_dpo,
        ),
        Recipe(
            "sft-reward-ppo",
            "SFT → reward model → PPO",
            "The classic: imitate the best answers, learn to score answers, then practise against the score. "
            "Takes the longest.",
            _sft_reward_ppo,
        ),
        Recipe(
            "again",
            "One more round with the new labels",
            "Goes on from the newest policy with what was ranked since it began to learn: by DPO, or, where PPO made "
            "it, by a reward model of all labels and PPO again.",
            _again,
        ),
    )
}
