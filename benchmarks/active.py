"""Whether it pays to ask first where the heads disagree: accuracy after n rankings, against random order.

A simulated annotator ranks a pool of tasks batch by batch. After each batch a head is fitted to all that was said, and
judged on other prompts: of every two answers, which does the annotator truly like better. Then the next batch is taken:
`active` what the committee of `training.ensemble` around that head disagrees on most (as `labeler.selection` does it),
`margin` what the head puts closest together, `random` whatever comes. All begin with the same random batch.

    python -m benchmarks.active                  # simulated hidden states, in four worlds
    python -m benchmarks.active --worlds model   # the default model's, of the seed prompts, liked as in true_reward.py

Prints one JSON object: the accuracies by n, and each order minus random with a 95% interval over the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.true_reward import TrueReward
from data.formats import parse_prompt_row, read_rows
from data.preferences import Comparison
from labeler.disagreement import disagreement
from training.config import DEFAULT_MODEL, RewardConfig
from training.ensemble import fit_head, fit_heads
from training.packs import Group
from training.reward import Pairs

WORLDS = {
    "even": "answers vary alike in all directions",
    "uneven": "the variance falls off as in hidden states, as 1/rank",
    "topics": "each prompt has one of eight topics, in which only its own directions vary; half have the first topic",
    "alike": "half of the prompts have answers that hardly differ, as a model's do at a low temperature",
    "model": "the default model's last hidden states of the seed prompts' answers",
}
ORDERS = ("random", "active", "margin")
K, WIDTH, TASKS, NOISE = 4, 32, 300, 0.5
SPREAD = 3.0
"""Of the judged head's prior, in logits of a typical comparison: wide, since nothing else holds it back."""


@dataclass
class Tasks:
    """N tasks of K answers: their hidden states (N, K, d), and how much the annotator likes each (N, K)."""

    ends: Tensor
    liked: np.ndarray

    def part(self, numbers: np.ndarray) -> Tasks:
        return Tasks(self.ends[torch.from_numpy(numbers)], self.liked[numbers])


def main() -> int:
    """Run every seed in every world, print one JSON object; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=["even", "uneven", "topics", "alike"])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="tasks ranked between two fits")
    parser.add_argument("--rounds", type=int, default=8, help="batches")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--data", type=Path, default=Path("data/prompts/seed.jsonl"))
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    result = {}
    for world in options.worlds:
        read = of_model(options.base_model, options.data) if world == "model" else None
        curves = {order: np.zeros((options.seeds, options.rounds)) for order in ORDERS}
        for seed in range(options.seeds):
            tasks = read or simulate(world, seed)
            for order in ORDERS:
                curves[order][seed] = learn(tasks, order, seed, options.batch, options.rounds, options.heads)
            say(f"{world}: seed {seed + 1} of {options.seeds}")
        result[world] = summary(curves, options.batch)
    print(json.dumps({"seeds": options.seeds, "heads": options.heads, "worlds": result}, indent=1))
    return 0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


# -- worlds ------------------------------------------------------------------------------------------------------------


def simulate(world: str, seed: int) -> Tasks:
    """Tasks whose answers the annotator likes as a linear function of their hidden states, with spread 1."""
    random = np.random.default_rng(seed)
    scale = np.ones((TASKS, WIDTH))
    if world == "uneven":
        scale *= (1 + np.arange(WIDTH)) ** -0.5
    if world == "topics":
        topic = np.where(random.random(TASKS) < 0.5, 0, random.integers(0, 8, TASKS))
        scale *= np.arange(WIDTH) // (WIDTH // 8) == topic[:, None]
    if world == "alike":
        scale *= np.where(random.random(TASKS) < 0.5, 1, 0.05)[:, None]
    ends = random.standard_normal((TASKS, K, WIDTH)) * scale[:, None]
    liked = ends @ random.standard_normal(WIDTH)
    return Tasks(torch.from_numpy(ends).float(), liked / liked.std())


def of_model(name: str, data: Path) -> Tasks:
    """What the base model reads at the end of each stored answer, and what benchmarks/true_reward.py says of it."""
    from training.chat_template import encode_prompt, encode_response
    from training.models import load_base
    from training.packs import pack
    from training.reward import ResponseEnds

    base = load_base(name)
    reader = ResponseEnds(base)
    rows = [row for _, row in read_rows(data)]
    true = TrueReward([text for row in rows for text in row["completions"]])
    ends, liked = [], []
    for row in rows:
        prompt = encode_prompt(base, parse_prompt_row(row).messages)
        group = Group(prompt, [encode_response(base, text, True) for text in row["completions"]])
        ends.append(reader.of(pack([group], base.device)))
        liked.append([true(text) for text in row["completions"]])
    say(f"{len(rows)} prompts read")
    return Tasks(torch.stack(ends), np.array(liked))


# -- learning ----------------------------------------------------------------------------------------------------------


def learn(tasks: Tasks, order: str, seed: int, batch: int, rounds: int, heads: int) -> list[float]:
    """Accuracy on a third of the tasks after each batch of the others. The seed splits, begins and ranks."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(tasks.liked))
    held_out = tasks.part(shuffled[: len(shuffled) // 3])
    pool = tasks.part(shuffled[len(shuffled) // 3 :])
    said = np.argsort(-(pool.liked / NOISE + random.gumbel(size=pool.liked.shape)), axis=1)  # best first: Plackett-Luce
    waiting, ranked, found = list(range(len(said))), list[int](), list[float]()
    for number in range(rounds):
        chosen, waiting = waiting[:batch], waiting[batch:]
        ranked += chosen
        ends, pairs, prompt = heard(pool, said, ranked)
        head = judge(ends, pairs)
        found.append(accuracy(held_out, head))
        if order == "active":
            committee = fit_heads(ends, pairs, prompt, head, heads, seed=1000 * seed + number)
            scores = (pool.ends[waiting] @ committee.T).numpy()
            waiting = by(waiting, [-disagreement(ensemble) for ensemble in scores])
        elif order == "margin":
            own = (pool.ends[waiting] @ head).double().numpy()
            waiting = by(waiting, [float(np.abs(np.tanh((s[:, None] - s) / 2)).mean()) for s in own])
    return found


def by(tasks: list[int], key: list[float]) -> list[int]:
    """The tasks, those with the smallest key first."""
    return [tasks[i] for i in np.argsort(key, kind="stable")]


def heard(pool: Tasks, said: np.ndarray, ranked: list[int]) -> tuple[Tensor, Pairs, Tensor]:
    """(hidden states, pairs, number of each pair's prompt) of the tasks that were ranked."""
    groups = [
        Group([0], [[0]] * K, comparisons=[Comparison(int(a), int(b), False, 0.0) for i, a in enumerate(said[task])
                                           for b in said[task][i + 1 :]])
        for task in ranked
    ]  # fmt: skip
    pairs = Pairs(groups)
    return pool.ends[ranked].flatten(0, 1), pairs, torch.arange(len(ranked)).repeat_interleave(K * (K - 1) // 2)


def judge(ends: Tensor, pairs: Pairs) -> Tensor:
    """The head (d,) that is judged: of greatest posterior, as a reward model's own head would be."""
    differences = (ends[pairs.winner] - ends[pairs.loser]).double()
    spread = SPREAD / float(differences.square().sum(1).mean().sqrt())
    nothing = torch.zeros(ends.shape[1], dtype=torch.float64)
    return fit_head(differences, pairs, pairs.weight, nothing, spread, RewardConfig()).float()


def accuracy(tasks: Tasks, head: Tensor) -> float:
    """Share of the pairs of answers that the head puts in the order in which they are truly liked."""
    first, second = np.triu_indices(K, 1)
    scores, liked = (tasks.ends @ head).numpy(), tasks.liked
    return float(((scores[:, first] > scores[:, second]) == (liked[:, first] > liked[:, second])).mean())


# -- what came out -----------------------------------------------------------------------------------------------------


def summary(curves: dict[str, np.ndarray], batch: int) -> dict[str, object]:
    """Mean accuracies by n, and differences to random by n and over all of n > batch: [mean, low, high]."""
    rounds = curves["random"].shape[1]
    minus = {}
    for order in ORDERS[1:]:
        difference = curves[order] - curves["random"]
        each = {str((i + 1) * batch): interval(difference[:, i]) for i in range(1, rounds)}
        minus[order] = {"over all n": interval(difference[:, 1:].mean(1)), **each}
    accuracies = {order: [round(float(a), 4) for a in curve.mean(0)] for order, curve in curves.items()}
    return {"n": [(i + 1) * batch for i in range(rounds)], "accuracy": accuracies, "minus random": minus}


def interval(values: np.ndarray) -> list[float]:
    """[mean, low, high]: percentile bootstrap over the seeds, 95%."""
    drawn = np.random.default_rng(0).choice(values, (5000, len(values))).mean(1)
    return [round(float(v), 4) for v in (values.mean(), *np.percentile(drawn, [2.5, 97.5]))]


if __name__ == "__main__":
    sys.exit(main())
