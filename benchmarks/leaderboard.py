"""Whether the leaderboard's intervals hold the truth: 200 simulated leaderboards at the nominal 95%.

    python -m benchmarks.leaderboard [--simulations 200] [--seed 0]

Each case is a different way in which votes hang together: not at all; by prompt (a checkpoint is better at some prompts
than at others); by annotator; by both; rankings of four; one checkpoint that nearly always wins; longer answers that
win for their length. The truth is the strength that would be fitted on infinitely many such votes, found by quadrature
over the random effects. Every difference to the anchor is an interval that holds it or not.

Then whether the number of further votes that is named separates two neighbours as often as it says (80%).

Prints a line a case and one JSON line; exits with 1 where a coverage lies outside 90 to 98%.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler import bradley_terry
from labeler.leaderboard import POINTS, Vote, standings, votes_needed

Floats = NDArray[np.floating[Any]]
LOW, HIGH = 0.90, 0.98


@dataclass(frozen=True)
class Case:
    """How votes come about. by_prompt, by_annotator: standard deviation, in log-odds, of what a checkpoint gains on one
    prompt, or with one person. together: answers in a ranking. ties: share of votes that are turned into ties.
    for_length: what an answer twice as long gains; the answers of the last checkpoint are longer."""

    strengths: tuple[float, ...] = (0.0, 0.3, 0.6, 1.2)
    prompts: int = 100
    annotators: int = 20
    rankings: int = 500
    by_prompt: float = 0.0
    by_annotator: float = 0.0
    together: int = 2
    ties: float = 0.0
    for_length: float = 0.0


CASES: dict[str, Case] = {
    "independent": Case(),
    "ties": Case(ties=0.3),
    "by prompt": Case(by_prompt=1.0, prompts=60),
    "by annotator": Case(by_annotator=0.7),
    "eight annotators": Case(by_annotator=0.5, annotators=8),
    "both": Case(by_prompt=1.0, by_annotator=0.7, prompts=60),
    "rankings of four": Case(together=4, by_prompt=1.0, rankings=200),
    "one far ahead": Case(strengths=(0.0, 0.5, 4.0)),
    "few votes": Case(strengths=(0.0, 0.5), rankings=40, prompts=40, annotators=5),
    "one annotator": Case(annotators=1, by_prompt=0.7, prompts=100, rankings=200),
    "length": Case(for_length=0.6),
}


def simulate(case: Case, random: np.random.Generator) -> list[Vote]:
    """The votes of one leaderboard; checkpoints are numbered from 1."""
    count = len(case.strengths)
    prompt_effect = case.by_prompt * random.standard_normal((case.prompts, count))
    annotator_effect = case.by_annotator * random.standard_normal((case.annotators, count))
    found = []
    for ranking in range(case.rankings):
        prompt, annotator = int(random.integers(case.prompts)), int(random.integers(case.annotators))
        shown = random.permutation(count)[: case.together]
        lengths = random.lognormal(6, 0.5, count) * np.where(np.arange(count) == count - 1, 1.5, 1)
        strength = np.array(case.strengths) + prompt_effect[prompt] + annotator_effect[annotator]
        if case.for_length and case.together == 2:
            more = bradley_terry.longer(*lengths[shown, None].astype(int).astype(float))
            strength[shown[0]] += case.for_length * more[0]
        score = strength + random.gumbel(size=count)  # the best first: Plackett-Luce, and Bradley-Terry for two
        tied = random.random() < case.ties
        for a, b in combinations(shown, 2):
            outcome = 0.5 if tied else float(score[a] > score[b])
            sizes = (int(lengths[a]), int(lengths[b]))
            found.append(
                Vote(prompt, annotator, int(a) + 1, int(b) + 1, outcome, ranking, 2 / case.together, lengths=sizes)
            )
    return found


def truth(case: Case) -> Floats:
    """Strengths (M,) that infinitely many votes would give: the fit of the expected share of wins of each two."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(2 * (case.by_prompt**2 + case.by_annotator**2))
    pairs = list(combinations(range(len(case.strengths)), 2))
    design = np.zeros((len(pairs), len(case.strengths)))
    share = np.zeros((1, len(pairs)))
    for row, (a, b) in enumerate(pairs):
        design[row, a], design[row, b] = 1, -1
        chances = bradley_terry.sigmoid(case.strengths[a] - case.strengths[b] + spread * nodes)
        share[0, row] = (weights @ chances) / weights.sum() * (1 - case.ties) + case.ties / 2
    return bradley_terry.fit(design, share, np.ones_like(share), len(case.strengths), prior_sd=np.inf)[0]


def coverage(case: Case, simulations: int, seed: int, draws: int = bradley_terry.DRAWS) -> dict[str, float]:
    """Share of intervals that hold the truth, and how wide they are in points, over all differences to the anchor."""
    known = truth(case)
    held, widths = [], []
    for number in range(simulations):
        found = standings(simulate(case, np.random.default_rng([seed, number])), anchor=1, draws=draws)
        for place in found.places:
            figure = place.controlled if case.for_length else place.strength
            if place.checkpoint_id == 1 or figure.low is None or figure.high is None:
                continue
            ahead = POINTS * (known[place.checkpoint_id - 1] - known[0])
            held.append(figure.low <= ahead <= figure.high)
            widths.append(figure.high - figure.low)
    return {"coverage": float(np.mean(held)), "intervals": len(held), "width": float(np.mean(widths))}


def separation(simulations: int, seed: int) -> float:
    """How often the further votes that are named separate two checkpoints that are as far apart as was said."""
    ahead, before = 0.4, 60
    chance = float(bradley_terry.sigmoid(np.array(ahead)))
    needed = votes_needed(ahead, 1 / (before * chance * (1 - chance)))
    assert needed is not None
    case = Case(strengths=(0.0, ahead), rankings=before + needed, prompts=before + needed, annotators=30)
    clear = 0
    for number in range(simulations):
        random = np.random.default_rng([seed, number])
        cast = [
            Vote(each, int(random.integers(case.annotators)), 2, 1, float(random.random() < chance), each)
            for each in range(case.rankings)
        ]
        clear += standings(cast).gaps[0].votes_needed == 0
    return clear / simulations


def main() -> int:
    """Simulate; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    report: dict[str, Any] = {"simulations": options.simulations, "seed": options.seed, "cases": {}}
    good = True
    for name in options.only:
        case = CASES[name]
        found = report["cases"][name] = coverage(case, options.simulations, options.seed)
        good &= LOW <= found["coverage"] <= HIGH
        print(
            f"{name:18} {found['coverage']:.1%} of {found['intervals']} intervals, {found['width']:.0f} points wide",
            flush=True,
        )
    report["separated"] = separation(options.simulations, options.seed)
    print(f"separated by the votes named: {report['separated']:.1%}")
    print(json.dumps(report))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
