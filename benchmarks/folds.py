"""How well a reward model predicts people it has not heard: k folds by prompt through the real command.

    python -m benchmarks.folds --data preferences.jsonl.gz --output runs/folds [any knob of `python -m training reward`]

Prints one JSON line: accuracy and NLL over all held-out comparisons with 95% intervals (normal, over folds pooled), and
the same for "the longer answer wins", which a reward model must beat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from math import sqrt
from pathlib import Path

from data.formats import read_rankings
from data.preferences import comparisons
from data.records import InputError


def main() -> int:
    """Run the folds; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    options, knobs = parser.parse_known_args()
    try:
        pairs = [(r, c) for r in read_rankings(options.data) for c in comparisons(r) if not c.tie]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    longer = sum(len(r.completions[c.winner]) > len(r.completions[c.loser]) for r, c in pairs) / len(pairs)
    results = []
    for fold in range(options.folds):
        output = options.output / f"fold-{fold}"
        words = [sys.executable, "-m", "training", "reward", "--data", options.data, "--output", str(output)]
        words += ["--validation-fraction", str(1 / options.folds), "--fold", str(fold), *knobs]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    count = sum(r["eval/n"] for r in results)
    accuracy = sum(r["eval/accuracy"] * r["eval/n"] for r in results) / count
    nll = sum(r["eval/nll"] * r["eval/n"] for r in results) / count
    half = 1.96 * sqrt(accuracy * (1 - accuracy) / count)
    summary = {
        "accuracy": round(accuracy, 4),
        "accuracy_95": [round(accuracy - half, 4), round(accuracy + half, 4)],
        "nll": round(nll, 4),
        "n": int(count),
        "longer_wins": round(longer, 4),
        "folds": [{key: round(r[f"eval/{key}"], 4) for key in ("accuracy", "nll", "ece")} for r in results],
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
