"""The loop, round after round: which labels each policy learned from and what came of it, and what the next one needs.

A round is a finished run of DPO or PPO. The next one begins with answers of the newest policy and of the model that it
came from, sampled on prompts that the reward model is least sure of, ranked blindly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from sqlite_utils import Database

from data.records import InputError
from labeler import checkpoints, jobs, leaderboard, new_jobs
from labeler.agreement import Figure
from labeler.checkpoints import Checkpoint
from labeler.jobs import Job
from labeler.leaderboard import Vote
from labeler.quality import wilson
from labeler.store import Store, one, rows, scalar
from labeler.users import User
from labeler.workspace import Workspace

POLICY_METHODS = ("dpo", "ppo")
KL = {"dpo": "eval/kl", "ppo": "objective/kl"}
ASKERS = ("lead", "researcher", "owner")
"""Roles that may ask for a learning curve."""
NEWEST = 20_000
"""Rankings that the ceiling looks at."""


@dataclass(frozen=True)
class Round:
    """A finished run of DPO or PPO.

    `labels`: rankings that it learned from, or its reward model; None where that is not known. `accuracy`: the reward
    model's on held-out comparisons. `wins`: the share of blind votes for its checkpoints against `parent`, n votes
    (rankings). `kl`: nats an answer from the reference; None where it was not measured.
    """

    job: Job
    checkpoint: Checkpoint | None
    parent: Checkpoint
    labels: int | None
    accuracy: Figure
    wins: Figure
    kl: float | None


def history(workspace: Workspace) -> list[Round]:
    """Every round, the first one first."""
    cast = leaderboard.votes(workspace.store.db)
    done = [job for job in jobs.list_jobs(workspace.store, ["finished"]) if job.method in POLICY_METHODS]
    return [_round(workspace.store, job, cast) for job in sorted(done, key=lambda job: (job.finished_at or 0, job.id))]


def _round(store: Store, job: Job, cast: Sequence[Vote]) -> Round:
    made = checkpoints.of_run(store, job.id)
    value = (job.result or {}).get(KL[job.method])
    return Round(
        job,
        made[-1] if made else None,
        checkpoints.get(store, job.parent_checkpoint_id),
        _labels(store, job),
        _accuracy(store, job.reward_checkpoint_id),
        win_share(cast, {each.id for each in made}, job.parent_checkpoint_id),
        None if value is None else float(value),
    )


def _labels(store: Store, job: Job) -> int | None:
    """Rankings in the snapshot that it learned from; PPO's own holds prompts, so that of its reward model."""
    learner = job.id
    if job.reward_checkpoint_id is not None:
        learner = scalar(store.db, "SELECT run_id FROM checkpoints WHERE id = ?", [job.reward_checkpoint_id])
    sql = "SELECT s.counts FROM jobs AS j JOIN snapshots AS s ON s.id = j.snapshot_id WHERE j.id = ?"
    counts = scalar(store.db, sql, [learner])
    found = json.loads(counts).get("rankings") if counts else None
    return None if found is None else int(found)


def _accuracy(store: Store, checkpoint_id: int | None) -> Figure:
    metrics = checkpoints.get(store, checkpoint_id).manifest.get("metrics", {}) if checkpoint_id is not None else {}
    share, n = metrics.get("eval/accuracy"), int(metrics.get("eval/n") or 0)
    return share_of(share * n, n) if share is not None and n else Figure(share)


def win_share(cast: Sequence[Vote], ours: set[int], other: int) -> Figure:
    """The share of the votes between `ours` and `other` that went to ours, a tie as half; n rankings."""
    outcomes: dict[int, list[float]] = {}
    for vote in cast:
        if vote.first in ours and vote.second == other:
            outcomes.setdefault(vote.ranking, []).append(vote.outcome)
        elif vote.second in ours and vote.first == other:
            outcomes.setdefault(vote.ranking, []).append(1 - vote.outcome)
    return share_of(sum(float(np.mean(each)) for each in outcomes.values()), len(outcomes))


def share_of(hits: float, n: int) -> Figure:
    """A share with Wilson's interval."""
    return Figure(hits / n, *wilson(hits, n), n) if n else Figure(None)


# -- the next round ----------------------------------------------------------------------------------------------------


def pair(workspace: Workspace) -> tuple[Checkpoint, Checkpoint] | None:
    """The policy that was trained last and the model that it came from, where both can be loaded."""
    usable = {each.id: each for each in checkpoints.list_checkpoints(workspace)}
    for each in sorted(usable.values(), key=lambda one: (-one.created_at, -one.id)):
        if each.kind == "policy" and each.parent_id in usable:
            return each, usable[each.parent_id]
    return None


def choose_prompts(store: Store, count: int, seed: int = 0) -> tuple[list[int], int]:
    """Prompts for the next round, and how many of them were chosen by the reward model's uncertainty.

    First those on whose answers the heads of the last selection disagreed most (`selection.apply`), then others at
    random. Prompts with fewer rounds behind them come before those with more, so that a round brings new ones. What
    people typed in Chat and Compare is theirs and is not shown to others.
    """
    found = rows(
        store.db,
        """SELECT p.id,
                (SELECT avg(json_extract(t.provenance, '$.disagreement')) FROM tasks AS t WHERE t.prompt_id = p.id)
                    AS disagreement,
                (SELECT count(DISTINCT t.project_id) FROM tasks AS t WHERE t.prompt_id = p.id AND t.source = 'sample')
                    AS rounds
            FROM prompts AS p WHERE p.source NOT IN ('chat', 'compare') AND EXISTS (SELECT 1 FROM tasks AS t
                WHERE t.prompt_id = p.id AND t.gold_ranks IS NULL) ORDER BY p.id""",
    )
    chance = np.random.default_rng(seed).random(len(found))
    order = sorted(
        range(len(found)),
        key=lambda i: (
            found[i]["rounds"],
            found[i]["disagreement"] is None,
            -(found[i]["disagreement"] or 0),
            chance[i],
        ),
    )[:count]
    return [found[i]["id"] for i in order], sum(found[i]["disagreement"] is not None for i in order)


def next_number(db: Database) -> int:
    """What the next round's project is called by default."""
    taken = {row["name"] for row in rows(db, "SELECT name FROM projects WHERE name LIKE 'Round %'")}
    return next(number for number in range(1, len(taken) + 2) if f"Round {number}" not in taken)


# -- whether more labels are worth it ----------------------------------------------------------------------------------


def ceiling(db: Database) -> Figure:
    """The accuracy at which a model would know the truth: it could not agree with people more often than that.

    Of comparisons that two people made without a tie they agree on a share p. If each is right with probability a,
    independently, p = a² + (1 - a)², so a = (1 + √(2p - 1)) / 2. n pairs of opinions; at most NEWEST rankings.
    """
    said: dict[int, list[dict[int, int]]] = {}
    for row in rows(
        db,
        """SELECT task_id, completion_ids, ranks FROM latest_rankings WHERE purpose = 'label' AND gold_ranks IS NULL
            AND NOT coalesce(all_bad, 0) ORDER BY event_id DESC LIMIT ?""",
        [NEWEST],
    ):
        ranks = zip(json.loads(row["completion_ids"]), json.loads(row["ranks"]), strict=True)
        said.setdefault(row["task_id"], []).append({key: rank for key, rank in ranks if rank is not None})
    same = total = 0
    for people in said.values():
        for first, second in combinations(people, 2):
            for a, b in combinations(sorted(first.keys() & second.keys()), 2):
                x, y = np.sign(first[a] - first[b]), np.sign(second[a] - second[b])
                if x and y:
                    same, total = same + int(x == y), total + 1
    if not total:
        return Figure(None)
    value, low, high = (_knowing(share) for share in (same / total, *wilson(same, total)))
    return Figure(value, low, high, total)


def _knowing(agree: float) -> float:
    return (1 + math.sqrt(max(0.0, 2 * agree - 1))) / 2


MOST = 1000
"""Rankings that a learning curve reads."""


def ask_curve(workspace: Workspace, user: User) -> str:
    """Queue a run that says what more labels would buy (`training.learning_curve`); its id.

    Raises InputError where the user may not, or nothing was ranked.
    """
    if user.role not in ASKERS:
        raise InputError(f"{user.name} may not start runs; ask a researcher or a lead")
    base = workspace.base_checkpoint_id

    def config(data: Path) -> dict[str, Any]:
        return {"data": str(data), "base_model": workspace.base_model, "most": MOST}

    return new_jobs.add(workspace, user, jobs.CURVE, "preferences", {}, config, base, None)


def newest_curve(store: Store) -> Job | None:
    """The last run that asked what more labels would buy."""
    row = one(store.db, "SELECT id FROM jobs WHERE method = ? ORDER BY id DESC LIMIT 1", [jobs.CURVE])
    return jobs.get(store, row["id"]) if row else None


def describe_curve(result: dict[str, Any], top: Figure) -> str:
    """What a finished learning curve says, in plain sentences."""
    accuracy = np.array(result["accuracy"])
    first, last = accuracy[-2], accuracy[-1]
    gains = last - first
    fifth = result["comparisons"][-1] - result["comparisons"][-2]
    text = (
        f"With all {result['comparisons'][-1]:,} comparisons of {result['prompts'][-1]:,} prompts a linear reward "
        f"model is right on {last.mean():.1%} of about {result['n']:,} held-out ones. The last {fifth:,} of them "
        f"changed that by {100 * gains.mean():+.1f} points ({100 * gains.min():+.1f} to {100 * gains.max():+.1f} over "
        f"{len(gains)} splits)."
    )
    if top.value is None:
        return text + " No two people have judged the same pair yet, so nobody knows how high it could go."
    room = top.value - float(last.mean())
    text += f" People's own agreement sets the ceiling at about {top.value:.1%} ({top.n:,} pairs of opinions)."
    if gains.min() > 0:
        return text + " The curve still climbs in every split: more labels are worth collecting."
    if room < 0.02:
        return text + " That is reached: more labels of this kind will hardly help."
    return (
        text
        + " The splits do not agree that it still climbs: more labels may help little; better agreement, or a "
        + ("trained reward model instead of a linear one, may help more.")
    )
