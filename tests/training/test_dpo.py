"""DPO: its losses, what it starts from, and where it ends when the optimum is known."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from data.formats import write_rows
from tests import toy
from tests.training.conftest import last_json
from training.models import load_base


@pytest.mark.parametrize(("beta", "apart"), [(0.2, 0.5), (0.5, 0.1), (1.0, 0.02)])
def test_exact_preferences_lead_to_the_known_optimum(command, tmp_path, beta, apart):
    """Every ordered pair of answers, weighted by its Bradley-Terry probability: π* ∝ π_ref exp(r / β)."""
    model = toy.make_enumerable_model(tmp_path / "model")
    base = load_base(str(model), "fp32", "cpu")
    prompt = base.tokenizer("one")["input_ids"]
    answers = [a for a in toy.all_answers(base, 2) if len(a) == 2 and base.tokenizer.pad_token_id not in a]
    texts = [base.tokenizer.decode(a, skip_special_tokens=True) for a in answers]
    ends = ["stop" if a[-1] in base.stop_ids else "length" for a in answers]
    rewards = torch.rand(len(answers), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = [
        {
            "prompt": "one",
            "completions": [texts[i], texts[j]],
            "finish_reasons": [ends[i], ends[j]],
            "ranks": [1, 2],
            "weight": float(torch.sigmoid(rewards[i] - rewards[j])),
        }
        for i, j in permutations(range(len(answers)), 2)
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    done = command("dpo", "--base-model", model, "--data", "pairs.jsonl", "--output", "run", "--beta", beta,
                   "--dtype", "fp32", "--validation-fraction", 0, "--batch-size", len(rows), "--max-steps", 60,
                   "--learning-rate", 5e-3, "--lora-rank", 64, "--lora-alpha", 64, "--save-every", 60)  # fmt: skip
    reference = toy.log_policy(base, None, prompt, answers)
    policy = toy.log_policy(base, base.attach(tmp_path / last_json(done)["checkpoint"]), prompt, answers)
    optimum = toy.optimal_policy(reference, rewards, beta)
    before, after = toy.kl(reference, optimum), toy.kl(policy, optimum)
    print(f"beta {beta}: KL to the optimum {before:.4f} before, {after:.5f} after")
    assert before > apart
    assert after < 0.01
