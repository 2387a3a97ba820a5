"""The peer's side of the speed comparison: TRL's trainers and transformers' sampling, at their best on this machine.

Run with TRL on PYTHONPATH (1.12.0, the last with PPO, for ppo; none for rollout), as `benchmarks.compare` does:

    PYTHONPATH=FOLDER python -m benchmarks.peer_speed reward|dpo|ppo|rollout --model FOLDER --data FILE [--precompute]

The fields of the JSON line are those of `benchmarks.train`. `total_s` and `before_training_s` count from the call of
`train`: the model is loaded, the data tokenised and what --precompute asks for computed before. TRL drops rows that are
too long, where we shorten the prompt: `rows` and `tokens` say what was read. PPO's policy trains an adapter, the
reference is the policy without it, and reward and value are whole models, because TRL takes no others.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from benchmarks import work
from benchmarks.work import Result


class Clock(TrainerCallback):
    """When training begins and each step ends, and what is logged of the steps."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Training begins."""
        self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ends."""
        self.times.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Numbers of a step."""
        if logs and "loss" in logs:
            self.logs.append(logs)


def measure_preferences(options: argparse.Namespace, folder: Path) -> Result:
    """RewardTrainer or DPOTrainer on the first steps * batch rows, in their order."""
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rows = [
        {key: row[key] for key in ("prompt", "chosen", "rejected")}
        for row in work.first_rows(options.data, options.steps * options.batch)
    ]
    clock = Clock()
    common: dict[str, Any] = dict(
        shared(options, folder), max_steps=options.steps, max_length=options.max_length,
        learning_rate=work.LEARNING_RATE, per_device_train_batch_size=options.batch, lr_scheduler_type="constant",
        bf16=options.dtype == "bf16", train_sampling_strategy="sequential", logging_steps=1,
    )  # fmt: skip
    rest: dict[str, Any] = {
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer(options.model),
        "callbacks": [clock],
    }
    if options.method == "reward":
        rest |= {"model": scorer(options), "peft_config": adapter("SEQ_CLS", modules_to_save=["score"])}
        trainer = RewardTrainer(args=RewardConfig(**common), **rest)
    else:
        config = DPOConfig(beta=0.1, precompute_ref_log_probs=options.precompute, **common)
        trainer = DPOTrainer(model=causal(options), args=config, peft_config=adapter("CAUSAL_LM"), **rest)
    started = time.perf_counter()
    trainer.train()
    seconds = clock.times[-1] - clock.times[options.warm]
    read = [0.0, *(logs["num_tokens"] for logs in clock.logs)]
    kept = len(trainer.train_dataset)  # TRL drops what is longer than max_length; an epoch's last batch may be smaller
    epoch = [min(options.batch, kept - start) for start in range(0, kept, options.batch)]
    pairs = sum(epoch[step % len(epoch)] for step in range(options.warm, options.steps))
    return {
        "pairs_per_s": round(pairs / seconds, 3),
        "rows": kept,
        "tokens": round(read[-1] - read[options.warm]),
        "total_s": round(time.perf_counter() - started, 1),
        "before_training_s": round(clock.times[0] - started, 1),
        "losses": [round(float(logs["loss"]), 4) for logs in clock.logs[:4]],
        **work.memory(),
    }


def measure_ppo(options: argparse.Namespace, folder: Path) -> Result:
    """PPOTrainer on the first steps * batch short prompts, which it shuffles; it samples on to the full length."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = tokenizer(options.model, padding_side="left")
    rows = work.short_prompts(options.data, options.steps * options.batch)
    data = Dataset.from_list([{"input_ids": chat(words, row["prompt"])} for row in rows])
    clock = Clock()
    config = PPOConfig(
        **shared(options, folder), total_episodes=len(rows), per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=work.EPOCHS,
        response_length=options.response, local_rollout_forward_batch_size=options.batch,
        temperature=work.TEMPERATURE, learning_rate=work.PPO_LEARNING_RATE, stop_token="eos",
        num_sample_generations=0, bf16=False,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=words, model=causal(options), ref_model=None, reward_model=scorer(options),
        value_model=scorer(options), train_dataset=data, eval_dataset=data.select([0]), callbacks=[clock],
        peft_config=adapter("CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return {
        "batch": options.batch,
        "epochs": work.EPOCHS,
        "response": options.response,
        "s_per_update": [round(b - a, 2) for a, b in pairwise(clock.times)],
        **work.memory(),
    }


def measure_rollout(options: argparse.Namespace, folder: Path) -> Result:
    """transformers' `generate` on a batch of short prompts, so many tokens each; one round before the timed ones."""
    words = tokenizer(options.model, padding_side="left")
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in work.short_prompts(options.data, options.batch)]
    batch = words.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    model = causal(options).eval()
    times = [time.perf_counter()]
    for _ in range(work.ROUNDS + 1):
        found = model.generate(
            **batch.to(model.device), max_new_tokens=options.response, min_new_tokens=options.response, do_sample=True,
            temperature=work.TEMPERATURE, top_k=0, top_p=1.0, pad_token_id=words.pad_token_id,
        )  # fmt: skip
        times.append(time.perf_counter())
        assert found.shape == (options.batch, batch["input_ids"].shape[1] + options.response)
    count = options.batch * options.response
    return {
        "batch": options.batch,
        "new_tokens": options.response,
        "tokens_per_s": [round(count / (b - a), 1) for a, b in pairwise(times[1:])],
        **work.memory(),
    }


# -- parts -------------------------------------------------------------------------------------------------------------


def shared(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Settings of every trainer."""
    return {
        "output_dir": str(folder), "save_strategy": "no", "report_to": [], "disable_tqdm": True, "seed": 0,
        "gradient_checkpointing": False, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def tokenizer(model: str, **more: Any) -> Any:
    """The tokenizer, with a pad token that is not the end token."""
    found = AutoTokenizer.from_pretrained(model, **more)
    if found.pad_token_id in (None, found.eos_token_id):
        found.pad_token = found.unk_token
    return found


def chat(words: Any, text: str) -> list[int]:
    """The token ids of a prompt, up to where the answer begins."""
    messages = [{"role": "user", "content": text}]
    return words.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def causal(options: argparse.Namespace) -> Any:
    """The base model; trainers move it themselves, `generate` takes it as it is."""
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=work.DTYPES[options.dtype])
    return model.to("cuda") if torch.cuda.is_available() else model


def scorer(options: argparse.Namespace) -> Any:
    """The base model with a random head of one output."""
    dtype = work.DTYPES[options.dtype]
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=dtype)
    model.config.pad_token_id = tokenizer(options.model).pad_token_id
    return model


def adapter(task: str, **more: Any) -> LoraConfig:
    """The same LoRA as ours."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type=task, **more)


def main() -> int:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = work.parse(parser, None)
    torch.set_num_threads(options.threads)
    measure = {"ppo": measure_ppo, "rollout": measure_rollout}.get(options.method, measure_preferences)
    return work.report(options, measure, peer="transformers" if options.method == "rollout" else "trl")


if __name__ == "__main__":
    sys.exit(main())
