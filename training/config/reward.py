"""Knobs of the reward model, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass

from data.records import InputError
from training.config.common import TrainingConfig
from training.knobs import knob


@dataclass
class RewardConfig(TrainingConfig):
    """Reward model: one score at the last token, fitted to preferences by the likelihood of pairs or whole rankings."""

    learning_rate: float = knob(
        1e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
    train: str = knob(
        "adapter",
        "What learns: the adapter and the score's head, or the head alone. Then an answer is read once, not again "
        "at each epoch, which is faster, for a weaker model.",
        section="Reward model",
        choices=("adapter", "head"),
    )
    loss: str = knob(
        "bradley-terry",
        "What the scores explain: who wins each pair of a ranking (bradley-terry), or the whole order, best answer "
        "first (plackett-luce). For pairs they are the same.",
        section="Reward model",
        choices=("bradley-terry", "plackett-luce"),
    )
    ties: str = knob(
        "half",
        "What a tie teaches: half a win each way, a likelihood of its own (Rao-Kupper, Davidson), or nothing.",
        section="Reward model",
        choices=("half", "rao-kupper", "davidson", "ignore"),
        common=True,
    )
    tie_threshold: float = knob(
        0.5, "Rao-Kupper's τ: score differences within ±τ are mostly ties.", section="Reward model",
        minimum=1e-3, maximum=20,
    )  # fmt: skip
    tie_prevalence: float = knob(
        1.0, "Davidson's ν: two equal answers tie with probability ν / (ν + 2).", section="Reward model",
        minimum=1e-3, maximum=1e3,
    )  # fmt: skip
    use_margin: bool = knob(
        False, "Ask for a score difference of at least the stated strength of preference.", section="Reward model"
    )
    label_smoothing: float = knob(
        0.0, "Assumed share of comparisons that are labelled the wrong way round.", section="Reward model",
        minimum=0, maximum=0.49,
    )  # fmt: skip
    center_coefficient: float = knob(
        0.0,
        "Weight of the squared sum of a pair's scores, which keeps scores around 0.",
        section="Reward model",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "plackett-luce":
            if self.ties not in ("half", "ignore"):
                raise InputError(f"ties {self.ties} is a model of pairs; with plackett-luce choose half or ignore")
            if self.use_margin or self.label_smoothing:
                name = "use_margin" if self.use_margin else "label_smoothing"
                raise InputError(f"{name} is for pairs; leave it out with plackett-luce, or choose bradley-terry")
