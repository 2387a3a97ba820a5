"""The invariants of step 0 on the default model itself, in fp32: what a tiny random model could hide."""

import math
import signal

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from data.formats import parse_ranking, write_rows
from training import ppo
from training.base import Base
from training.batches import encode_rankings
from training.config import DEFAULT_MODEL, DPOConfig, PPOConfig, RewardConfig
from training.dpo import DirectPreference
from training.loop import token_log_probs
from training.models import load_base
from training.packs import packs, per_response
from training.reward_model import new_head, scores
from training.run_folder import read_metrics

ROWS = [
    {
        "prompt": "What is the capital of France?",
        "completions": ["Paris.", "I think that it is Lyon."],
        "ranks": [1, 2],
    },
    {"prompt": "Say hello.", "completions": ["Hello! How can I help you today?", "No."], "ranks": [1, 2]},
    {
        "prompt": [
            {"role": "user", "content": "One and one?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "And two more?"},
        ],
        "completions": ["Four.", "That makes"],
        "ranks": [1, 2],
        "finish_reasons": ["stop", "length"],
    },
]


@pytest.fixture(scope="module")
def real() -> Base:
    """The default model with an adapter "policy" that says something else than the base."""
    base = load_base(DEFAULT_MODEL, "fp32", "cpu")
    base.new_adapter("policy", RewardConfig(lora_rank=4))
    torch.manual_seed(0)
    for parameter in base.adapter_parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.02)
    return base


@torch.no_grad()
@pytest.mark.parametrize("adapter", [None, "policy"])
def test_padding_and_shared_prefixes_change_neither_log_probabilities_nor_scores(real, adapter):
    groups = list(encode_rankings(real, [parse_ranking(row) for row in ROWS], 200)[0])
    head = new_head(real.hidden_size, 0)
    head.weight.data *= 10  # scores that differ by about 1
    pairs = [(group.prompt, ids) for group in groups for ids in group.responses]
    rows = [torch.tensor(prompt + ids) for prompt, ids in pairs]
    pad = float(real.tokenizer.pad_token_id)

    def read(ids, mask):
        """Log-probabilities of all response tokens in a row, and the scores, of padded sequences (B, T)."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = real.hidden(ids, attention_mask=mask, position_ids=positions)
        log_probs = torch.log_softmax(real.logits(hidden), -1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        ends = [int(row.nonzero()[-1]) for row in mask]
        spans = [log_probs[b, end - len(pairs[b][1]) : end] for b, end in enumerate(ends)]
        return torch.cat(spans), torch.stack([head(hidden[b, end])[0] for b, end in enumerate(ends)])

    def packed(tokens):
        found = list(packs(groups, tokens, real.device))
        log_probs, score = {}, {}
        for forward in found:
            hidden = real.read(forward)
            values = token_log_probs(real, hidden[forward.predictors], forward.targets)[0]
            read_scores = scores(real, head, forward)
            for row, (number, k) in enumerate(forward.members):
                key = id(forward.groups[number]), k
                log_probs[key], score[key] = values[forward.response == row], read_scores[row]
        keys = [(id(group), k) for group in groups for k in range(len(group.responses))]
        return torch.cat([log_probs[key] for key in keys]), torch.stack([score[key] for key in keys])

    with real.using(adapter):
        alone = []
        for prompt, response in pairs:
            ids = torch.tensor([prompt + response])
            hidden = real.hidden(ids)[0]
            log_probs = torch.log_softmax(real.logits(hidden[len(prompt) - 1 : -1]), -1)
            alone.append((log_probs.gather(1, torch.tensor(response)[:, None])[:, 0], head(hidden[-1])))
        expected = torch.cat([log_probs for log_probs, _ in alone]), torch.cat([score for _, score in alone])
        layouts = {
            "one row of everything": packed(10_000),
            "a row for each prompt": packed(1),
        }
        for side in ("left", "right"):
            ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=side)
            mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
            layouts[f"padded on the {side}"] = read(ids, mask)
        singly = per_response(groups, 1, real.device, lambda pack: scores(real, head, pack))
    assert expected[1].std() > 0.1
    for name, (log_probs, score) in layouts.items():
        torch.testing.assert_close(log_probs, expected[0], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(score, expected[1], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(torch.tensor([s for some in singly for s in some]), expected[1], rtol=0, atol=1e-4)


def test_a_policy_that_starts_as_the_reference_has_no_kl_and_ratios_of_one(tmp_path, monkeypatch):
    """PPO's first step with samples of the model itself; the critic has an adapter of its own."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # a run in this process leaves pytest its signals
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Say hello."}, {"prompt": "What is the capital of France?"}])
    (tmp_path / "real_reward.py").write_text(
        "def lengths(prompts, completions):\n    return [*map(len, completions)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ppo.train(
        PPOConfig(
            data=str(tmp_path / "prompts.jsonl"), output=str(tmp_path / "run"), dtype="fp32", device="cpu",
            reward_function="real_reward:lengths", normalise_rewards="running", batch_size=4, samples_per_prompt=2,
            max_new_tokens=6, lora_layers=2, value_model="adapter", minibatches=1, ppo_epochs=1, max_steps=1,
        )
    )  # fmt: skip
    (row,) = read_metrics(tmp_path / "run")
    assert row["policy/ratio"] == 1
    assert row["policy/approxkl"] == row["policy/clipfrac"] == 0
    assert row["objective/kl"] == row["objective/kl_k3"] == 0
    assert row["objective/score"] > 0


def test_dpo_begins_at_log_two_and_at_no_kl(real, tmp_path):
    """The policy is a copy of its parent: exactly so in one layout, to rounding where the reference was kept."""
    groups, _ = encode_rankings(real, [parse_ranking(row) for row in ROWS], 200)
    real.save_adapter("policy", tmp_path)
    together = DPOConfig(kl_prompts=2, kl_max_new_tokens=6)
    objective = DirectPreference(real, together, real.attach(tmp_path))
    with torch.no_grad(), real.using("policy"):
        exact = objective.evaluate(groups)
        singly = DirectPreference(real, DPOConfig(tokens_per_forward=16, kl_prompts=0), None, objective.known)
        kept = singly.evaluate(groups)
    assert exact["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert exact["kl"] == exact["rewards/margins"] == 0
    assert kept["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert "kl" not in kept
