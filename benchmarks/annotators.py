"""Simulated annotators: who is found by the Quality page, and what weighting by fitted reliability buys.

    python -m benchmarks.annotators [--seeds 20]

Of 40 annotators half are honest, with noise that differs between them threefold. The others, five of each kind, click
the first card or give the same ranks in the order of the screen (in a quarter to all of their tasks), guess, or rush (a
third of the time, and noisily). They rank 800 tasks of four completions, three people each, through the app's own
store. A completion's true reward is linear in eight features; each annotator draws from a Plackett-Luce model of it at
their own temperature.

Prints, for each kind, the area under the ROC curve of the Quality page's score for it: against the honest, and against
everybody else. Then the accuracy of a linear Bradley-Terry reward model on fresh pairs, learned from the app's snapshot
without and with `weight_by_reliability`. Intervals are 95% over the seeds. One JSON line; exits with 1 where an area
against the honest is below 0.9 or the gain's interval holds 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from data.formats import read_rows
from labeler import quality, snapshots, tasks
from labeler.events import Event
from labeler.projects import FIRST
from labeler.prompts import add_completion, add_prompt
from labeler.rankings import record_event
from labeler.users import User, ensure_user
from labeler.workspace import Workspace, open_workspace

Floats = NDArray[np.floating[Any]]
KINDS = tuple(quality.SIGNS)
"""What the dishonest do: position, pattern, speed, random; each is the sign that should find it."""
FEATURES, COMPLETIONS, OVERLAP = 8, 4, 3
READING = 25.0
"""Characters a second."""


@dataclass(frozen=True)
class Simulated:
    """An annotator: what they do, how sharply they see (1 / temperature), and how often they fall into their habit."""

    kind: str
    sharpness: float
    habit: float


def main() -> int:
    """Simulate; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--annotators", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=800)
    options = parser.parse_args()
    found = [simulate(seed, options.annotators, options.tasks) for seed in range(options.seeds)]
    report: dict[str, Any] = {"seeds": options.seeds, "annotators": options.annotators, "tasks": options.tasks}
    good = True
    print(f"{options.seeds} seeds, {options.annotators} annotators, {options.tasks} tasks\n")
    for kind in KINDS:
        against = {}
        for whom in ("honest", "everybody"):
            against[whom] = interval([one["areas"][kind][whom] for one in found])
            low, mean, high = against[whom]
            print(f"{kind:10} ROC AUC against {whom:10} {mean:.3f} ({low:.3f} to {min(high, 1):.3f})")
        report[kind] = against
        good &= against["honest"][1] > 0.9
    for name in ("plain", "weighted", "gain", "kept"):
        report[name] = interval([one[name] for one in found])
        low, mean, high = report[name]
        print(f"{name:10} {mean:.4f} ({low:.4f} to {high:.4f})")
    print(json.dumps(report))
    return int(not (good and report["gain"][0] > 0))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, mean, high of Student's 95% interval of the mean."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return mean - half, mean, mean + half


def people(random: np.random.Generator, count: int) -> list[Simulated]:
    """Half honest, the rest of each kind in turn."""
    honest = [Simulated("honest", sharp, 0.0) for sharp in random.uniform(1.0, 3.0, count - count // 2)]
    others = []
    for number in range(count // 2):
        kind, sharp, habit = KINDS[number % len(KINDS)], random.uniform(1.0, 3.0), random.uniform(0.25, 1.0)
        sharp = {"random": 0.0, "speed": 0.5}.get(kind, sharp)
        others.append(Simulated(kind, sharp, habit if kind in ("position", "pattern") else 0.0))
    return honest + others


def simulate(seed: int, annotators: int = 40, count: int = 800) -> dict[str, Any]:
    """One workspace: `areas` (kind -> against whom -> area), held-out accuracy `plain` and `weighted`, their `gain`."""
    random = np.random.default_rng(seed)
    truth = random.standard_normal(FEATURES)
    truth /= np.linalg.norm(truth)  # so that true rewards have a standard deviation of 1
    features = random.standard_normal((count, COMPLETIONS, FEATURES))
    crowd = people(random, annotators)
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_workspace(folder, "no-model", seed_file=None)
        users = label(workspace, random, crowd, features @ truth)
        measured = quality.measure(workspace.store.db, FIRST)
        rows = {
            weighted: _snapshot(workspace, Path(folder) / f"{weighted}.jsonl", weighted) for weighted in (False, True)
        }
        workspace.store.close()
    scores = {one.user_id: {k: s.score.value for k, s in one.suspicions.items()} for one in measured.annotators}
    areas = {}
    for kind in KINDS:
        of = {"honest": [], "everybody": [], "kind": []}  # type: dict[str, list[float]]
        for user, one in zip(users, crowd, strict=True):
            value = scores[user.id][kind]
            score = -np.inf if value is None else value
            of["kind" if one.kind == kind else "everybody"].append(score)
            if one.kind == "honest":
                of["honest"].append(score)
        areas[kind] = {whom: area(of["kind"], of[whom]) for whom in ("honest", "everybody")}
    fresh = random.standard_normal((20_000, 2, FEATURES))
    accuracy = {}
    for weighted, found in rows.items():
        model = fit_reward(found, features)
        right = np.sign((fresh[:, 0] - fresh[:, 1]) @ model) == np.sign((fresh[:, 0] - fresh[:, 1]) @ truth)
        accuracy[weighted] = float(right.mean())
    return {
        "areas": areas,
        "plain": accuracy[False],
        "weighted": accuracy[True],
        "gain": accuracy[True] - accuracy[False],
        "kept": len(rows[True]) / len(rows[False]),
    }


def label(workspace: Workspace, random: np.random.Generator, crowd: Sequence[Simulated], rewards: Floats) -> list[User]:
    """Make the tasks and let the crowd rank them; `rewards` (tasks, completions)."""
    with workspace.store.write() as db:
        users = [ensure_user(db, f"annotator {number}") for number in range(len(crowd))]
        for number, reward in enumerate(rewards):
            prompt_id = add_prompt(db, [{"role": "user", "content": f"Task {number}"}], "", "simulated")
            lengths = random.integers(100, 2000, COMPLETIONS)
            texts = [f"{number} {k} ".ljust(int(length), "x") for k, length in enumerate(lengths)]
            ids = [add_completion(db, prompt_id, text, None, {}, None, None, "simulated") for text in texts]
            task_id = tasks.create_task(db, prompt_id, ids, project_id=FIRST, overlap=OVERLAP, source="simulated")
            for who in random.choice(len(crowd), OVERLAP, replace=False):
                user = users[who]
                # unshuffled, so that a seed is one result: the completions are drawn alike, so their order says nothing
                assignment_id = tasks.open_assignment(db, task_id, user, 0.0, shuffle=False)
                shown = [one.id for one in tasks.get_assignment(db, assignment_id, user).completions]
                ranks = rank(random, crowd[who], np.array([reward[ids.index(one)] for one in shown]))
                pace = np.exp(random.normal(0, 0.4)) * (0.3 if crowd[who].kind == "speed" else 1.0)
                record_event(
                    workspace.store,
                    user,
                    Event(
                        f"simulated-{task_id}-{user.id}",
                        assignment_id,
                        "submit",
                        ranks,
                        seconds=float(5 + lengths.sum() / READING) * float(pace),
                        source="simulated",
                    ),
                )
    return users


def rank(random: np.random.Generator, who: Simulated, reward: Floats) -> list[int]:
    """Ranks in the order of the screen, of completions with these true rewards; one in ten neighbours tie."""
    if who.kind == "pattern" and random.random() < who.habit:
        return list(range(1, len(reward) + 1))
    score = who.sharpness * reward + random.gumbel(size=len(reward))
    if who.kind == "position" and random.random() < who.habit:
        score[0] = np.inf
    order = np.argsort(-score)
    ranks, current = [0] * len(reward), 0
    for place, card in enumerate(order):
        if place == 0 or random.random() > 0.1:
            current = place + 1
        ranks[card] = current
    return ranks


def area(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The area under the ROC curve: how often a positive scores above a negative, ties half."""
    x, y = np.array(positives)[:, None], np.array(negatives)[None, :]
    return float((x > y).mean() + (x == y).mean() / 2)


def _snapshot(workspace: Workspace, path: Path, weighted: bool) -> list[dict[str, Any]]:
    snapshots.write_snapshot(workspace.store, path, "preferences", {"weight_by_reliability": weighted}, None)
    return [row for _, row in read_rows(path)]


def fit_reward(rows: Sequence[dict[str, Any]], features: Floats, steps: int = 12) -> Floats:
    """A linear Bradley-Terry model of weighted rankings, by Newton's method; each ranking's weight is shared by its
    pairs, ties are left out, as in training."""
    differences: list[Floats] = []
    weights: list[float] = []
    for row in rows:
        task, ranks = int(row["completions"][0].split()[0]), row["ranks"]
        which = [features[task, int(text.split()[1])] for text in row["completions"]]
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        differences += [which[i] - which[j] for i, j in pairs]
        weights += [row["weight"] / len(pairs) for _ in pairs]
    x, weight = np.array(differences), np.array(weights)
    model = np.zeros(FEATURES)
    for _ in range(steps):
        wrong = 1 / (1 + np.exp(x @ model))
        gradient = x.T @ (weight * wrong) - 1e-3 * model
        curvature = (x.T * (weight * wrong * (1 - wrong))) @ x + 1e-3 * np.eye(FEATURES)
        model = model + np.linalg.solve(curvature, gradient)
    return model


if __name__ == "__main__":
    sys.exit(main())
