"""Knobs of direct preference optimisation, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass

from data.records import InputError
from training.config.common import PolicyConfig
from training.knobs import knob


@dataclass
class DPOConfig(PolicyConfig):
    """Direct preference optimisation: learn from the preferences themselves, no reward model needed."""

    learning_rate: float = knob(
        5e-5, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
    beta: float = knob(
        0.1,
        "Strength of the tie to the reference: higher stays closer to it.",
        section="DPO",
        minimum=1e-4,
        common=True,
    )
    loss: str = knob(
        "sigmoid",
        "What a comparison teaches: the likelihood of its outcome (sigmoid), the same corrected for a share of wrong "
        "labels (robust), a fixed distance and no further (ipo), or at least a fixed distance (hinge).",
        section="DPO",
        choices=("sigmoid", "robust", "ipo", "hinge"),
    )
    label_smoothing: float = knob(
        0.0,
        "Assumed share of wrong labels; sigmoid becomes more careful with it (conservative DPO), robust corrects "
        "for it.",
        section="DPO",
        minimum=0,
        maximum=0.49,
    )
    length_normalised: bool = knob(
        False,
        "Average log-probabilities over an answer's tokens instead of summing them, so that long answers do not count "
        "more. Beta must then be larger (arXiv:2411.15124 takes 5).",
        section="DPO",
    )
    ties: str = knob(
        "ignore",
        "What a tie teaches: nothing (ignore), rewards within a threshold (rao-kupper), or a tie as an outcome that is "
        "likeliest between equals (davidson).",
        section="DPO",
        choices=("ignore", "rao-kupper", "davidson"),
    )
    tie_threshold: float = knob(
        1.0986, "Rao-Kupper's τ: reward differences within ±τ are mostly ties; log 3 lets equals tie half the time.",
        section="DPO", minimum=1e-3, maximum=20,
    )  # fmt: skip
    tie_prevalence: float = knob(
        2.0, "Davidson's ν: two equal answers tie with probability ν / (ν + 2).", section="DPO",
        minimum=1e-3, maximum=1e3,
    )  # fmt: skip
    sft_coefficient: float = knob(
        0.0, "Also imitate the preferred answers: weight of their -log-probability per token.", section="DPO", minimum=0
    )
    reference: str = knob(
        "parent", "What the policy is tied to: the checkpoint it starts from, or the base.", section="DPO",
        choices=("parent", "base"),
    )  # fmt: skip
    reference_cache: bool = knob(
        False,
        "Keep the reference's log-probabilities on disk for later runs on the same data. Those may then begin a "
        "rounding error away from it.",
        section="DPO",
    )
    kl_prompts: int = knob(
        8, "Held-out prompts whose sampled answers measure the KL from the reference; 0 means: none.",
        section="Evaluation", minimum=0,
    )  # fmt: skip
    kl_max_new_tokens: int = knob(
        32, "Longest answer that is sampled for the KL, in tokens.", section="Evaluation", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise InputError(f"label_smoothing has no part in loss {self.loss}; leave it out, or choose robust")
        if self.loss == "robust" and not self.label_smoothing:
            raise InputError("loss robust needs a label_smoothing above 0: the share of labels that you take for wrong")
        if self.ties != "ignore" and self.loss != "sigmoid":
            raise InputError(f"loss {self.loss} has no place for ties; set ties to ignore, or loss to sigmoid")
        for name, model in (("tie_threshold", "rao-kupper"), ("tie_prevalence", "davidson")):
            if self.ties != model and getattr(self, name) != getattr(DPOConfig, name):
                raise InputError(f"{name} has no part in ties {self.ties}; leave it out, or set ties to {model}")
