"""One dataclass per method: the definition of every knob. Command line, form and docs are made from these."""

from training.config.common import DEFAULT_MODEL, PolicyConfig, TrainingConfig
from training.config.dpo import DPOConfig
from training.config.ppo import PPOConfig, server_address
from training.config.reward import RewardConfig
from training.config.sft import SFTConfig

METHODS: dict[str, type[TrainingConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
}

__all__ = [
    "DEFAULT_MODEL", "METHODS", "DPOConfig", "PPOConfig", "PolicyConfig", "RewardConfig", "SFTConfig", "TrainingConfig",
    "server_address",
]  # fmt: skip
