"""How fast and in how much memory our trainer does one fixed piece of work; `peer_speed` does it with TRL.

    python -m benchmarks.train reward|dpo --data PAIRS [--precompute] [--steps 12] [--batch 4] [--set KNOB=VALUE ...]
    python -m benchmarks.train ppo|rollout --data PROMPTS [--adapter] [--set KNOB=VALUE ...]

What runs is what `python -m training` runs: the method's own `train`, or the sampler. It prints one JSON line. Speeds
are of the steps after `--warm` (rollout: after the first round), but `s_per_update` is of all; `compile_s` is what
compiling took before the first step, and the warm ones beyond a steady step. `before_training_s` (a part of `total_s`)
loads the model, prepares the data and compiles, and with --precompute computes the reference's log-probabilities.

`rows`: what is trained on, after leaving out what is too long. `tokens`: of the timed pairs, each answer with its
prompt, as the peer reads them. `tokens_per_s`: what our model read a second, without padding; a shared prompt counts
once, and each forward counts. Of rollout it is what was sampled, a figure for each round. `matmul_share`: the
arithmetic of what was read (`watch.flops_per_token`) a second, over the fastest matrix product of this machine in the
same precision.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import training  # noqa: F401 - sets how idle threads wait, before torch is imported
from benchmarks import work
from benchmarks.agreement import random_checkpoint
from benchmarks.watch import Watch
from benchmarks.work import Result
from data.formats import read_prompts, read_rankings, write_rows
from training.base import Base
from training.batches import batch_of_step, encode_prompts, encode_rankings
from training.config import DEFAULT_MODEL, METHODS, DPOConfig, TrainingConfig
from training.dpo import DirectPreference
from training.knobs import from_dict
from training.models import load_base
from training.packs import Group, packs
from training.processes import set_threads
from training.reference import ReferenceLogProbs
from training.reward_model import new_head
from training.rollout import sample, uniforms

SEED = 0
SAMPLING_KNOBS = ("fast", "device")
"""Knobs of the trainer that sampling heeds; of `fast` only whether it is off."""
WORK_KNOBS = {
    "base_model", "data", "validation_data", "validation_fraction", "output", "seed", "max_steps", "batch_size",
    "max_length", "max_new_tokens", "ppo_epochs", "dtype", "num_threads",
}  # fmt: skip
"""Knobs that say what the work is; the JSON line and the steps that are timed go by the options."""


def measure_preferences(options: argparse.Namespace, folder: Path) -> Result:
    """The reward model or DPO on the first steps * batch rows."""
    rows = work.first_rows(options.data, options.steps * options.batch)
    # The trainer shuffles: the rows are written so that it meets them in the file's order.
    order = [i for s in range(options.steps) for i in batch_of_step(len(rows), options.batch, s + 1, SEED)]
    write_rows(folder / "rows.jsonl", [rows[order.index(i)] for i in range(len(rows))])
    config = configure(options, folder, data=str(folder / "rows.jsonl"), learning_rate=work.LEARNING_RATE)
    watch = Watch()
    known = folder / "reference.json"
    with patch("training.dpo.cache_file", lambda *_: known), watch.watching():
        if options.precompute:
            assert isinstance(config, DPOConfig)
            precompute(config, known)
        importlib.import_module(f"training.{options.method}").train(config)
    used = work.memory()
    base = base_of(config)
    groups, _ = encode_rankings(base, read_rankings(config.data), config.max_length)
    timed = [
        groups[i]
        for step in range(options.warm + 1, options.steps + 1)
        for i in batch_of_step(len(groups), config.batch_size, step, SEED)
    ]
    seconds = sum(watch.seconds(options.warm))
    pairs = [(g, c) for g in timed for c in g.comparisons if not c.tie]
    tokens = sum(2 * len(g.prompt) + len(g.responses[c.winner]) + len(g.responses[c.loser]) for g, c in pairs)
    return {
        "pairs_per_s": round(len(pairs) / seconds, 3),
        "rankings_per_s": round(len(timed) / seconds, 3),
        "rows": len(groups),
        "tokens": tokens,
        "compile_s": round(watch.compiling(options.warm), 2),
        "total_s": round(watch.finished - watch.started, 1),
        "before_training_s": round(watch.begun - watch.started, 1),
        **used,
        **watch.efficiency(base, timed, options.method == "dpo", options.warm),
        "losses": [round(row["loss"], 4) for row in watch.rows[:4]],
    }


def precompute(config: DPOConfig, file: Path) -> None:
    """Compute the reference's log-probabilities of all the data into the file that `reference_cache` reads."""
    set_threads(config.num_threads)
    base = base_of(config)
    groups, _ = encode_rankings(base, read_rankings(config.data), config.max_length)
    known = ReferenceLogProbs(file)
    objective = DirectPreference(base, config, None, known)
    for pack in packs(groups, config.tokens_per_forward, base.device):
        objective.reference_log_probs(pack)
    known.save()


def measure_ppo(options: argparse.Namespace, folder: Path) -> Result:
    """Updates on prompts that the policy answers in exactly so many tokens: the peer's sampling never ends early."""
    write_rows(folder / "prompts.jsonl", work.short_prompts(options.data, options.steps * options.batch))
    config = configure(
        options, folder, data=str(folder / "prompts.jsonl"), reward_model=str(folder / "reward"),
        ppo_epochs=work.EPOCHS, minibatches=1, max_new_tokens=options.response, temperature=work.TEMPERATURE,
        learning_rate=work.PPO_LEARNING_RATE,
    )  # fmt: skip
    base = base_of(config)
    random_checkpoint(base, folder / "reward", SEED, new_head(base.hidden_size, SEED))
    del base
    watch = Watch()
    with patch.object(Base, "stop_ids", frozenset()), watch.watching():
        importlib.import_module("training.ppo").train(config)
    used = work.memory()
    base = base_of(config)
    prompts, _ = encode_prompts(base, read_prompts(config.data), config.max_length)
    groups = [Group(group.prompt, [[0] * options.response]) for group in prompts]
    return {
        "batch": options.batch,
        "epochs": work.EPOCHS,
        "response": options.response,
        "s_per_update": [round(s, 2) for s in watch.seconds(0)],
        "sampled_tokens": [round(row["response/length"] * options.batch) for row in watch.rows],
        "compile_s": round(watch.compiling(options.warm), 2),
        **used,
        **watch.efficiency(base, groups, True, options.warm),
    }


def measure_rollout(options: argparse.Namespace, folder: Path) -> Result:
    """Sampling an answer of exactly so many tokens to each of a batch of prompts; one round before the timed ones."""
    write_rows(folder / "prompts.jsonl", work.short_prompts(options.data, options.batch))
    set_threads(options.threads)
    values = {"base_model": options.model, "dtype": options.dtype}
    base = base_of(from_dict(TrainingConfig, values | dict(options.set)))
    adapter = None
    if options.adapter:
        random_checkpoint(base, folder / "policy", SEED)
        adapter = base.attach(folder / "policy")
    prompts, _ = encode_prompts(base, read_prompts(folder / "prompts.jsonl"), options.max_length)
    watch, count = Watch(), len(prompts) * options.response
    with patch.object(Base, "stop_ids", frozenset()), watch.watching():
        watch.begun = time.perf_counter()
        for number in range(work.ROUNDS + 1):
            random = np.stack([uniforms(SEED, number, i, 0, options.response)[None] for i in range(len(prompts))])
            found = sample(base, [p.prompt for p in prompts], random, adapter=adapter, temperature=work.TEMPERATURE)
            watch.ends.append(time.perf_counter())
            assert sum(len(answer.ids) for answers in found for answer in answers) == count
    groups = [Group(group.prompt, [[0] * options.response]) for group in prompts]
    return {
        "batch": len(prompts),
        "new_tokens": options.response,
        "adapter": options.adapter,
        "compile_s": round(watch.compiling(1), 2),
        **work.memory(),
        **watch.efficiency(base, groups, True, 1),
        "tokens_per_s": [round(count / seconds, 1) for seconds in watch.seconds(1)],
    }


def base_of(config: TrainingConfig) -> Base:
    """The base, loaded as the trainer loads it."""
    return load_base(config.base_model, config.dtype, config.device, fast=config.fast != "off")


def configure(options: argparse.Namespace, folder: Path, **more: Any) -> Any:
    """The method's config: the peer's settings, nothing held out, no checkpoint before the end, then --set."""
    values = {
        "base_model": options.model, "output": str(folder / "run"), "max_steps": options.steps, "seed": SEED,
        "batch_size": options.batch, "max_length": options.max_length, "schedule": "constant", "warmup_ratio": 0.0,
        "lora_rank": 16, "lora_alpha": 32.0, "lora_dropout": 0.0, "lora_targets": "all-linear",
        "validation_fraction": 0.0, "eval_every": options.steps, "save_every": options.steps, "dtype": options.dtype,
        "num_threads": options.threads, **more,
    }  # fmt: skip
    if options.method in ("dpo", "ppo"):
        values["sample_prompts"] = 0  # the peer writes no texts to read
    if options.precompute:
        values["reference_cache"] = True
    return from_dict(METHODS[options.method], values | dict(options.set))


def setting(text: str) -> tuple[str, Any]:
    """KNOB=VALUE, the value as JSON where it is that, as text elsewhere."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: list[str] | None = None) -> int:
    """Measure, print one JSON line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", action="store_true", help="Rollout: sample with an adapter on the base")
    parser.add_argument(
        "--set", nargs="+", action="extend", type=setting, default=[], metavar="KNOB=VALUE", help="Knobs of the trainer"
    )
    options = work.parse(parser, arguments, DEFAULT_MODEL)
    names = dict(options.set).keys()
    if options.adapter and options.method != "rollout":
        parser.error(f"--adapter has no part in {options.method}")
    if options.method == "rollout" and names - set(SAMPLING_KNOBS):
        parser.error(f"of the trainer's knobs rollout heeds only {' and '.join(SAMPLING_KNOBS)}")
    if other := sorted(names & WORK_KNOBS):
        parser.error(f"--set {other[0]} would be other work than the line says; what can be changed has its own option")
    measure = {"ppo": measure_ppo, "rollout": measure_rollout}.get(options.method, measure_preferences)
    return work.report(options, measure, ours=True, set=dict(options.set))


if __name__ == "__main__":
    sys.exit(main())
