"""Knobs of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.common import TrainingConfig
from training.knobs import knob


@dataclass
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning: imitate demonstrations; the loss falls on the assistant's tokens only."""

    batch_size: int = knob(8, "Demonstrations per optimiser step.", section="Length", minimum=1, common=True)
    learning_rate: float = knob(
        2e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
