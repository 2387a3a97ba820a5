"""Knobs of proximal policy optimisation, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from data.records import InputError
from training.config.common import PolicyConfig
from training.knobs import knob


@dataclass
class PPOConfig(PolicyConfig):
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
    judge_model: str | None = knob(
        None,
        "A reward model that has no part in the training: it scores the sample texts, so that one sees whether the "
        "policy improves or only pleases its own reward model. A checkpoint, a folder or a hub name.",
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
                self.judge_model and self.judge_model == self.reward_model,
                "judge_model is the reward model itself; name one that was trained apart from it",
            ),
            (
                self.judge_model and self.sample_prompts < 10,
                "judge_model scores the sample texts, and fewer than 10 say little; set sample_prompts to 10 or more",
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
