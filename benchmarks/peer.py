"""TRL's side of `benchmarks.agreement`. Run with TRL on PYTHONPATH: python benchmarks/peer.py JOB.json

Reads token ids, weights and settings from the job, lets TRL's own trainer work, and writes what it computed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

Job = dict[str, Any]


class Steps(TrainerCallback):
    """Keeps the loss and the gradient's norm that the trainer logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.rows.append({"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])})


def load_start(model: torch.nn.Module, start: str) -> None:
    """Put the checkpoint's adapter (and head) into a PEFT model; fails where not every number arrived."""
    state = load_file(Path(start) / "adapter_model.safetensors")
    set_peft_model_state_dict(model, state)
    arrived = get_peft_model_state_dict(model)
    assert arrived.keys() == state.keys(), sorted(arrived.keys() ^ state.keys())
    assert all(torch.equal(arrived[key], state[key]) for key in state)


def preferences(job: Job) -> dict[str, Any]:
    """Reward model or DPO over the job's batches, in their order."""
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes token ids, as RewardTrainer does."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(job["start"])
    lora = LoraConfig.from_pretrained(job["start"])
    lora.inference_mode = False
    steps = Steps()
    common: dict[str, Any] = dict(
        job["settings"], output_dir=job["work"], per_device_train_batch_size=job["batch"], num_train_epochs=1,
        max_length=job["max_length"], lr_scheduler_type="constant", train_sampling_strategy="sequential",
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, bf16=False, use_cpu=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    rest: dict[str, Any] = {"processing_class": tokenizer, "peft_config": lora, "callbacks": [steps]}
    rows = job["sequences"]
    if job["method"] == "reward":
        data = Dataset.from_list([{f"{k}_ids": r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in rows])
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
        trainer = RewardTrainer(model=model, args=RewardConfig(**common), train_dataset=data, **rest)
    else:
        data = Dataset.from_list([{f"{k}_ids": r[k] for k in ("prompt", "chosen", "rejected")} for r in rows])
        config = DPOConfig(beta=job["beta"], loss_type=[job["loss"]], **common)
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        trainer = TokenisedDPOTrainer(model=model, args=config, train_dataset=data, **rest)
    load_start(trainer.model, job["start"])
    trainer.train()
    return {"steps": steps.rows}


def ppo(job: Job) -> dict[str, Any]:
    """One update of PPOTrainer for each variant, on the job's episodes instead of new samples."""
    return {"variants": [ppo_variant(job, variant["lam"], variant["padding"]) for variant in job["variants"]]}


def ppo_variant(job: Job, lam: float, padding: int) -> dict[str, Any]:
    """What `PPOTrainer.train` holds in its variables at the end of its first update.

    Three of the names it uses are replaced: sampling (by the job's episodes, with `padding` columns more than the
    longest), the loader (no shuffling) and the permutation of the minibatches (their order is kept).
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    pad, knobs = job["pad"], job["knobs"]
    width = max(len(response) for _, response in job["episodes"]) + padding
    responses = torch.tensor([response + [pad] * (width - len(response)) for _, response in job["episodes"]])
    found: dict[str, Any] = {}

    def episodes(model: Any, queries: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        query_responses = torch.cat([queries, responses], dim=1)
        logits = ppo_trainer.forward(model, query_responses, pad).logits[:, queries.shape[1] - 1 : -1]
        return query_responses, logits / (knobs["temperature"] + 1e-7)  # as generate's scores are

    def log_softmax(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if logits.requires_grad and "entropy_of_responses" not in found:
            log_p = logits.detach().log_softmax(-1)
            found["entropy_of_responses"] = float(-(log_p.exp() * log_p).sum(-1)[index != pad].mean())
        return selective_log_softmax(logits, index)

    class Watched(PPOTrainer):  # type: ignore[misc]
        def log(self, logs: dict[str, float], *_: Any) -> None:
            variables = sys._getframe(1).f_locals
            for name in ("logprobs", "ref_logprobs", "kl", "scores", "values", "advantages", "returns"):
                found[name] = variables[name].tolist()
            for name in ("pg_loss", "vf_loss", "approxkl", "entropy"):
                found[name] = variables[f"{name}_stats"].flatten().tolist()

    selective_log_softmax, loader = ppo_trainer.selective_log_softmax, ppo_trainer.DataLoader
    ppo_trainer.batch_generation, ppo_trainer.selective_log_softmax = episodes, log_softmax
    ppo_trainer.DataLoader = lambda *arguments, shuffle=False, **named: loader(*arguments, **named)
    ppo_trainer.np.random.permutation = ppo_trainer.np.arange
    tokenizer = AutoTokenizer.from_pretrained(job["starts"]["policy"], padding_side="left")
    assert tokenizer.pad_token_id == pad
    lora = LoraConfig.from_pretrained(job["starts"]["policy"])
    lora.inference_mode = False
    data = Dataset.from_list([{"input_ids": prompt} for prompt, _ in job["episodes"]])
    config = PPOConfig(
        **job["settings"], output_dir=job["work"], per_device_train_batch_size=len(data), total_episodes=len(data),
        gradient_accumulation_steps=1, num_mini_batches=knobs["minibatches"], num_ppo_epochs=knobs["ppo_epochs"],
        response_length=width, temperature=knobs["temperature"], kl_coef=knobs["beta"], gamma=knobs["gamma"], lam=lam,
        cliprange=knobs["clip_range"], cliprange_value=knobs["value_clip_range"], vf_coef=0.0, stop_token="eos",
        missing_eos_penalty=knobs["missing_eos_penalty"], local_rollout_forward_batch_size=len(data),
        num_sample_generations=0, lr_scheduler_type="constant", bf16=False, use_cpu=True, gradient_checkpointing=False,
        save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Watched(
        args=config, processing_class=tokenizer, ref_model=None, train_dataset=data, eval_dataset=data,
        peft_config=lora, model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_model=scorer(job["model"], job["starts"]["reward"], pad),
        value_model=scorer(job["model"], job["starts"]["value"], pad),
    )  # fmt: skip
    load_start(trainer.policy_model, job["starts"]["policy"])
    trainer.train()
    return found


def scorer(model: str, start: str, pad: int) -> torch.nn.Module:
    """A whole sequence classification model, as TRL wants it: the base with the checkpoint merged into it."""
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = pad
    merged = PeftModel.from_pretrained(base, start).merge_and_unload()
    head = load_file(Path(start) / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(merged.score.weight, head)
    return merged


def main() -> None:
    """Do the job."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    answer = ppo(job) if job["method"] == "ppo" else preferences(job)
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
