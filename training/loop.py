"""What the methods share: the policy's adapter, the optimiser, and the loop over batches of SFT, reward and DPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from data.preferences import split_by_prompt
from data.records import Demonstration, InputError, Prompt, Ranking
from training import processes
from training.base import Base
from training.batches import Fit, batch_of_step, steps_per_epoch
from training.config import RewardConfig, TrainingConfig
from training.log_probs import TokenLogProbs
from training.models import load_base
from training.packs import Group, Pack, packs
from training.run import Run, every
from training.run_folder import read_manifest
from training.samples import Samples
from training.sharding import shard

Record = TypeVar("Record", Prompt, Ranking, Demonstration)
Tally = Mapping[str, tuple[float, float]]
"""Metrics of one forward as (sum, count), so that they add up over forwards."""


class Objective(Protocol):
    """What a method learns: a loss of a pack, and how it is judged."""

    def denominator(self, groups: Sequence[Group]) -> float:
        """What the losses of a batch, summed, are divided by."""

    def loss(self, pack: Pack) -> tuple[Tensor, Tally]:
        """The pack's loss, summed and not yet divided, with its metrics."""

    def evaluate(self, groups: Sequence[Group]) -> dict[str, float]:
        """Metrics on held-out groups, the same in every process: each computes its share of them."""

    def state(self) -> dict[str, Any]:
        """What the objective must remember for a resume to repeat exactly; every process asks, the main one saves."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take that back."""


def load_policy(run: Run, config: TrainingConfig) -> tuple[Base, dict[str, Any] | None]:
    """The base with a trainable adapter "policy": new, a copy of a checkpoint's, or the one to resume.

    Returns (base, state of the step to resume from, or None).
    """
    processes.set_threads(config.num_threads)
    torch.manual_seed(config.seed)
    if processes.alone_by_mistake():
        run.say("accelerate launch started ONE process: without several GPUs it needs --multi_gpu to start more")
    run.say(f"loading {config.base_model}")
    base = load_base(config.base_model, config.dtype, config.device, fast=config.fast != "off")
    if config.shard_base:
        shard(base)
    if config.gradient_checkpointing:
        base.checkpoint_gradients()
    newest = run.newest() if run.resume else None
    if newest:
        base.load_adapter("policy", newest[0])
    elif config.from_checkpoint:
        base.load_adapter("policy", config.from_checkpoint)
    else:
        base.new_adapter("policy", config)
    if newest:
        return base, torch.load(newest[1], map_location="cpu", weights_only=True) | {"checkpoint": newest[0]}
    return base, None


WORTH_COMPILING = 1e13
"""Tokens learned from, times parameters: about two minutes of a 135M model on two cores; compiling then pays."""


def compile_if_it_pays(run: Run, config: TrainingConfig, base: Base, tokens: float) -> None:
    """Compile the base's layers if the config says so, or if it leaves it open and `tokens` will be learned from."""
    awkward = config.gradient_checkpointing or config.shard_base or config.lora_dropout > 0
    if config.fast == "compile" and awkward:
        run.say("fast compile does not go with gradient_checkpointing, shard_base or lora_dropout: not compiled")
    work = tokens * base.model.num_parameters()
    pays = config.fast == "auto" and base.device.type == "cpu" and work > WORTH_COMPILING
    if not awkward and (pays or config.fast == "compile"):
        run.say("compiling the layers")
        base.compile("policy", run.say)


def reference_adapter(base: Base, config: Any) -> str | None:
    """The adapter that the policy is tied to: the frozen parent checkpoint, or None for the plain base."""
    if config.reference == "parent" and config.from_checkpoint:
        return base.attach(config.from_checkpoint)
    return None


def token_log_probs(
    base: Base, hidden: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """(log p (N,) of `targets` (N,), entropies (N,) or zeros) from the hidden states (N, d) that predict them."""
    head = base.model.get_output_embeddings()
    return TokenLogProbs.apply(hidden, head.weight, head.bias, targets, temperature, entropy, 256)


def hold_out(
    config: TrainingConfig, read: Callable[[Path | str], Sequence[Record]]
) -> tuple[Sequence[Record], Sequence[Record]]:
    """(training records, held-out records): from the validation file, or a share of the prompts."""
    records = read(config.data)
    if config.validation_data:
        return records, read(config.validation_data)
    if config.fold is not None and not config.validation_fraction:
        raise InputError("fold needs a validation_fraction above 0")
    if config.fold is not None and config.fold >= round(1 / config.validation_fraction):
        raise InputError(
            f"fold {config.fold} does not exist: validation_fraction {config.validation_fraction:g} makes "
            f"{round(1 / config.validation_fraction)} folds, from 0"
        )
    return split_by_prompt(records, config.validation_fraction, config.seed, config.fold)


class Optimizer:
    """AdamW with warm-up, decay and clipping."""

    def __init__(self, config: TrainingConfig, groups: Sequence[tuple[Sequence[Tensor], float]], total: int) -> None:
        self.config, self.total = config, total
        self.rates = [rate for _, rate in groups]
        self.parameters = [p for parameters, _ in groups for p in parameters]
        self.adam = torch.optim.AdamW(
            [{"params": list(parameters), "lr": rate} for parameters, rate in groups],
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )

    def factor(self, step: int) -> float:
        """Share of the peak rate at step 1, 2, ..., total."""
        warmup = math.ceil(self.config.warmup_ratio * self.total)
        if step <= warmup:
            return step / warmup
        done = (step - 1 - warmup) / max(1, self.total - warmup)
        if self.config.schedule == "constant":
            return 1.0
        return 1 - done if self.config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def step(self, step: int) -> dict[str, float]:
        """Sum over the processes, clip, update, clear; returns the gradient's norm before clipping and the rate."""
        processes.add_up_gradients(self.parameters)
        limit = self.config.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if math.isfinite(norm):  # the caller stops the run on a bad norm; the weights must not be spoilt before
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.factor(step)
            self.adam.step()
        self.adam.zero_grad()
        return {"grad_norm": norm, "learning_rate": self.rates[0] * self.factor(step)}


def means(tallies: Iterable[Tally]) -> dict[str, float]:
    """Sums and counts of several forwards as means."""
    total: dict[str, list[float]] = {}
    for tally in tallies:
        for name, (value, count) in tally.items():
            entry = total.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += count
    return {name: value / count for name, (value, count) in total.items() if count}


def fit(
    run: Run,
    config: TrainingConfig,
    base: Base,
    objective: Objective,
    train: Sequence[Group],
    held: Sequence[Group],
    fitted: Fit,
    head: nn.Linear | None = None,
    resume: dict[str, Any] | None = None,
    manifest: Callable[[], dict[str, Any]] = dict,
    samples: Samples | None = None,
) -> dict[str, Any]:
    """Minimise the objective over the groups; writes metrics and checkpoints into the run.

    `fitted` says what became of the rows that `train` was made of. With several processes each computes its share of a
    batch, divided by what the whole batch amounts to, and the gradients are summed: the result is that of one process.
    Returns the run's result: last checkpoint, steps, and the held-out metrics.
    """
    if config.patience and not held:
        raise InputError("patience needs held-out data: name validation_data, or a validation_fraction above 0")
    only_head = isinstance(config, RewardConfig) and config.train == "head"
    base.set_trainable(*([] if only_head else ["policy"]))
    parameters: list[Tensor] = [] if only_head else [*base.adapter_parameters("policy")]
    parameters += [head.weight] if head is not None else []
    total = config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(len(train), config.batch_size)))
    optimizer = Optimizer(config, [(parameters, config.learning_rate)], total)
    mean_length = sum(group.length for group in train) / len(train)
    if not only_head:
        compile_if_it_pays(run, config, base, mean_length * min(config.batch_size, len(train)) * total)
    done = 0
    if resume:
        done = int(resume["step"])
        optimizer.adam.load_state_dict(resume["optimizer"])
        objective.load_state(resume["objective"])
    eval_every = config.eval_every or max(1, total // 10)
    save_every = config.save_every or max(1, total // 10)
    held_metrics: dict[str, float] = {}
    checkpoint = resume["checkpoint"] if resume else None

    def evaluate() -> dict[str, float]:
        base.set_dropout("policy", False)
        with torch.no_grad(), base.using("policy"):
            return {f"eval/{name}": value for name, value in objective.evaluate(held).items()} if held else {}

    def save(step: int) -> Path:
        state = {"step": step, "optimizer": optimizer.adam.state_dict(), "objective": objective.state()}
        return run.save_checkpoint(
            step,
            lambda folder: base.save_adapter("policy", folder, head),
            lambda path: torch.save(state, path),
            {
                "kind": "policy" if head is None else "reward",
                "base_model": {"name": base.name, "sha256": base.sha256()},
                "data": {"sha256": run.data_sha256, "groups": len(train), "comparisons": count_comparisons(train)}
                | fitted.as_dict(),
                "metrics": held_metrics,
            }
            | manifest(),
        )

    def read(step: int) -> None:
        if samples and samples.due(step, total):
            base.set_dropout("policy", False)
            samples.write(step)

    run.begin(done, total)
    if not done:
        if held:
            run.log(0, evaluate())
        read(0)
    for step in range(done + 1, total + 1):
        batch = [train[i] for i in batch_of_step(len(train), config.batch_size, step, config.seed)]
        denominator = objective.denominator(batch)
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        base.set_dropout("policy", True)
        results: list[tuple[float, Tally]] = []
        with base.using("policy"):
            for forward in packs(processes.share(batch), config.tokens_per_forward, base.device):
                loss, tally = objective.loss(forward)
                base.backward(loss / denominator)
                results.append((float(loss.detach()), tally))
        results = processes.gather(results)
        metrics = {"loss": sum(loss for loss, _ in results) / denominator} | means(tally for _, tally in results)
        metrics |= optimizer.step(step)
        metrics["epoch"] = step / steps_per_epoch(len(train), config.batch_size)
        wishes = run.listen()
        last = step == total or wishes.stop
        due = last or wishes.save or every(step, save_every)
        held_metrics = evaluate() if due or every(step, eval_every) else {}
        run.log(step, metrics | held_metrics)
        read(step)
        last = last or run.out_of_patience
        if last or due:
            checkpoint = save(step)
        if last:
            break
    if not held_metrics and checkpoint:  # resumed at its end
        held_metrics = read_manifest(checkpoint)["metrics"]
    return run.finish(checkpoint, held_metrics)


def count_comparisons(groups: Sequence[Group]) -> int:
    """Comparisons over all groups."""
    return sum(len(group.comparisons) for group in groups)
