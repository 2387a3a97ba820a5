"""PPO on text, arXiv:1707.06347 with the reward of arXiv:2203.02155; every stage of the derivation is a setting.

Each update: sample answers from the current policy, reward them, charge each token its KL from the reference, estimate
advantages, then take several steps on that one rollout before the old policy is renewed. One base serves all: policy
and reward are adapters, the reference is the base (or the parent checkpoint), the critic a head (and an adapter).

Plain REINFORCE is `advantage return, policy_loss reinforce`, one epoch of one minibatch; RLOO and GRPO are `advantage
baseline` with a group's baseline; the defaults are PPO with GAE.

Left out here: top-k or nucleus sampling in rollouts and dropout, because both make old and new log-probabilities of the
same policy differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.formats import read_prompts
from data.records import Prompt
from training import policy_gradient, processes
from training.advantages import Episode, Rollout, Running, estimate_advantages, rollout_metrics
from training.base import Base
from training.batches import Fit, batch_of_step, encode_prompts, steps_per_epoch
from training.config import PPOConfig
from training.critic import Critic, load_critic
from training.loop import Optimizer, compile_if_it_pays, hold_out, load_policy, reference_adapter, token_log_probs
from training.packs import Group, Pack, packs
from training.rewards import Reward, by_model, load_reward
from training.rollout import Sample, sample, uniforms
from training.run import Run, every
from training.run_folder import read_manifest
from training.samples import Samples
from training.server import Server, sample_policy


@dataclass
class Models:
    """All that an episode meets: the base with the adapter "policy", the reference, the critic and the reward."""

    base: Base
    reference: str | None  # adapter; None is the plain base
    critic: Critic | None
    reward: Reward


@dataclass
class Part:
    """One forward of a minibatch."""

    pack: Pack
    rows: Tensor  # (M,) the rollout's rows of the pack's responses
    hidden: Tensor | None = None  # (N, d) that predict its tokens, with the graph they came from

    def read(self, base: Base) -> Tensor:
        """(N, d) by the policy; what was read when the rollout was scored serves once, as nothing has changed since."""
        hidden, self.hidden = self.hidden, None
        return base.read(self.pack)[self.pack.predictors] if hidden is None else hidden


class Minibatch(NamedTuple):
    """What one optimiser step learns from: this process's share of it, and the tokens of all of it."""

    parts: list[Part]
    tokens: int


def train(config: PPOConfig, resume: bool = False) -> dict[str, Any]:
    """Run PPO; returns the result that ends the command's output."""
    with Run(config, "ppo", resume) as run:
        records, held_records = hold_out(config, read_prompts)
        base, state = load_policy(run, config)
        room = config.max_length - config.max_new_tokens
        prompts, fitted = encode_prompts(base, records, room, run.say)
        run.say(fitted.describe("prompts", room))
        held = encode_prompts(base, held_records, room)[0] if held_records else []
        critic = load_critic(base, config, state["checkpoint"] if state else None)
        models = Models(base, reference_adapter(base, config), critic, load_reward(base, config))
        return _optimise(run, config, models, prompts, fitted, records, held, held_records, state)


def _optimise(
    run: Run,
    config: PPOConfig,
    models: Models,
    prompts: Sequence[Group],
    fitted: Fit,
    records: Sequence[Prompt],
    held: Sequence[Group],
    held_records: Sequence[Prompt],
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    base, critic = models.base, models.critic
    per_update = config.prompts_per_update
    total = config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(len(prompts), per_update)))
    learned = [(base.adapter_parameters("policy"), config.learning_rate)]
    if critic:
        learned.append((critic.parameters(), config.value_learning_rate))
    optimizer = Optimizer(config, learned, total * config.ppo_epochs * config.minibatches)
    episode = config.max_new_tokens / 2 + sum(len(group.prompt) for group in prompts) / len(prompts)
    compile_if_it_pays(run, config, base, episode * config.batch_size * config.ppo_epochs * total)
    running = Running(config.beta)
    metrics: dict[str, float] = {}
    done, checkpoint = 0, None
    if state:
        done, checkpoint = int(state["step"]), state["checkpoint"]
        optimizer.adam.load_state_dict(state["optimizer"])
        running = Running(**state["running"])
        metrics = read_manifest(checkpoint)["metrics"]  # what a run that is resumed at its end ends with

    def save(update: int) -> Path:
        def write(folder: Path) -> None:
            base.save_adapter("policy", folder)
            if critic:
                critic.save(folder)

        state = {"step": update, "optimizer": optimizer.adam.state_dict(), "running": running.state()}
        return run.save_checkpoint(
            update,
            write,
            lambda path: torch.save(state, path),
            {
                "kind": "policy",
                "base_model": {"name": base.name, "sha256": base.sha256()},
                "data": {"sha256": run.data_sha256, "groups": len(prompts)} | fitted.as_dict(),
                "reward_model": config.reward_model or config.reward_function,
                "metrics": metrics,
            },
        )

    run.begin(done, total)
    save_every, eval_every = (interval or max(1, total // 10) for interval in (config.save_every, config.eval_every))
    judges = {"score": models.reward.of}
    if config.judge_model:
        judges["judge_score"] = by_model(base, config.judge_model, config).of
    samples = Samples(run, base, config, chain(held_records, records), judges)
    if held and not done:
        run.log(0, _evaluate(models, config, held, held_records))
    if not done and samples.due(0, total):
        samples.write(0)
    for update in range(done + 1, total + 1):
        chosen = [prompts[i] for i in batch_of_step(len(prompts), per_update, update, config.seed)]
        critic_only = update <= config.value_warmup
        own = [critic.adapter] if critic and critic.adapter else []
        base.set_trainable(*(own if critic_only else ["policy", *own]))
        rollout, minibatches = play(models, config, chosen, records, update, config.minibatches, learn=True)
        beta = running.beta
        metrics = estimate_advantages(rollout, config, running, models.reward.mean, models.reward.std)
        metrics |= _learn(models, config, optimizer, rollout, minibatches, beta, update, critic_only)
        wishes = run.listen()
        last = update == total or wishes.stop
        due = last or wishes.save or every(update, save_every)
        if held and (due or every(update, eval_every)):
            metrics |= _evaluate(models, config, held, held_records)
        run.log(update, metrics)
        last = last or run.out_of_patience
        if samples.due(update, total):
            samples.write(update)
        if last or due:
            checkpoint = save(update)
        if last:
            break
    return run.finish(checkpoint, metrics)


# -- sampling and scoring ----------------------------------------------------------------------------------------------


def play(
    models: Models,
    config: PPOConfig,
    chosen: Sequence[Group],
    records: Sequence[Prompt],
    update: int,
    minibatches: int,
    learn: bool = False,
) -> tuple[Rollout, list[Minibatch]]:
    """Episodes of the current policy on the chosen prompts, and the forwards that learn from them if we are to `learn`.

    Minibatch m is a fixed slice of the prompts; each process plays its share of each slice and hears of the others'.
    """
    size = math.ceil(len(chosen) / min(minibatches, len(chosen)))
    slices = [processes.share(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    samples = iter(rollout(models.base, config, [group for own in slices for group in own], update))
    place = {group.index: number for number, group in enumerate(chosen)}
    found, episodes = list[Minibatch](), list[Episode]()
    for own in slices:
        played = [(group, next(samples)) for group in own]
        parts, mine = _read(models, config, played, records, place, keep=learn and not found and models.base.fast)
        everybody = [episode for of_group in processes.gather(mine) for episode in of_group]
        episodes += everybody
        found.append(Minibatch(parts, sum(len(episode.log_probs) for episode in everybody)))
    return Rollout(episodes, models.base.device), found


def rollout(base: Base, config: PPOConfig, prompts: Sequence[Group], update: int) -> list[list[Sample]]:
    """Answers of the current policy, `samples_per_prompt` for each prompt."""
    k = config.samples_per_prompt
    if config.sampler_url:  # even with no prompts: the processes go through it together
        with Server(config.sampler_url) as server:
            return sample_policy(
                server, base, "policy", Path(config.output) / "sampler" / f"policy-{update}",
                [p.prompt for p in prompts], [(config.seed, update, p.index) for p in prompts],
                samples_per_prompt=k, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            )  # fmt: skip
    if not prompts:
        return []
    random = np.stack(
        [
            np.stack([uniforms(config.seed, update, prompt.index, j, config.max_new_tokens) for j in range(k)])
            for prompt in prompts
        ]
    )
    return sample(base, [p.prompt for p in prompts], random, adapter="policy", temperature=config.temperature)


@torch.no_grad()
def _read(
    models: Models,
    config: PPOConfig,
    played: Sequence[tuple[Group, list[Sample]]],
    records: Sequence[Prompt],
    place: dict[int, int],
    keep: bool,
) -> tuple[list[Part], list[list[Episode]]]:
    """(forwards, the episodes of each group) of sampled answers, read now in the very layout that they are trained in
    later: the first ratio is exactly 1. `keep`: the first is read as if it were learned from, because it will be."""
    base = models.base
    groups = [Group(group.prompt, [s.ids for s in samples], index=group.index) for group, samples in played]
    ended = {group.index: [s.finish_reason == "stop" for s in samples] for group, samples in played}
    rewards = dict(zip((g.index for g in groups), models.reward.of(groups, records), strict=True))
    parts, episodes = list[Part](), dict[tuple[int, int], Episode]()
    for pack in packs(groups, config.tokens_per_forward, base.device):
        with base.using("policy"):
            with torch.set_grad_enabled(keep and not parts):
                graph = base.read(pack)[pack.predictors]
            hidden = graph.detach()
            log_probs, entropies = token_log_probs(base, hidden, pack.targets, config.temperature, entropy=True)
            values = models.critic(pack, hidden) if models.critic else torch.zeros_like(log_probs)
        with base.using(models.reference):
            hidden = base.read(pack)[pack.predictors]
            reference, _ = token_log_probs(base, hidden, pack.targets, config.temperature)
        members = [(pack.groups[number].index, k) for number, k in pack.members]
        sizes = [len(pack.groups[number].responses[k]) for number, k in pack.members]
        flat = [table.cpu().split(sizes) for table in (log_probs, reference, values, entropies)]
        for (index, k), pi, ref, v, h in zip(members, *flat, strict=True):
            episodes[index, k] = Episode(pi, ref, v, h, rewards[index][k], ended[index][k])
        rows = [place[index] * config.samples_per_prompt + k for index, k in members]
        kept = graph if keep and not parts else None
        parts.append(Part(pack, torch.tensor(rows, device=base.device), kept))
    return parts, [[episodes[group.index, k] for k in range(len(group.responses))] for group in groups]


def _evaluate(models: Models, config: PPOConfig, held: Sequence[Group], records: Sequence[Prompt]) -> dict[str, float]:
    """How the policy does on held-out prompts; the same random numbers every time."""
    rollout, _ = play(models, config, held, records, update=0, minibatches=1)
    return {f"eval/{name.rpartition('/')[2]}": value for name, value in rollout_metrics(rollout).items()}


# -- learning ----------------------------------------------------------------------------------------------------------


def _learn(
    models: Models,
    config: PPOConfig,
    optimizer: Optimizer,
    rollout: Rollout,
    minibatches: list[Minibatch],
    beta: float,
    update: int,
    critic_only: bool,
) -> dict[str, float]:
    """Several epochs of steps on one rollout; returns the mean metrics over its steps."""
    step = (update - 1) * config.ppo_epochs * config.minibatches
    collected: list[dict[str, float]] = []
    for minibatch in minibatches * config.ppo_epochs:
        sums: dict[str, float] = {}
        for part in minibatch.parts:
            with models.base.using("policy"):
                loss, numbers = _loss(models, config, rollout, part, beta, critic_only)
                models.base.backward(loss / minibatch.tokens)
            for name, value in (numbers | {"loss": float(loss.detach())}).items():
                sums[name] = sums.get(name, 0.0) + value / minibatch.tokens
        sums = processes.add_up(sums)
        if collected and config.stop_kl and sums["policy/approxkl"] > config.stop_kl:
            optimizer.adam.zero_grad()
            break
        collected.append(sums | optimizer.step(step + len(collected) + 1))
    means = {name: sum(row[name] for row in collected) / len(collected) for name in collected[0]}
    return means | {"policy/steps": len(collected)}


def _loss(
    models: Models, config: PPOConfig, rollout: Rollout, part: Part, beta: float, critic_only: bool
) -> tuple[Tensor, dict[str, float]]:
    """L = L_policy + c_v L_value - c_e H + β L_KL (arXiv:1707.06347, eq. 9), summed over the part's N tokens, and its
    terms. `critic_only` leaves L_value alone."""
    pack = part.pack
    old_log_probs, reference, old_values, advantages, returns = (
        rollout.tokens(table, part.rows)
        for table in (rollout.log_probs, rollout.reference, rollout.values, rollout.advantages, rollout.returns)
    )
    hidden = part.read(models.base)
    want_entropy = config.entropy_coefficient > 0
    log_probs, entropies = token_log_probs(models.base, hidden, pack.targets, config.temperature, want_entropy)
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    if config.policy_loss == "clip":
        policy = policy_gradient.ppo_policy(ratio, advantages, config.clip_range, config.dual_clip).sum()
    elif config.policy_loss == "importance":
        policy = policy_gradient.importance(ratio, advantages).sum()
    else:
        policy = policy_gradient.reinforce(log_probs, advantages).sum()
    loss = policy
    if want_entropy:
        loss = loss - config.entropy_coefficient * entropies.sum()
    if config.kl_placement == "loss":
        kl = policy_gradient.kl_loss(log_probs - reference, ratio, config.kl_estimator).sum()
        loss = loss + beta * kl
    if critic_only:
        loss = torch.zeros_like(loss)
    with torch.no_grad():
        numbers = {
            "policy/loss": float(policy),
            "policy/clipfrac": float(((ratio - 1).abs() > config.clip_range).sum()),
            "policy/approxkl": float(policy_gradient.k3(-log_ratio).sum()),
            "policy/ratio": float(ratio.sum()),
        }
    if config.kl_placement == "loss":
        numbers["policy/kl_loss"] = float(kl.detach())
    if models.critic:
        values = models.critic(pack, hidden)
        value = policy_gradient.ppo_value(values, old_values, returns, config.value_clip_range).sum()
        stuck = policy_gradient.value_clipped(values, old_values, returns, config.value_clip_range)
        loss = loss + config.value_coefficient * value
        numbers |= {"val/loss": float(value.detach()), "val/clipfrac": float(stuck.sum())}
    return loss, numbers
