"""Knobs of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.common import PolicyConfig
from training.knobs import knob


@dataclass
class SFTConfig(PolicyConfig):
    """Supervised fine-tuning: imitate demonstrations; the loss falls on the assistant's tokens only."""

    batch_size: int = knob(8, "Demonstrations per optimiser step.", section="Length", minimum=1, common=True)
    learning_rate: float = knob(
        2e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
    sample_prompts: int = knob(
        0,
        "Prompts that the policy answers at intervals, for you to read: the same ones with the same random numbers, "
        "held-out ones first. 0: none, since in bf16 on a processor decoding keeps a second copy of the "
        "weights, which SFT goes without.",
        section="Evaluation", minimum=0, maximum=1000,
    )  # fmt: skip
