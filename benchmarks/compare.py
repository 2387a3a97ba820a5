"""Our speed and memory beside the peer's on the same work, one after the other in turns, each in a process of its own.

    python -m benchmarks.compare --data PAIRS --prompts PROMPTS [--rankings FILE] [--only dpo ...] [--rounds 3]

The peer is TRL (PPO: 1.12.0, the last that had it), for sampling transformers' generate; see `peer_speed`. Run it on an
idle machine. Prints a table and one JSON line. A ratio of speeds is ours over the peer's of the medians, and from the
smallest to the largest of a round; a ratio of memory is that of the largest. With --rankings also the reward model on
rankings, ours as they are, the peer's as the pairs that they imply (ties imply none).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, TRL, TRL_PPO, measure, peer_environment
from benchmarks.train import SAMPLING_KNOBS
from data.formats import ranking_row, read_rankings, write_rows
from data.preferences import comparisons
from data.records import InputError, Ranking
from training.config import DEFAULT_MODEL
from training.default_model import default_model_folder

Result = dict[str, Any]
WORKS = ("dpo", "dpo-cached", "reward", "ppo", "rollout")
RANKINGS, PAIRS_AT_ONCE = 12, 4


@dataclass
class Work:
    """One row of the table. `ours`, `peer`: the arguments of both sides, their method first."""

    ours: list[object]
    peer: list[object]
    unit: str = "pairs/s"
    version: str = TRL


def main() -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"Folder of the base model (default {DEFAULT_MODEL})")
    parser.add_argument("--data", required=True, help="Pairs, for dpo and reward")
    parser.add_argument("--prompts", required=True, help="Prompts, for ppo and rollout")
    parser.add_argument("--rankings", help="Rankings of several completions, for the reward model")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=WORKS, help="Do these alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="Optimiser steps or updates (default: each work's own)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KNOB=VALUE",
        help="Knobs of our trainer; rollout heeds fast and device alone",
    )  # fmt: skip
    parser.add_argument("--peer-folder", type=Path, default=PEERS, help="Where TRL is put")
    options = parser.parse_args()
    try:
        model = options.model or str(default_model_folder())
        with tempfile.TemporaryDirectory() as name:
            found = {name: compare(work, model, options) for name, work in works(options, Path(name)).items()}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    print(json.dumps(found))
    return 0


def works(options: argparse.Namespace, folder: Path) -> dict[str, Work]:
    """What is compared, by name."""
    steps = ["--steps", options.steps] if options.steps else []
    pairs, sampled = ["--data", options.data, *steps], ["--data", options.prompts]
    prompts = [*sampled, *steps]
    known = {
        "dpo": Work(["dpo", *pairs], ["dpo", *pairs]),
        "dpo-cached": Work(["dpo", *pairs, "--precompute"], ["dpo", *pairs, "--precompute"]),
        "reward": Work(["reward", *pairs], ["reward", *pairs]),
        "ppo": Work(["ppo", *prompts], ["ppo", *prompts], "s/update", TRL_PPO),
        "rollout": Work(["rollout", *sampled], ["rollout", *sampled], "tokens/s"),
    }
    chosen = {name: known[name] for name in options.only}
    if options.rankings:
        chosen["rankings"] = rankings_work(read_rankings(options.rankings), folder)
    return chosen


def rankings_work(rankings: Sequence[Ranking], folder: Path) -> Work:
    """The first rankings of four, one a step, against their decided pairs in the peer's own batches."""
    of_four = list(islice((r for r in rankings if None not in r.ranks and len(r.ranks) == 4), RANKINGS))
    if len(of_four) < RANKINGS:
        raise InputError(f"{len(of_four)} rankings of four completions are in the file, but {RANKINGS} are needed")
    pairs = [
        {"prompt": list(r.prompt.messages), "chosen": said(r, c.winner), "rejected": said(r, c.loser)}
        for r in of_four
        for c in comparisons(r)
        if not c.tie
    ]
    write_rows(folder / "rankings.jsonl", [ranking_row(r) for r in of_four])
    write_rows(folder / "pairs.jsonl", pairs)
    ours = ["reward", "--data", folder / "rankings.jsonl", "--batch", 1, "--steps", RANKINGS, "--set", "ties=ignore"]
    steps = len(pairs) // PAIRS_AT_ONCE
    return Work(ours, ["reward", "--data", folder / "pairs.jsonl", "--batch", PAIRS_AT_ONCE, "--steps", steps])


def said(ranking: Ranking, k: int) -> list[dict[str, str]]:
    """Completion k as a message."""
    return [{"role": "assistant", "content": ranking.completions[k]}]


def compare(work: Work, model: str, options: argparse.Namespace) -> Result:
    """Both sides in turns; speeds, memory, ratios, and what each run printed."""
    environment = peer_environment(options.peer_folder, work.version)
    heeded = [k for k in options.set if work.ours[0] != "rollout" or k.partition("=")[0] in SAMPLING_KNOBS]
    knobs = ["--set", *heeded] if heeded else []
    sides: dict[str, list[Result]] = {"peer": [], "ours": []}
    for number in range(1, options.rounds + 1):
        for side in sides:
            if side == "peer":
                run = measure("benchmarks.peer_speed", [*work.peer, "--model", model], environment)
            else:
                run = measure("benchmarks.train", [*work.ours, *knobs, "--model", model])
            sides[side].append(run)
            print(f"{work.ours[0]} {side} {number}: {speed(run)} {work.unit}", file=sys.stderr, flush=True)
    speeds = {side: [speed(run) for run in runs] for side, runs in sides.items()}
    better = [1 / r if work.unit == "s/update" else r for r in ratios(speeds)]
    memory = {side: max(run["peak_rss_mb"] for run in runs) for side, runs in sides.items()}
    return {
        "unit": work.unit,
        "speed": {side: [min(s), statistics.median(s), max(s)] for side, s in speeds.items()},
        "ratio": round(better[0], 2),
        "ratio_of_rounds": [round(min(better[1:]), 2), round(max(better[1:]), 2)],
        "peak_rss_mb": memory,
        "memory_ratio": round(memory["ours"] / memory["peer"], 3),
        "runs": sides,
    }


def speed(run: Result) -> float:
    """The figure that a run is compared by: pairs or tokens a second, or PPO's seconds an update after the first."""
    if run["method"] == "rollout":
        return statistics.median(run["tokens_per_s"])
    return statistics.median(run["s_per_update"][1:]) if run["method"] == "ppo" else run["pairs_per_s"]


def ratios(speeds: dict[str, list[float]]) -> list[float]:
    """Ours over the peer's: of the medians, then of each round."""
    rounds = [a / b for a, b in zip(speeds["ours"], speeds["peer"], strict=True)]
    return [statistics.median(speeds["ours"]) / statistics.median(speeds["peer"]), *rounds]


def table(found: dict[str, Result]) -> str:
    """A row for each work, in Markdown."""
    lines = ["| work | peer (min, median, max) | ours | times as fast (rounds) | peer GB | ours GB | ratio |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, one in found.items():
        peer, ours = (", ".join(f"{value:.4g}" for value in one["speed"][side]) for side in ("peer", "ours"))
        low, high = one["ratio_of_rounds"]
        peer_gb, ours_gb = (one["peak_rss_mb"][side] * 2**20 / 1e9 for side in ("peer", "ours"))
        lines.append(
            f"| {name}, {one['unit']} | {peer} | {ours} | {one['ratio']:.2f} ({low:.2f} to {high:.2f}) | {peer_gb:.2f} "
            f"| {ours_gb:.2f} | {one['memory_ratio']:.2f} |"
        )
        if name == "rankings":
            run = one["runs"]["ours"][0]
            share = run["rankings_per_s"] / run["pairs_per_s"]
            peer, ours = (", ".join(f"{value * share:.4g}" for value in one["speed"][s]) for s in ("peer", "ours"))
            lines.append(f"| rankings, rankings/s | {peer} | {ours} | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
