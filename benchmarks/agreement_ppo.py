"""PPO's part of `benchmarks.agreement`: one rollout and its first four steps, ours beside those of TRL 1.12.0.

Ours is the real loop, `training.ppo.train`; what its functions are given and return is recorded. TRL's is the real
`PPOTrainer.train`, made to meet the same episodes (see `peer.py`). Where the two differ, a direct computation
reproduces the difference from its cause, so that nothing is left unexplained.

Value losses are switched off in the steps (coefficient 0): ours trains one trunk for policy and value, TRL two models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import TRL_PPO
from data.formats import write_rows
from data.records import InputError, Ranking
from training import policy_gradient, ppo
from training.advantages import Rollout
from training.base import Base
from training.config import PPOConfig

EPISODES, MAX_NEW_TOKENS = 16, 48
LAMBDA = 0.95
SETTINGS: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.0, "adam_epsilon": 1e-5}
KNOBS: dict[str, Any] = {"temperature": 0.7, "beta": 0.05, "gamma": 1.0, "missing_eos_penalty": 1.0, "minibatches": 2,
                         "ppo_epochs": 2, "clip_range": 0.2, "value_clip_range": 0.2}  # fmt: skip

Tables = dict[str, Tensor]
"""What TRL computed, by the names of its own variables; (B, T) for what belongs to a token."""


@dataclass
class Ours:
    """What our loop computed; (B, T) for what belongs to a token."""

    episodes: list[tuple[list[int], list[int]]]  # (prompt, response)
    rollout: Rollout
    score: Tensor  # (B,), less the penalty of a cut answer
    kl: Tensor
    rewards: Tensor
    advantages: Tensor  # not whitened
    policy_losses: Tensor  # (S,), one for each step
    value_losses: Tensor  # (S,)
    ratios: list[Tensor]  # [S] of the tokens of a minibatch


@dataclass
class Difference:
    """Two tensors that should be equal; or, where a fault of TRL's is known, differ by it (the next rows show how)."""

    what: str
    ours: Tensor
    theirs: Tensor
    known: bool = False

    @property
    def largest(self) -> float:
        """Largest absolute difference."""
        return float((self.ours - self.theirs).abs().max())


@contextmanager
def recording(*functions: tuple[Any, str]) -> Iterator[dict[str, list[tuple[tuple[Any, ...], Any]]]]:
    """Name -> (arguments, result) of every call of these functions of modules, inside the block."""
    calls: dict[str, list[tuple[tuple[Any, ...], Any]]] = {name: [] for _, name in functions}
    originals = [(module, name, getattr(module, name)) for module, name in functions]

    def recorder(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            calls[name].append((arguments, result))
            return result

        return call

    try:
        for module, name, function in originals:
            setattr(module, name, recorder(name, function))
        yield calls
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def train_ours(base: Base, folder: Path, starts: dict[str, Path], lam: float, threads: int) -> Ours:
    """One update of the real loop."""
    config = PPOConfig(
        **SETTINGS, **KNOBS, base_model=base.name, data=str(folder / "prompts.jsonl"), output=str(folder / f"λ={lam}"),
        from_checkpoint=str(starts["policy"]), reward_model=str(starts["reward"]), reference="base", max_steps=1,
        batch_size=EPISODES, max_new_tokens=MAX_NEW_TOKENS, lam=lam, value_coefficient=0.0, schedule="constant",
        warmup_ratio=0.0, max_grad_norm=0.0, dtype="fp32", device="cpu", tokens_per_forward=10**6, num_threads=threads,
    )  # fmt: skip
    losses = [(policy_gradient, name) for name in ("kl_shaped_rewards", "gae", "ppo_policy", "ppo_value")]
    with recording((ppo, "play"), *losses) as calls:
        ppo.train(config)
    rollout, minibatches = calls["play"][0][1]
    (paid, kl, *_), rewards = calls["kl_shaped_rewards"][0]
    episodes: dict[int, tuple[list[int], list[int]]] = {}
    for part in (part for minibatch in minibatches for part in minibatch.parts):
        for row, (number, k) in zip(part.rows.tolist(), part.pack.members, strict=True):
            group = part.pack.groups[number]
            episodes[row] = list(group.prompt), list(group.responses[k])
    return Ours(
        episodes=[episodes[row] for row in range(EPISODES)],
        rollout=rollout,
        score=paid.sum(1),
        kl=kl,
        rewards=rewards,
        advantages=calls["gae"][0][1][0],
        policy_losses=torch.stack([loss.detach().mean() for _, loss in calls["ppo_policy"]]),
        value_losses=torch.stack([loss.detach().mean() for _, loss in calls["ppo_value"]]),
        ratios=[arguments[0].detach() for arguments, _ in calls["ppo_policy"]],
    )


def compare(
    base: Base,
    pairs: Sequence[Ranking],
    starts: dict[str, Path],
    folder: Path,
    threads: int,
    run_peer: Callable[[dict[str, Any], str], dict[str, Any]],
) -> list[Difference]:
    """Every comparison, in the order in which they build on one another."""
    prompts = list({str(pair.prompt.messages): pair.prompt for pair in pairs}.values())[:EPISODES]
    if len(prompts) < EPISODES:
        raise InputError(f"PPO's comparison needs {EPISODES} different prompts; the pairs have {len(prompts)}")
    write_rows(folder / "prompts.jsonl", [{"prompt": list(prompt.messages)} for prompt in prompts])
    ours = {lam: train_ours(base, folder, starts, lam, threads) for lam in (LAMBDA, 1.0)}
    lengths, pad = ours[LAMBDA].rollout.lengths, int(base.tokenizer.pad_token_id)
    if lengths.min() == lengths.max():
        raise InputError("no answer ended before the others were cut; take another --data")
    if any(pad in response for _, response in ours[LAMBDA].episodes):
        raise InputError("the policy sampled the padding token, which TRL masks; take another --data")
    variants = [{"lam": LAMBDA, "padding": 0}, {"lam": LAMBDA, "padding": 1}, {"lam": 1.0, "padding": 0}]
    job = {"episodes": ours[LAMBDA].episodes, "variants": variants, "settings": SETTINGS, "knobs": KNOBS}
    job |= {"starts": {name: str(path) for name, path in starts.items()}, "threads": threads}
    answer = run_peer(job | {"method": "ppo", "model": base.folder, "pad": pad}, TRL_PPO)
    usual, padded, undiscounted = ({k: torch.tensor(v) for k, v in one.items()} for one in answer["variants"])
    return [*sampled(ours[LAMBDA], usual), *steps(ours[1.0], undiscounted), *ends(ours[LAMBDA], usual, padded)]


def sampled(ours: Ours, trl: Tables) -> list[Difference]:
    """What is the same whatever the advantages."""
    m = ours.rollout.here
    return [
        Difference("log π of the sampled tokens", ours.rollout.log_probs[m], trl["logprobs"][m]),
        Difference("log π_ref of the sampled tokens", ours.rollout.reference[m], trl["ref_logprobs"][m]),
        Difference("KL of each token (k1)", ours.kl[m], trl["kl"][m]),
        Difference("scores, less the penalty of a cut answer", ours.score, trl["scores"]),
        Difference("values", ours.rollout.values[m], trl["values"][m]),
    ]


def steps(ours: Ours, trl: Tables) -> list[Difference]:
    """λ = 1, where it makes no difference when the score is paid: advantages and the losses of four steps."""
    m = ours.rollout.here
    half = slice(EPISODES // 2)  # the first minibatch
    squares = 0.5 * (trl["values"] - trl["returns"]).square()[half]
    diluted = torch.tensor([m[part].numel() / m[part].sum() for part in (half, slice(EPISODES // 2, None))] * 2)
    squared = torch.stack([0.5 * ratio.log().square().mean() for ratio in ours.ratios])
    entropy = ours.rollout.entropies[half][m[half]].mean()
    return [
        Difference("λ = 1: advantages", ours.advantages[m], (trl["returns"] - trl["values"])[m]),
        Difference("λ = 1: whitened advantages", ours.rollout.advantages[m], trl["advantages"][m]),
        Difference("λ = 1: policy loss of the first step", ours.policy_losses[:1], trl["pg_loss"][:1]),
        Difference("λ = 1: policy losses of four steps", ours.policy_losses, trl["pg_loss"]),
        Difference("value loss of the first step", ours.value_losses[0], trl["vf_loss"][0], known=True),
        Difference("- over response tokens alone", ours.value_losses[0], squares[m[half]].mean()),
        Difference("- with the state after the end", squares[(m | after_end(ours))[half]].mean(), trl["vf_loss"][0]),
        Difference("entropy of the first step", entropy, trl["entropy"][0], known=True),
        Difference("- over response tokens alone", entropy, trl["entropy_of_responses"]),
        Difference("½ (log ratio)² of four steps", squared, trl["approxkl"], known=True),
        Difference("- over response tokens alone", squared, trl["approxkl"] * diluted),
    ]


def ends(ours: Ours, trl: Tables, padded: Tables) -> list[Difference]:
    """λ < 1: TRL pays the score one step after the end, where there is room, to a state that takes no action."""
    m, lengths = ours.rollout.here, ours.rollout.lengths
    width = m.shape[1]
    fills, early = lengths == width, m & (lengths < width)[:, None]
    raw, raw_padded = trl["returns"] - trl["values"], (padded["returns"] - padded["values"])[:, :width]
    rewards = ours.rewards.clone()
    rows = (lengths < width).nonzero()[:, 0]
    rewards[rows, lengths[rows] - 1] -= ours.score[rows]
    rewards[rows, lengths[rows]] += ours.score[rows]
    late, _ = policy_gradient.gae(rewards, trl["values"], (m | after_end(ours)).float(), KNOBS["gamma"], LAMBDA)
    defined = by_definition(ours.rewards, ours.rollout.values, lengths)
    name = f"λ = {LAMBDA}: advantages"
    return [
        Difference(f"{name}, answers that fill the batch", ours.advantages[fills], raw[fills]),
        Difference(f"{name}, answers that end before", ours.advantages[early], raw[early], known=True),
        Difference(
            "- ours, and the definition summed term by term",
            ours.advantages[ours.rollout.here],
            defined[ours.rollout.here],
        ),
        Difference("- TRL's, and our GAE with the score paid one state later", late[early], raw[early]),
        Difference("- TRL's, and TRL's with one more column of padding", raw[fills], raw_padded[fills], known=True),
    ]


def after_end(ours: Ours) -> Tensor:
    """(B, T): the position after an answer's last token, where the batch has room for it."""
    return torch.arange(ours.rollout.here.shape[1]) == ours.rollout.lengths[:, None]


def by_definition(rewards: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l} written out, arXiv:1506.02438, eq. 16: the last token ends the episode, V is 0 there."""
    gamma = KNOBS["gamma"]
    table = torch.zeros_like(values)
    for b, n in enumerate(lengths.tolist()):
        r, v = rewards[b].tolist(), [*values[b, :n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            table[b, t] = sum((gamma * LAMBDA) ** (s - t) * delta[s] for s in range(t, n))
    return table
