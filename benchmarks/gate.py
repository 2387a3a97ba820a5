"""Whether the fast paths in bf16 learn what the plain ones in fp32 learn: the real command, twice, on the same pairs.

    python -m benchmarks.gate dpo|reward --data preferences.jsonl.gz [--model M] [--few 5] [--many 100]

After a few steps at a rate of 1e-5 a young adapter changes little, and what bf16 would round away must still be there:
the change of each answer's log-probability (of the reward model: score), adapter on minus off, is computed in fp32 from
both adapters; the two must correlate above 0.99. After many steps the validation losses must lie within 0.01.
Prints one JSON line; exits with 1 where a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.work import first_rows
from data.formats import read_rankings, write_rows
from data.records import InputError
from training.base import Base
from training.batches import encode_rankings
from training.config import DEFAULT_MODEL
from training.evaluate import sequence_log_probs
from training.models import load_base
from training.packs import Group
from training.reward_model import Score

PATHS = {"plain": ["--dtype", "fp32", "--fast", "off"], "fast": ["--dtype", "bf16", "--fast", "compile"]}
HELD, BATCH = 40, 2
MAX_LENGTH = 256


def train(method: str, model: str, folder: Path, name: str, steps: int, rate: float) -> dict[str, float | str]:
    """One run of the command; returns its result."""
    words = [sys.executable, "-m", "training", method, "--base-model", model, *PATHS[name]]
    words += ["--data", str(folder / "train.jsonl"), "--validation-data", str(folder / "held.jsonl")]
    words += ["--output", str(folder / f"{name}-{steps}"), "--max-steps", str(steps), "--learning-rate", str(rate)]
    words += ["--batch-size", str(BATCH), "--max-length", str(MAX_LENGTH)]
    words += ["--schedule", "constant", "--warmup-ratio", "0", "--eval-every", str(steps), "--save-every", str(steps)]
    words += ["--kl-prompts", "0", "--sample-prompts", "0"] if method == "dpo" else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"the {name} run failed; its last lines say why")
    result: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return result


def changes(method: str, base: Base, checkpoint: str, groups: Sequence[Group]) -> np.ndarray:
    """What the checkpoint's adapter changes in each answer's log-probability, or in its score by the trained head."""
    if method == "reward":
        model = Score(base, checkpoint)
        on = model.score(groups)
        model.adapter = None
        off = model.score(groups)
    else:
        on = sequence_log_probs(base, base.attach(checkpoint), groups, 1.0)
        off = sequence_log_probs(base, None, groups, 1.0)
    return np.array([a - b for x, y in zip(on, off, strict=True) for a, b in zip(x, y, strict=True)])


def main() -> int:
    """Run the gate; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["dpo", "reward"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--many", type=int, default=100, help="0: only the few steps")
    options = parser.parse_args()
    found: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = first_rows(options.data, HELD + BATCH * max(options.few, options.many))
            write_rows(folder / "held.jsonl", rows[:HELD])
            write_rows(folder / "train.jsonl", rows[HELD:])
            base = load_base(options.model, "fp32", fast=False)
            groups, _ = encode_rankings(base, read_rankings(folder / "held.jsonl"), MAX_LENGTH)
            young = [
                changes(options.method, base, str(result["checkpoint"]), groups)
                for result in (train(options.method, options.model, folder, path, options.few, 1e-5) for path in PATHS)
            ]
            found["correlation"] = float(np.corrcoef(young[0], young[1])[0, 1])
            found["mean_change"] = float(np.abs(young[0]).mean())
            if options.many:
                losses = [
                    float(train(options.method, options.model, folder, path, options.many, 1e-4)["eval/loss"])
                    for path in PATHS
                ]
                found |= {"plain_loss": losses[0], "fast_loss": losses[1]}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"method": options.method} | {key: round(value, 5) for key, value in found.items()}))
    apart = abs(found.get("fast_loss", 0.0) - found.get("plain_loss", 0.0))
    return 0 if found["correlation"] > 0.99 and apart < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
