"""What the configs of all methods share."""

from __future__ import annotations

from dataclasses import dataclass

from training.knobs import checked, knob, knobs

DEFAULT_MODEL = "SmolLM2-135M-Instruct"


@dataclass
class TrainingConfig:
    """What every method has in common."""

    base_model: str = knob(
        DEFAULT_MODEL, "Model to start from: a hub name, a folder, or a .gguf file.", section="Files"
    )
    data: str = knob("", "Training data: .jsonl, .jsonl.gz, .parquet or .csv.", section="Files")
    validation_data: str | None = knob(None, "Data held out; without it a share of the prompts is.", section="Files")
    output: str = knob("", "The run folder that everything is written into.", section="Files")
    from_checkpoint: str | None = knob(None, "Checkpoint whose adapter the training continues.", section="Files")

    max_steps: int = knob(
        0, "Optimiser steps; 0 means: as many as the epochs take.", section="Length", minimum=0, common=True
    )
    epochs: float = knob(1.0, "Passes over the training data.", section="Length", minimum=0.01, common=True)
    batch_size: int = knob(8, "Rankings per optimiser step.", section="Length", minimum=1, common=True)
    learning_rate: float = knob(
        1e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
    max_length: int = knob(
        1024,
        "Longest prompt plus completion, in tokens. Longer prompts lose their oldest turns; what then still does not "
        "fit is left out, and counted.",
        section="Length",
        minimum=16,
    )
    seed: int = knob(0, "Everything random follows from it.", section="Length", minimum=0, maximum=2**31 - 1)

    schedule: str = knob(
        "cosine",
        "How the rate falls after the warm-up.",
        section="Optimisation",
        choices=("cosine", "linear", "constant"),
    )
    warmup_ratio: float = knob(
        0.05, "Share of the steps in which the rate rises from 0.", section="Optimisation", minimum=0, maximum=1
    )
    weight_decay: float = knob(0.0, "Decoupled weight decay of AdamW.", section="Optimisation", minimum=0)
    adam_beta1: float = knob(0.9, "Decay of Adam's mean.", section="Optimisation", minimum=0, maximum=0.9999)
    adam_beta2: float = knob(0.999, "Decay of Adam's variance.", section="Optimisation", minimum=0, maximum=0.99999)
    adam_epsilon: float = knob(1e-8, "Adam's epsilon.", section="Optimisation", minimum=0)
    max_grad_norm: float = knob(
        1.0, "Gradients are clipped to this norm; 0 means never.", section="Optimisation", minimum=0
    )
    tokens_per_forward: int = knob(
        1536, "Sequences are packed into forwards of at most this many tokens; less needs less memory.",
        section="Machine", minimum=16,
    )  # fmt: skip

    lora_rank: int = knob(16, "Rank r of the adapter.", section="LoRA", minimum=1, maximum=1024)
    lora_alpha: float = knob(32.0, "Scale: the update is alpha / r times BA.", section="LoRA", minimum=0)
    lora_dropout: float = knob(0.0, "Dropout on the adapter's input.", section="LoRA", minimum=0, maximum=0.99)
    lora_targets: str = knob(
        "all-linear",
        "Layers that get an adapter: all-linear, names with commas (q_proj,v_proj), or "
        "one regular expression for whole names (.*[qv]_proj).",
        section="LoRA",
    )
    use_rslora: bool = knob(
        False, "Scale by alpha / √r instead of alpha / r, so that a high rank keeps its step.", section="LoRA"
    )
    lora_layers: int = knob(
        0, "Only the last this many layers get an adapter, which is faster; 0 means: all.", section="LoRA", minimum=0
    )

    validation_fraction: float = knob(
        0.1, "Share of the prompts held out where no validation data is given.", section="Evaluation",
        minimum=0, maximum=0.9, common=True,
    )  # fmt: skip
    fold: int | None = knob(
        None, "Hold out this fold of round(1 / validation fraction) folds instead of the first.", section="Evaluation",
        minimum=0,
    )  # fmt: skip
    eval_every: int = knob(
        0, "Steps between evaluations; 0 means: ten times in the run.", section="Evaluation", minimum=0
    )
    save_every: int = knob(
        0, "Steps between checkpoints; 0 means: ten times in the run.", section="Evaluation", minimum=0
    )
    keep_checkpoints: int = knob(
        3, "How many of the newest checkpoints are kept; the best one is kept beside them.", section="Evaluation",
        minimum=1,
    )  # fmt: skip
    patience: int = knob(
        0, "Stop early after this many evaluations without a better one; 0 means: never.", section="Evaluation",
        minimum=0,
    )  # fmt: skip

    report_to: str = knob(
        "none",
        "Send the metrics to a tracker too. Its package must be installed; where they go is set as usual "
        "(TENSORBOARD_LOGGING_DIR, else the run folder; WANDB_PROJECT; trackio stays on this machine).",
        section="Evaluation",
        choices=("none", "tensorboard", "wandb", "trackio"),
    )

    dtype: str = knob(
        "auto", "Precision of the base; auto is bf16 where the processor is fast at it. Adapters are always fp32.",
        section="Machine", choices=("auto", "fp32", "bf16"),
    )  # fmt: skip
    device: str = knob("auto", "Where to compute: auto, cpu, cuda, cuda:1, mps.", section="Machine")
    num_threads: int = knob(
        0, "Processor threads of each process; 0 means: the cores, divided among the processes.", section="Machine",
        minimum=0,
    )  # fmt: skip
    shard_base: bool = knob(
        False, "Split the frozen base over the processes of the launch, for models that one device cannot hold.",
        section="Machine",
    )  # fmt: skip
    fast: str = knob(
        "auto",
        "How the base is read. off: the model's own layers and attention, plainly. eager: our attention, which never "
        "computes what no token may look at (CPU). compile: that, and the layers compiled, which takes half a minute "
        "the first time. auto: compile on a CPU where the run is long enough to pay for it.",
        section="Machine",
        choices=("auto", "compile", "eager", "off"),
    )
    gradient_checkpointing: bool = knob(
        False, "Compute each layer again in the backward pass instead of keeping its activations: less memory, slower.",
        section="Machine",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for item in knobs(type(self)):
            setattr(self, item.name, checked(item, getattr(self, item.name)))


@dataclass
class PolicyConfig(TrainingConfig):
    """What the methods share whose result answers: texts to read on the way, written to samples.jsonl."""

    sample_prompts: int = knob(
        3,
        "Prompts that the policy answers at intervals, for you to read: the same ones with the same random numbers, "
        "held-out ones first. 0: none.",
        section="Evaluation", minimum=0, maximum=1000,
    )  # fmt: skip
    sample_every: int = knob(
        0, "Steps between those answers; 0 means: ten times in the run.", section="Evaluation", minimum=0
    )
    sample_max_new_tokens: int = knob(64, "Longest of those answers, in tokens.", section="Evaluation", minimum=1)
