"""Whether our losses are those of TRL: the same weights, batches and settings in fp32, compared step by step.

    python -m benchmarks.agreement [--data FILE] [--peer-folder DIR] [--only reward dpo-sigmoid ppo ...]

Ours is the real command, `python -m training reward|dpo`. The peer is TRL's own trainer, installed apart (never into
this environment) and run in a process of its own. It is given our token ids: what is compared is the mathematics. Both
begin with the same adapter, whose B is not zero, and the same head. PPO's part is in `agreement_ppo.py`.

Prints tables and one JSON line; exits with 1 where a loss or a gradient's norm differs by more than 1e-3 (relative;
PPO: absolute).
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import agreement_ppo
from benchmarks.peers import PEERS, ROOT, TRL, TRL_PPO, peer_environment
from data.formats import parse_prompt, ranking_row, read_rankings, read_rows, write_rows
from data.records import InputError, Ranking
from training.base import Base
from training.batches import batch_of_step, encode_rankings
from training.config import DEFAULT_MODEL, TrainingConfig
from training.files import write_json
from training.models import load_base
from training.processes import set_threads
from training.reward_model import new_head
from training.run_folder import read_metrics

Step = dict[str, float]
"""`loss` and `grad_norm` of one optimiser step."""
SEED_DATA = ROOT / "data" / "prompts" / "seed.jsonl"
TOLERANCE = 1e-3
STEPS, BATCH, MAX_LENGTH = 20, 2, 256
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "reward": ("reward", {}),
    "dpo-sigmoid": ("dpo", {"beta": 0.1, "loss": "sigmoid"}),
    "dpo-ipo": ("dpo", {"beta": 5.0, "loss": "ipo", "length_normalised": True}),  # TRL has no other
    "dpo-hinge": ("dpo", {"beta": 0.1, "loss": "hinge"}),
}


def main() -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="Preferences; without it pairs of seed completions (which is better is no matter)"
    )
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    parser.add_argument("--peer-folder", type=Path, default=PEERS, help="Where TRL is put")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "ppo"], default=[*CASES, "ppo"], help="Do these alone")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--num-threads", type=int, default=0)
    options = parser.parse_args()
    try:
        set_threads(options.num_threads)
        base = load_base(options.base_model, "fp32", "cpu")
        with tempfile.TemporaryDirectory() as name:
            found = compare(base, options, Path(name))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"tolerance": TOLERANCE, **found}))
    return int(any(max(one["worst"], one.get("worst_grad_norm", 0.0)) > TOLERANCE for one in found.values()))


def compare(base: Base, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every case's summary, by its name."""
    pairs = list(pick_pairs(base, options.data, max(options.steps * BATCH, 2 * agreement_ppo.EPISODES)))
    starts = start_checkpoints(base, folder)
    peers: Path = options.peer_folder
    found = {}
    for name in options.only:
        if name == "ppo":
            ask = functools.partial(run_peer, folder, peers)
            found[name] = print_values(agreement_ppo.compare(base, pairs, starts, folder, options.num_threads, ask))
        else:
            found[name] = print_steps(
                name, *losses(base, pairs[: options.steps * BATCH], starts, name, options, folder)
            )
    return found


# -- reward model and DPO ----------------------------------------------------------------------------------------------


def losses(
    base: Base, pairs: Sequence[Ranking], starts: dict[str, Path], name: str, options: argparse.Namespace, folder: Path
) -> tuple[list[Step], list[Step]]:
    """(ours, TRL's) of every step."""
    method, knobs = CASES[name]
    pairs = pairs[: options.steps * BATCH]
    start = starts["reward" if method == "reward" else "policy"]
    write_rows(folder / "pairs.jsonl", [ranking_row(pair) for pair in pairs])
    ours = train_ours(method, knobs, start, folder / name, options)
    groups, _ = encode_rankings(base, pairs, MAX_LENGTH)
    order = [i for step in range(options.steps) for i in batch_of_step(len(groups), BATCH, step + 1, seed=0)]
    sequences = [
        {
            "prompt": list(groups[i].prompt),
            "chosen": list(groups[i].responses[groups[i].comparisons[0].winner]),
            "rejected": list(groups[i].responses[groups[i].comparisons[0].loser]),
        }
        for i in order
    ]
    job = {
        "method": method, "model": base.folder, "start": str(start), "sequences": sequences, "batch": BATCH,
        "max_length": MAX_LENGTH, "settings": SETTINGS, "threads": options.num_threads, **knobs,
    }  # fmt: skip
    return ours, run_peer(folder, options.peer_folder, job, TRL)["steps"]


def pick_pairs(base: Base, path: str | None, count: int) -> Iterator[Ranking]:
    """The first `count` rankings of two completions that fit."""
    if path:
        rankings = [r for r in read_rankings(path) if len(r.completions) == 2 and r.ranks[0] != r.ranks[1]]
    else:
        rows = (row for _, row in read_rows(SEED_DATA))
        rankings = [Ranking(parse_prompt(row["prompt"]), tuple(row["completions"][:2]), (1, 2)) for row in rows]
    found = 0
    for ranking in rankings:
        try:
            _, fit = encode_rankings(base, [ranking], MAX_LENGTH)
        except InputError:  # too long
            continue
        if not fit.shortened:
            found += 1
            yield ranking
        if found == count:
            return
    raise InputError(f"{path}: {found} pairs of at most {MAX_LENGTH} tokens, but {count} are needed")


def start_checkpoints(base: Base, folder: Path) -> dict[str, Path]:
    """Checkpoints to begin with: adapters that change the base a little, and heads of our usual spread times ten.

    "policy" holds a value head, "value" is the same adapter with that head as a scorer, "reward" another adapter.
    """
    heads = {kind: new_head(base.hidden_size, seed) for seed, kind in enumerate(("reward", "value"))}
    found = {kind: folder / f"start-{kind}" for kind in ("policy", "value", "reward")}
    for kind, path in found.items():
        head = heads.get(kind)
        if head is not None:
            head.weight.data *= 10  # so that the first losses are not all ln 2
        random_checkpoint(base, path, int(kind == "reward"), head)
    save_file({"weight": heads["value"].weight.detach()}, found["policy"] / "value_head.safetensors")
    return found


def random_checkpoint(base: Base, path: Path, seed: int, head: nn.Linear | None = None) -> None:
    """Write a checkpoint with a random adapter whose B is not zero: a reward model's with `head`, else a policy's."""
    name = path.name
    base.new_adapter(name, TrainingConfig())
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in base.model.named_parameters():
        if f".{name}." in key:
            std = 0.01 if ".lora_B." in key else parameter.shape[1] ** -0.5
            nn.init.normal_(parameter, std=std, generator=generator)
    path.mkdir()
    base.save_adapter(name, path, head)
    identity = {"name": base.name, "sha256": base.sha256()}
    kind = "reward" if head is not None else "policy"
    write_json(path / "manifest.json", {"kind": kind, "method": "none", "step": 0, "base_model": identity})


def train_ours(
    method: str, knobs: dict[str, Any], start: Path, output: Path, options: argparse.Namespace
) -> list[Step]:
    """Loss and gradient norm of each step of the real command."""
    config = SETTINGS | knobs | {
        "base_model": options.base_model, "data": str(start.parent / "pairs.jsonl"), "output": str(output),
        "from_checkpoint": str(start), "validation_fraction": 0.0, "max_steps": options.steps, "batch_size": BATCH,
        "max_length": MAX_LENGTH, "schedule": "constant", "warmup_ratio": 0.0, "save_every": options.steps,
        "dtype": "fp32", "device": "cpu", "num_threads": options.num_threads,
    }  # fmt: skip
    if method == "dpo":
        config["reference"] = "base"
    write_json(output.with_suffix(".json"), config)
    words = [sys.executable, "-m", "training", method, "--config", str(output.with_suffix(".json"))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"our own run failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return [{"loss": row["loss"], "grad_norm": row["grad_norm"]} for row in read_metrics(output)]


def run_peer(folder: Path, peers: Path, job: dict[str, Any], version: str) -> dict[str, Any]:
    """What `benchmarks/peer.py` says of the job, run with that version of TRL in a process of its own."""
    write_json(folder / "job.json", job | {"work": str(folder), "answer": str(folder / "answer.json")})
    environment = peer_environment(peers, version)
    words = [sys.executable, str(ROOT / "benchmarks" / "peer.py"), str(folder / "job.json")]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the peer failed:\n{done.stderr[-3000:]}")
    return json.loads((folder / "answer.json").read_text())


def relative(ours: float, theirs: float) -> float:
    """|a - b| / max(|a|, |b|), and 0 for two zeros."""
    return abs(ours - theirs) / (max(abs(ours), abs(theirs)) or 1.0)


def print_steps(name: str, ours: list[Step], theirs: list[Step]) -> dict[str, Any]:
    """Print the table of a case; returns its summary."""
    print(f"\n{name}, TRL {TRL}")
    print("step        loss         TRL  difference   gradient norm       TRL  difference")
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        cells = [f"{a[k]:12.6f}{b[k]:12.6f}{relative(a[k], b[k]):12.1e}" for k in ("loss", "grad_norm")]
        print(f"{number:4d}{cells[0]}    {cells[1]}")
    worst = {k: max(relative(a[k], b[k]) for a, b in zip(ours, theirs, strict=True)) for k in ("loss", "grad_norm")}
    print(f"largest relative difference: {worst['loss']:.1e}, gradient norm {worst['grad_norm']:.1e}", flush=True)
    return {
        "trl": TRL, "steps": len(ours), "first_loss": ours[0]["loss"], "last_loss": ours[-1]["loss"],
        "worst": worst["loss"], "worst_grad_norm": worst["grad_norm"],
    }  # fmt: skip


def print_values(rows: list[agreement_ppo.Difference]) -> dict[str, Any]:
    """Print PPO's table; returns its summary."""
    print(f"\nppo, TRL {TRL_PPO}\nlargest absolute difference, of")
    for row in rows:
        print(f"{row.largest:10.1e}  {row.what}{'  (TRL is wrong here; see docs/agreement.md)' if row.known else ''}")
    return {
        "trl": TRL_PPO,
        "worst": max(row.largest for row in rows if not row.known),
        "known": {row.what: round(row.largest, 6) for row in rows if row.known},
    }


if __name__ == "__main__":
    sys.exit(main())
