"""SFT: the loss falls on what the assistant says, and demonstrations that share a forward do not see each other."""

from __future__ import annotations

import pytest
import torch

from data.formats import parse_demonstration, write_rows
from tests.training.conftest import last_json
from training.batches import encode_demonstrations
from training.config import SFTConfig
from training.packs import common_start, packs
from training.run_folder import read_metrics
from training.sft import Imitation

TALKS = [
    [("user", "Hello"), ("assistant", "Hi, what is it?"), ("user", "A number."), ("assistant", "Seven.")],
    [("user", "One and one?"), ("assistant", "Two, and I am sure of that.")],
    [("system", "Be short."), ("user", "Why?"), ("assistant", "Because.")],
]


def rows():
    return [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in TALKS]


@torch.no_grad()
def by_itself(base, talk):
    """-log p of every assistant token of one conversation, its end tokens included, from the whole model's logits."""
    found = []
    messages = [{"role": role, "content": text} for role, text in talk]
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = base.tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tokenize=False)
            prompt = base.tokenizer(before, add_special_tokens=False)["input_ids"]
            answer = base.tokenizer(message["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
            log_p = torch.log_softmax(base.model(torch.tensor([prompt + answer])).logits[0].double(), -1)
            found += (-log_p[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]).tolist()
    return found


@pytest.mark.parametrize("room", [16, 100, 1000])
def test_packed_or_not_the_loss_is_the_mean_over_assistant_tokens_alone(base, room):
    expected = [value for talk in TALKS for value in by_itself(base, talk)]
    groups, _ = encode_demonstrations(base, [parse_demonstration(row) for row in rows()], 200)
    objective = Imitation(base, SFTConfig(tokens_per_forward=room))
    assert objective.denominator(groups) == len(expected)
    with torch.no_grad():
        assert objective.evaluate(groups)["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
        tallies = [objective.loss(forward)[1] for forward in packs(groups, room, base.device)]
    assert sum(tally["tokens"][0] for tally in tallies) == len(expected)
    fill = [tally["packing/fill"][0] for tally in tallies]
    if room == 16:
        assert fill == [1, 1, 1], "each is longer than the room, and has a forward of its own"
    if room == 1000:
        shared = common_start([group.prompt for group in groups])
        assert shared > 0
        length = sum(group.length for group in groups) - shared * (len(groups) - 1)
        assert fill == [length / 1000], "one forward holds them all, and what they begin with once"


def test_the_run_says_how_full_its_forwards_are(command, tiny_model, tmp_path):
    write_rows(tmp_path / "talks.jsonl", rows())
    done = command("sft", "--base-model", tiny_model, "--data", "talks.jsonl", "--output", "run", "--dtype", "fp32",
                   "--max-steps", 8, "--learning-rate", "1e-2", "--validation-fraction", 0.3,
                   "--tokens-per-forward", 300)  # fmt: skip
    steps = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert all(0 < row["packing/fill"] <= 1 and row["tokens"] > 0 for row in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert last_json(done)["eval/loss"] > 0
