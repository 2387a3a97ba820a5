"""PPO on text, arXiv:1707.06347 with the reward of arXiv:2203.02155.

Each update: sample answers from the current policy, score their last token with the reward model, charge each token its
KL from the reference, estimate advantages by GAE against the value head, then take several clipped steps on that one
rollout before the old policy is renewed. One base serves all: policy and reward are adapters, the reference is the base
(or the parent checkpoint), the value head V(s) reads the policy's own hidden states.

Left out here: top-k or nucleus sampling in rollouts and dropout, because both make old and new log-probabilities of the
same policy differ.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.formats import read_prompts
from data.records import InputError, Prompt
from training import policy_gradient
from training.base import Base
from training.batches import Group, Pack, batch_of_step, encode_prompts, packs, steps_per_epoch
from training.config import PPOConfig
from training.loop import Optimizer, load_policy, reference_adapter, token_log_probs
from training.reward import scores
from training.reward_model import Score
from training.rollout import Sample, decode, sample, uniforms
from training.run import Run, every

Reward = Callable[[list[Pack]], list[Tensor]]
"""Scores (M,) of every pack's responses."""


@dataclass
class Forward:
    """One pack of a rollout with what the old policy said of its N tokens."""

    pack: Pack
    log_probs: Tensor  # (N,) log π_old
    reference: Tensor  # (N,) log π_ref
    values: Tensor  # (N,) V_old
    entropies: Tensor  # (N,)
    scores: Tensor  # (M,) raw
    ended: Tensor  # (M,) 1 where the response came to its end token
    advantages: Tensor  # (N,)
    returns: Tensor  # (N,)


def train(config: PPOConfig, resume: bool = False) -> dict[str, Any]:
    """Run PPO; returns the result that ends the command's output."""
    with Run(config, "ppo", resume) as run:
        prompts = read_prompts(config.data)
        base, state = load_policy(run, config)
        groups, fitted = encode_prompts(base, prompts, config.max_length - config.max_new_tokens)
        run.say(fitted.describe("prompts", config.max_length - config.max_new_tokens))
        value_head = _value_head(base, state["checkpoint"] if state else config.from_checkpoint)
        reference = reference_adapter(base, config)
        reward, mean, std = _reward(base, config, prompts)
        return _optimise(run, config, base, groups, value_head, reference, reward, mean, std, state, prompts)


def _optimise(
    run: Run,
    config: PPOConfig,
    base: Base,
    prompts: Sequence[Group],
    value_head: nn.Linear,
    reference: str | None,
    reward: Reward,
    score_mean: float,
    score_std: float,
    state: dict[str, Any] | None,
    records: Sequence[Prompt],
) -> dict[str, Any]:
    base.set_trainable("policy")
    per_update = config.batch_size // config.samples_per_prompt
    total = config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(len(prompts), per_update)))
    optimizer = Optimizer(
        config,
        [
            (base.adapter_parameters("policy"), config.learning_rate),
            ([value_head.weight], config.value_learning_rate),
        ],
        total * config.ppo_epochs * config.minibatches,
    )
    done = 0
    if state:
        done = int(state["step"])
        optimizer.adam.load_state_dict(state["optimizer"])
    metrics: dict[str, float] = {}
    checkpoint = state["checkpoint"] if state else None

    def save(update: int) -> Path:
        def write(folder: Path) -> None:
            base.save_adapter("policy", folder)
            save_file({"weight": value_head.weight.detach().cpu()}, folder / "value_head.safetensors")

        return run.save_checkpoint(
            update,
            write,
            lambda path: torch.save({"step": update, "optimizer": optimizer.adam.state_dict()}, path),
            {
                "kind": "policy",
                "base_model": {"name": base.name, "sha256": base.sha256()},
                "data": {"sha256": run.data_sha256, "groups": len(prompts)},
                "reward_model": config.reward_model or config.reward_function,
                "metrics": metrics,
            },
        )

    run.begin(done, total)
    save_every = config.save_every or max(1, total // 10)
    sample_every = config.eval_every or max(1, total // 10)
    for update in range(done + 1, total + 1):
        chosen = [prompts[i] for i in batch_of_step(len(prompts), per_update, update, config.seed)]
        samples = rollout(base, config, chosen, update)
        minibatches = _forwards(base, config, chosen, samples, value_head, reference, reward)
        everything = [forward for minibatch in minibatches for forward in minibatch]
        metrics = _estimate_advantages(everything, config, score_mean, score_std)
        metrics |= _learn(base, config, optimizer, minibatches, value_head, (update - 1))
        run.log(update, metrics)
        if update == 1 or every(update, sample_every) or update == total:
            _write_samples(run, base, update, records, everything)
        last = update == total or run.stop_requested
        if last or every(update, save_every):
            checkpoint = save(update)
        if last:
            break
    run.result = {"checkpoint": str(checkpoint), "steps": run.step} | metrics
    return run.result


# -- sampling and scoring ----------------------------------------------------------------------------------------------


def rollout(base: Base, config: PPOConfig, prompts: Sequence[Group], update: int) -> list[list[Sample]]:
    """Answers of the current policy, `samples_per_prompt` for each prompt."""
    k = config.samples_per_prompt
    random = np.stack(
        [
            np.stack([uniforms(config.seed, update, prompt.index, j, config.max_new_tokens) for j in range(k)])
            for prompt in prompts
        ]
    )
    return sample(base, [p.prompt for p in prompts], random, adapter="policy", temperature=config.temperature)


@torch.no_grad()
def _forwards(
    base: Base,
    config: PPOConfig,
    prompts: Sequence[Group],
    samples: Sequence[Sequence[Sample]],
    value_head: nn.Linear,
    reference: str | None,
    reward: Reward,
) -> list[list[Forward]]:
    """The rollout as minibatches of packs, read now in the very layout it is trained in later: the first ratio is 1."""
    groups = [
        Group(prompt.prompt, [s.ids for s in found], index=prompt.index)
        for prompt, found in zip(prompts, samples, strict=True)
    ]
    ended = {id(g): [float(s.finish_reason == "stop") for s in f] for g, f in zip(groups, samples, strict=True)}
    size = math.ceil(len(groups) / min(config.minibatches, len(groups)))
    minibatches = []
    for start in range(0, len(groups), size):
        found = list(packs(groups[start : start + size], config.tokens_per_forward, base.device))
        forwards = []
        for pack, score in zip(found, reward(found), strict=True):
            with base.using("policy"):
                hidden = base.hidden(**pack.inputs())[0, pack.predictors]
                log_probs, entropies = token_log_probs(base, hidden, pack.targets, config.temperature, entropy=True)
                values = value_head(hidden.float()).squeeze(-1)
            with base.using(reference):
                hidden = base.hidden(**pack.inputs())[0, pack.predictors]
                reference_log_probs, _ = token_log_probs(base, hidden, pack.targets, config.temperature)
            stopped = torch.tensor([ended[id(pack.groups[g])][k] for g, k in pack.members], device=base.device)
            nothing = torch.zeros_like(values)
            forwards.append(
                Forward(pack, log_probs, reference_log_probs, values, entropies, score, stopped, nothing, nothing)
            )
        minibatches.append(forwards)
    return minibatches


def _reward(base: Base, config: PPOConfig, records: Sequence[Prompt]) -> tuple[Reward, float, float]:
    """(the reward of packs, mean and standard deviation that normalise it)."""
    if config.reward_model:
        model = Score(base, config.reward_model)

        def by_model(found: list[Pack]) -> list[Tensor]:
            with base.using(model.adapter):
                return [scores(base, model.head, pack) for pack in found]

        return by_model, model.mean, model.std
    if not config.reward_function:
        raise InputError(
            "PPO needs a reward: name a checkpoint with --reward-model, or --reward-function module:function"
        )
    function = _import(config.reward_function)

    def by_function(found: list[Pack]) -> list[Tensor]:
        results = []
        for pack in found:
            members = [pack.groups[g] for g, _ in pack.members]
            texts = [decode(base, pack.groups[g].responses[k]) for g, k in pack.members]
            values = list(function([list(records[m.index].messages) for m in members], texts))
            if len(values) != len(texts) or not all(math.isfinite(float(v)) for v in values):
                raise InputError(f"{config.reward_function} must return one finite number for each completion")
            results.append(torch.tensor([float(v) for v in values], device=base.device))
        return results

    return by_function, 0.0, 1.0


def _import(name: str) -> Callable[..., Sequence[float]]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward_function {name!r} cannot be imported ({error}); write module:function") from None


def _value_head(base: Base, checkpoint: Path | str | None) -> nn.Linear:
    """V(s) on the policy's last hidden state, from a checkpoint that has one, else zero: it then starts unbiased."""
    head = nn.Linear(base.hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    file = Path(checkpoint) / "value_head.safetensors" if checkpoint else None
    if file and file.exists():
        head.weight.data.copy_(load_file(file)["weight"])
    return head.to(base.device)


# -- advantages and steps ----------------------------------------------------------------------------------------------


def _estimate_advantages(
    forwards: list[Forward], config: PPOConfig, score_mean: float, score_std: float
) -> dict[str, float]:
    """Fill in advantages and returns of the whole rollout; returns its metrics."""
    lengths = torch.cat([f.pack.sum_per_response(torch.ones_like(f.values)) for f in forwards]).long()
    raw = torch.cat([f.scores for f in forwards])
    ended = torch.cat([f.ended for f in forwards])
    score = (raw - score_mean) / score_std - config.missing_eos_penalty * (1 - ended)
    log_probs, reference, values = (
        torch.cat([getattr(f, name) for f in forwards]) for name in ("log_probs", "reference", "values")
    )
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]

    def rows(flat: Tensor) -> Tensor:  # (all N,) -> (B, T): the tokens of a response stand together, in order
        table = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
        table[mask] = flat
        return table

    kl = rows(log_probs - reference)
    rewards = policy_gradient.kl_shaped_rewards(score, kl, lengths, config.beta)
    advantages, returns = policy_gradient.gae(rewards, rows(values), mask.float(), config.gamma, config.lam)
    flat_returns = returns[mask]
    variance = flat_returns.var()
    metrics = {
        "objective/score": float(raw.mean()),
        "objective/kl": float(kl.sum(1).mean()),
        "objective/rlhf_reward": float(rewards.sum(1).mean()),
        "objective/entropy": float(torch.cat([f.entropies for f in forwards]).mean()),
        "objective/kl_k3": float(rows(policy_gradient.k3(log_probs - reference)).sum(1).mean()),
        "val/explained_variance": float(1 - (flat_returns - values).var() / variance) if variance > 0 else 0.0,
        "val/mean": float(values.mean()),
        "response/length": float(lengths.float().mean()),
        "response/ended": float(ended.mean()),
    }
    if config.whiten_advantages:
        advantages = policy_gradient.whiten(advantages, mask.float())
    sizes = [len(f.values) for f in forwards]
    for forward, a, r in zip(forwards, advantages[mask].split(sizes), flat_returns.split(sizes), strict=True):
        forward.advantages, forward.returns = a, r
    return metrics


def _learn(
    base: Base,
    config: PPOConfig,
    optimizer: Optimizer,
    minibatches: list[list[Forward]],
    value_head: nn.Linear,
    updates_done: int,
) -> dict[str, float]:
    """Several epochs of clipped steps on one rollout; returns the mean metrics over its steps."""
    step = updates_done * config.ppo_epochs * config.minibatches
    collected: list[dict[str, float]] = []
    for _ in range(config.ppo_epochs):
        for minibatch in minibatches:
            tokens = sum(len(f.values) for f in minibatch)
            sums: dict[str, float] = {}
            for forward in minibatch:
                with base.using("policy"):
                    loss, parts = _loss(base, config, forward, value_head)
                    (loss / tokens).backward()
                for name, value in (parts | {"loss": float(loss.detach())}).items():
                    sums[name] = sums.get(name, 0.0) + value / tokens
            step += 1
            collected.append(sums | optimizer.step(step))
    names = collected[0]
    return {name: sum(row[name] for row in collected) / len(collected) for name in names}


def _loss(base: Base, config: PPOConfig, old: Forward, value_head: nn.Linear) -> tuple[Tensor, dict[str, float]]:
    """L = L_policy + c_v L_value - c_e H, summed over the pack's tokens (arXiv:1707.06347, eq. 9), and its parts."""
    hidden = base.hidden(**old.pack.inputs())[0, old.pack.predictors]
    want_entropy = config.entropy_coefficient > 0
    log_probs, entropies = token_log_probs(base, hidden, old.pack.targets, config.temperature, want_entropy)
    values = value_head(hidden.float()).squeeze(-1)
    log_ratio = log_probs - old.log_probs
    ratio = log_ratio.exp()
    policy = policy_gradient.ppo_policy(ratio, old.advantages, config.clip_range).sum()
    value = policy_gradient.ppo_value(values, old.values, old.returns, config.value_clip_range).sum()
    loss = policy + config.value_coefficient * value
    if want_entropy:
        loss = loss - config.entropy_coefficient * entropies.sum()
    with torch.no_grad():
        parts = {
            "policy/loss": float(policy),
            "val/loss": float(value),
            "policy/clipfrac": float(((ratio - 1).abs() > config.clip_range).sum()),
            "policy/approxkl": float(policy_gradient.k3(-log_ratio).sum()),
            "policy/ratio": float(ratio.sum()),
        }
    return loss, parts


def _write_samples(
    run: Run, base: Base, update: int, records: Sequence[Prompt], forwards: list[Forward], count: int = 4
) -> None:
    """What the policy says now, so that a person can read it."""
    rows = []
    for forward in forwards:
        for (member, k), score in zip(forward.pack.members, forward.scores.tolist(), strict=True):
            group = forward.pack.groups[member]
            rows.append(
                {
                    "step": update,
                    "prompt": list(records[group.index].messages),
                    "completion": decode(base, group.responses[k]),
                    "score": round(score, 4),
                }
            )
    with open(run.folder / "samples.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:count])
