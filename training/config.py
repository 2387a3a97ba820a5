"""One dataclass per method: the definition of every knob. Command line, form and docs are made from these."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from data.records import InputError
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
        1024, "Sequences are packed into forwards of at most this many tokens; less needs less memory.",
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
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning: imitate demonstrations; the loss falls on the assistant's tokens only."""

    batch_size: int = knob(8, "Demonstrations per optimiser step.", section="Length", minimum=1, common=True)
    learning_rate: float = knob(
        2e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )


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


@dataclass
class DPOConfig(TrainingConfig):
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


@dataclass
class PPOConfig(TrainingConfig):
    """Proximal policy optimisation: raise the expected reward of samples, staying near the reference."""

    reward_model: str | None = knob(
        None,
        "What rewards: a reward model's checkpoint, or a folder or hub name of any sequence classifier with one label.",
        section="Files",
    )
    reward_function: str | None = knob(
        None,
        "Instead of a reward model: module:function(prompts, completions) that returns one number each. With a third "
        "parameter it also gets every completion's tokens as texts, and may return a list of one number a token.",
        section="Files",
    )
    sampler_url: str | None = knob(
        None,
        "Sample from a server at this URL instead of here: vLLM (0.10.2 or later) that serves the base model with "
        "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and can read the run folder.",
        section="Files",
    )
    validation_data: str | None = knob(
        None, "Prompts held out: the policy answers them at every evaluation (eval/score, eval/kl).", section="Files"
    )
    validation_fraction: float = knob(
        0.0, "Share of the prompts held out; 0: PPO learns from all of them.", section="Evaluation",
        minimum=0, maximum=0.9,
    )  # fmt: skip
    sample_every: int = knob(
        0, "Updates between samples written to samples.jsonl, to be read by a person; 0 means: ten times in the run.",
        section="Evaluation", minimum=0,
    )  # fmt: skip
    max_steps: int = knob(
        0, "Updates (one rollout each); 0 means: as many as the epochs take.", section="Length", minimum=0, common=True
    )
    batch_size: int = knob(16, "Episodes per update.", section="Length", minimum=2, common=True)
    learning_rate: float = knob(
        1e-4, "Peak learning rate of Adam.", section="Optimisation", minimum=0, maximum=1, common=True
    )
    schedule: str = knob(
        "linear",
        "How the rate falls after the warm-up.",
        section="Optimisation",
        choices=("cosine", "linear", "constant"),
    )
    adam_epsilon: float = knob(1e-5, "Adam's epsilon.", section="Optimisation", minimum=0)

    samples_per_prompt: int = knob(1, "Episodes that share a prompt.", section="Rollout", minimum=1)
    max_new_tokens: int = knob(64, "Longest sampled answer, in tokens.", section="Rollout", minimum=1, common=True)
    temperature: float = knob(
        1.0, "Sampling temperature; the same everywhere in PPO.", section="Rollout", minimum=0.01, maximum=5
    )

    normalise_rewards: str = knob(
        "reward-model",
        "Scores minus a mean, over a deviation: those the reward model's checkpoint states (a reward function has "
        "none), those of all scores of the run so far (running), or not at all.",
        section="Reward", choices=("reward-model", "running", "none"),
    )  # fmt: skip
    reward_clip: float = knob(
        0.0, "Normalised rewards are held within ± this; 0 means: not clipped.", section="Reward", minimum=0
    )
    missing_eos_penalty: float = knob(
        0.0, "Taken off the reward of an answer that was cut at the longest length.", section="Reward", minimum=0
    )

    beta: float = knob(0.05, "Price of each nat of KL from the reference.", section="KL", minimum=0, common=True)
    reference: str = knob(
        "parent", "What the KL is measured to: the checkpoint the policy starts from, or the base.", section="KL",
        choices=("parent", "base"),
    )  # fmt: skip
    kl_placement: str = knob(
        "reward", "The KL is paid in each token's reward, or added to the loss.", section="KL",
        choices=("reward", "loss"),
    )  # fmt: skip
    kl_estimator: str = knob(
        "k1",
        "Of one token's KL, with l = log π − log π_ref: k1 = l, k2 = l²/2, k3 = e^−l − 1 + l. In the loss: k2 or k3.",
        section="KL", choices=("k1", "k2", "k3"),
    )  # fmt: skip
    kl_target: float = knob(
        0.0, "Beta is adapted until an answer's KL is this many nats; 0 means: beta stays.", section="KL", minimum=0
    )
    kl_horizon: float = knob(160, "Episodes in which an adaptive beta moves by up to a fifth.", section="KL", minimum=1)

    advantage: str = knob(
        "gae",
        "The weight of each token's gradient: the whole answer's return, the rewards from the token on "
        "(rewards-to-go), the return minus a baseline, or GAE.",
        section="Advantage", choices=("return", "rewards-to-go", "baseline", "gae"),
    )  # fmt: skip
    baseline: str = knob(
        "value",
        "For the advantage baseline: rewards-to-go minus the critic's V(s); or the answer's return minus the mean of "
        "the prompt's other answers (leave-one-out, as in RLOO); or its distance from the mean of the prompt's answers "
        "in their standard deviations (group-normalised, as in GRPO).",
        section="Advantage", choices=("value", "leave-one-out", "group-normalised"),
    )  # fmt: skip
    gamma: float = knob(1.0, "Discount of later rewards.", section="Advantage", minimum=0, maximum=1)
    lam: float = knob(
        0.95, "λ of GAE: 1 is return minus baseline, 0 one-step.", section="Advantage", minimum=0, maximum=1
    )
    whiten_advantages: bool = knob(
        True, "Scale the rollout's advantages to mean 0 and standard deviation 1.", section="Advantage"
    )

    ppo_epochs: int = knob(
        2,
        "How often each rollout is learned from before the old policy is renewed.",
        section="PPO",
        minimum=1,
        common=True,
    )
    minibatches: int = knob(2, "Optimiser steps per epoch over a rollout.", section="PPO", minimum=1)
    policy_loss: str = knob(
        "clip",
        "PPO's clipped ratio, the plain ratio (importance), or −Â log π, for one step a rollout (reinforce).",
        section="PPO", choices=("clip", "importance", "reinforce"),
    )  # fmt: skip
    clip_range: float = knob(0.2, "The ratio is clipped to 1 ± this.", section="PPO", minimum=0.001)
    dual_clip: float = knob(
        0.0, "Bound c > 1 on the ratio where the advantage is negative; 0 means: none.", section="PPO", minimum=0
    )
    entropy_coefficient: float = knob(0.0, "Weight of the entropy bonus.", section="PPO", minimum=0)
    stop_kl: float = knob(
        0.0,
        "No more steps on a rollout once the policy is this far from the one that sampled it, in nats a token; 0 "
        "means: never stop early.",
        section="PPO", minimum=0,
    )  # fmt: skip

    value_model: str = knob(
        "head", "V(s) is a head on the policy's own hidden states, or has an adapter of its own.", section="Critic",
        choices=("head", "adapter"),
    )  # fmt: skip
    value_start: str = knob(
        "parent",
        "The critic starts as the one of the checkpoint that the policy starts from (zero if that has none), at zero, "
        "or as a copy of the reward model.",
        section="Critic", choices=("parent", "zero", "reward-model"),
    )  # fmt: skip
    value_warmup: int = knob(0, "Updates at the start in which only the critic learns.", section="Critic", minimum=0)
    value_coefficient: float = knob(0.1, "Weight of the value loss.", section="Critic", minimum=0)
    value_clip_range: float = knob(
        0.2, "A new value may differ from the old by this; 0 means: no clipping.", section="Critic", minimum=0
    )
    value_learning_rate: float = knob(
        1e-3, "Learning rate of the critic: its head, and its adapter if it has one.", section="Critic",
        minimum=0, maximum=1,
    )  # fmt: skip

    @property
    def uses_critic(self) -> bool:
        """Whether the advantage needs V(s)."""
        return self.advantage == "gae" or (self.advantage == "baseline" and self.baseline == "value")

    @property
    def prompts_per_update(self) -> int:
        """Groups of episodes in one rollout."""
        return self.batch_size // self.samples_per_prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        grouped = self.advantage == "baseline" and self.baseline != "value"
        critic_settings = self.value_warmup or self.value_model == "adapter" or self.value_start == "reward-model"
        for wrong, message in [
            (
                self.reward_model and self.reward_function,
                "give either reward_model or reward_function, not both",
            ),
            (
                self.batch_size % self.samples_per_prompt,
                f"batch_size {self.batch_size} is not a multiple of samples_per_prompt {self.samples_per_prompt}",
            ),
            (
                self.minibatches > max(1, self.prompts_per_update),
                f"minibatches {self.minibatches} is more than the {self.prompts_per_update} prompts of an update; "
                "raise batch_size or lower minibatches",
            ),
            (
                self.baseline != "value" and self.advantage != "baseline",
                f"baseline {self.baseline} has no part in advantage {self.advantage}; set advantage to baseline",
            ),
            (
                grouped and self.samples_per_prompt < 2,
                f"baseline {self.baseline} compares the answers to one prompt; set samples_per_prompt to 2 or more",
            ),
            (
                critic_settings and not self.uses_critic,
                "value_model, value_start and value_warmup are about a critic, and this advantage has none; set "
                "advantage to gae, or to baseline with baseline value",
            ),
            (
                self.value_warmup and not self.value_coefficient,
                "value_warmup teaches nothing with a value_coefficient of 0; raise it",
            ),
            (
                self.value_start == "reward-model" and not (self.reward_model and self.value_model == "adapter"),
                "value_start reward-model copies the reward model's adapter; it needs a reward_model, and value_model "
                "adapter",
            ),
            (
                self.policy_loss == "reinforce" and self.ppo_epochs * self.minibatches > 1,
                "policy_loss reinforce is right for one step a rollout only, after which the samples are another "
                "policy's; set ppo_epochs and minibatches to 1, or policy_loss to importance or clip",
            ),
            (
                self.stop_kl and self.ppo_epochs * self.minibatches == 1,
                "stop_kl has nothing to stop with one step a rollout; raise ppo_epochs or minibatches, or set it to 0",
            ),
            (
                self.dual_clip and (self.policy_loss != "clip" or self.dual_clip <= 1),
                "dual_clip must be 0 (off) or above 1, and belongs to policy_loss clip",
            ),
            (
                self.kl_placement == "loss" and self.kl_estimator == "k1",
                "kl_estimator k1 cannot be a loss: its gradient is 0 on average; use k2 or k3, or kl_placement reward",
            ),
            (
                self.kl_target and not self.beta,
                "kl_target multiplies beta, and beta 0 stays 0; start from a beta above 0",
            ),
            (
                self.lora_dropout,
                "lora_dropout must be 0 for PPO: with dropout the ratio of the new to the old policy would be noise",
            ),
        ]:
            if wrong:
                raise InputError(message)
        if self.sampler_url:
            self.sampler_url = server_address(self.sampler_url)


METHODS: dict[str, type[TrainingConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
}


def server_address(url: str) -> str:
    """The URL of a server in its one form, without the /v1 that some write. Raises InputError where it is none."""
    if "@" in url:
        raise InputError("the server's URL must not hold a password; put its key into the environment (SERVER_API_KEY)")
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError as error:
        raise InputError(f"{url}: is no URL ({error}); write it as http://host:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"{url}: is no URL of a server; write it as http://host:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"
