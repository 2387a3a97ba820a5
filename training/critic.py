"""The critic V(s) of PPO: a head on the policy's own hidden states, or on an adapter of its own on the same base."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.records import InputError
from training.base import Base
from training.config import PPOConfig
from training.packs import Pack
from training.reward_model import Score, is_checkpoint

ADAPTER = "critic"
"""The adapter's name on the base, and its folder in a checkpoint."""
HEAD = "value_head.safetensors"


class Critic:
    """V(s) of every state of a response; it is only read where the advantage has a use for it."""

    def __init__(self, base: Base, head: nn.Linear, own_adapter: bool) -> None:
        self.base, self.head = base, head.to(base.device)
        self.adapter = ADAPTER if own_adapter else None

    def __call__(self, pack: Pack, policy_hidden: Tensor) -> Tensor:
        """Values (N,) in fp32 before each response token, given the policy's hidden states (N, d) there."""
        if self.adapter is None:
            return self.head(policy_hidden.float()).squeeze(-1)
        with self.base.using(self.adapter):
            return self.head(self.base.read(pack)[pack.predictors].float()).squeeze(-1)

    def parameters(self) -> list[nn.Parameter]:
        """What it learns, in a fixed order."""
        own = self.base.adapter_parameters(self.adapter) if self.adapter else []
        return [*own, *self.head.parameters()]

    def save(self, folder: Path) -> None:
        """Put the critic into a policy's checkpoint."""
        save_file({name: p.detach().cpu() for name, p in self.head.state_dict().items()}, folder / HEAD)
        if self.adapter:
            (folder / ADAPTER).mkdir()
            self.base.save_adapter(self.adapter, folder / ADAPTER)


def load_critic(base: Base, config: PPOConfig, resumed: Path | None) -> Critic | None:
    """The critic as the config starts it, or that of the checkpoint that a run is `resumed` from; None without use."""
    if not config.uses_critic:
        return None
    own = config.value_model == "adapter"
    head = nn.Linear(base.hidden_size, 1)
    nn.init.zeros_(head.weight)  # V = 0 is right about nothing, but about nothing wrong: the returns are centred
    nn.init.zeros_(head.bias)
    parent = resumed or (config.from_checkpoint if config.value_start == "parent" else None)
    if parent and (Path(parent) / HEAD).exists() and (Path(parent) / ADAPTER).exists() == own:
        saved = load_file(Path(parent) / HEAD)
        head.load_state_dict({"bias": torch.zeros(1)} | saved)  # older checkpoints have no bias
        if own:
            base.load_adapter(ADAPTER, Path(parent) / ADAPTER)
    elif own and config.value_start == "reward-model":
        assert config.reward_model is not None
        if not is_checkpoint(config.reward_model):
            raise InputError(
                f"value_start reward-model copies an adapter of this base, and {config.reward_model} is a model of its "
                "own; use value_start zero"
            )
        model = Score(base, config.reward_model)
        mean, std = (0.0, 1.0) if config.normalise_rewards == "none" else (model.mean, model.std)
        head.weight.data.copy_(model.head.weight.cpu() / std)
        head.bias.data.fill_(-mean / std)
        base.load_adapter(ADAPTER, config.reward_model)
    elif own:
        base.new_adapter(ADAPTER, config)
    return Critic(base, head, own)
