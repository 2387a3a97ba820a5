"""DPO: its losses, what it starts from, and where it ends when the optimum is known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import permutations

import pytest
import torch

from data.formats import write_rows
from data.preferences import Comparison
from data.records import InputError
from tests import toy
from tests.training.conftest import ROOT, last_json
from training import losses
from training.config import DPOConfig
from training.dpo import DirectPreference, pair_losses
from training.log_probs import kl_per_token
from training.models import load_base
from training.packs import Group, pack
from training.reference import ReferenceLogProbs
from training.run_folder import read_metrics

D = torch.tensor([-3.0, -0.2, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
NO_TIE, TIE = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def strengths(d, beta):
    """λ of winner and loser, arXiv:2409.17431: e to the implicit reward, which counts only as a difference."""
    return math.exp(beta * d), 1.0


def rao_kupper(d, tie):
    (win, lose), nu = strengths(d, 0.5), math.exp(0.8)
    one, other = win / (win + nu * lose), lose / (lose + nu * win)
    return -math.log((nu**2 - 1) * one * other if tie else one)


def davidson(d, tie):
    (win, lose), nu = strengths(d, 0.5), 0.7  # the paper's ν is half of the prevalence
    undecided = 2 * nu * math.sqrt(win * lose)
    return -math.log((undecided if tie else win) / (win + lose + undecided))


CASES = [
    ({}, lambda d, _: -log_sigmoid(0.5 * d)),
    ({"label_smoothing": 0.1}, lambda d, _: -0.9 * log_sigmoid(0.5 * d) - 0.1 * log_sigmoid(-0.5 * d)),
    (
        {"loss": "robust", "label_smoothing": 0.1},
        lambda d, _: (-0.9 * log_sigmoid(0.5 * d) + 0.1 * log_sigmoid(-0.5 * d)) / 0.8,
    ),
    ({"loss": "ipo"}, lambda d, _: (d - 1.0) ** 2),
    ({"loss": "hinge"}, lambda d, _: max(0.0, 1 - 0.5 * d)),
    ({"ties": "rao-kupper", "tie_threshold": 0.8}, rao_kupper),
    ({"ties": "davidson", "tie_prevalence": 1.4}, davidson),
    (
        {"ties": "davidson", "tie_prevalence": 1.4, "label_smoothing": 0.1},
        lambda d, tie: davidson(d, tie) if tie else 0.9 * davidson(d, tie) + 0.1 * davidson(-d, tie),
    ),
]


@pytest.mark.parametrize(
    ("knobs", "expected", "tie"),
    [(*case, NO_TIE) for case in CASES] + [(*case, TIE) for case in CASES if "ties" in case[0]],
)
def test_losses_and_their_gradients(knobs, expected, tie):
    config = DPOConfig(beta=0.5, **knobs)
    found = pair_losses(config, D, tie)
    wanted = torch.tensor([expected(d, bool(tie[0])) for d in D.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda d: pair_losses(config, d, tie), (D,), rtol=1e-6, atol=1e-8)


def test_limits():
    plain = losses.dpo(D, 0.3)
    for knobs in ({"ties": "rao-kupper", "tie_threshold": 1e-3}, {"ties": "davidson", "tie_prevalence": 1e-3}):
        found = pair_losses(DPOConfig(beta=0.3, **knobs), D, NO_TIE)
        torch.testing.assert_close(found, plain, rtol=2e-3, atol=2e-3, msg="where nothing ties it is Bradley-Terry")
    flipped = 0.8 * losses.robust_dpo(D, 0.3, 0.2) + 0.2 * losses.robust_dpo(-D, 0.3, 0.2)
    torch.testing.assert_close(flipped, plain)  # the mean over wrong labels is the loss of right ones
    assert losses.ipo(torch.tensor(1 / (2 * 0.3)), 0.3) == pytest.approx(0, abs=1e-9)
    assert not losses.hinge(torch.tensor([1 / 0.3, 9.0]), 0.3).any(), "beyond the margin nothing is left to learn"
    for knobs in ({"ties": "rao-kupper"}, {"ties": "davidson"}):
        equal = pair_losses(DPOConfig(**knobs), torch.zeros(5), TIE)
        torch.testing.assert_close(equal, torch.full((5,), math.log(2)), rtol=1e-4, atol=0)  # half of them tie


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing has no part in loss ipo"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing has no part in loss hinge"),
        ({"loss": "robust"}, "needs a label_smoothing"),
        ({"label_smoothing": 0.5}, "at most 0.49"),
        ({"loss": "ipo", "ties": "davidson"}, "no place for ties"),
        ({"tie_threshold": 0.3}, "tie_threshold has no part in ties ignore"),
        ({"ties": "rao-kupper", "tie_prevalence": 3}, "set ties to davidson"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(knobs, words):
    with pytest.raises(InputError, match=words):
        DPOConfig(**knobs)


GROUPS = [
    Group([5, 6, 7], [[8, 9, 2], [10, 2], [11, 12, 13, 14, 2]],
          comparisons=[Comparison(1, 0, False, 0), Comparison(1, 2, False, 0), Comparison(0, 2, True, 0)], weight=2.0),
    Group([20, 21], [[22, 2], [23, 24, 25]], comparisons=[Comparison(0, 1, False, 0)], index=1),
]  # fmt: skip


def moved(base, knobs=None):
    """An objective whose policy has left the reference."""
    config = DPOConfig(lora_rank=4, **(knobs or {}))
    base.new_adapter("policy", config)
    torch.manual_seed(1)
    for parameter in base.adapter_parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.1)
    return DirectPreference(base, config, None)


@torch.no_grad()
def plain_log_prob(base, adapter, prompt, response):
    """log p of one response, by itself, from the whole model's logits."""
    with base.using(adapter):
        logits = base.model(torch.tensor([[*prompt, *response]])).logits[0]
    log_p = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]
    return float(log_p.gather(1, torch.tensor(response)[:, None]).sum())


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"length_normalised": True, "beta": 5.0},
        {"sft_coefficient": 0.7},
        {"loss": "ipo", "length_normalised": True},
        {"ties": "davidson", "sft_coefficient": 0.7},
    ],
    ids=str,
)
def test_a_packs_loss_is_the_sum_worked_out_response_by_response(base, knobs):
    objective = moved(base, knobs)
    config, expected, margins = objective.config, 0.0, []
    for group in GROUPS:
        ours, theirs = (
            [plain_log_prob(base, adapter, group.prompt, r) for r in group.responses] for adapter in ("policy", None)
        )
        size = [len(r) if config.length_normalised else 1 for r in group.responses]
        ratio = [(a - b) / n for a, b, n in zip(ours, theirs, size, strict=True)]
        counted = [c for c in group.comparisons if not c.tie or config.ties != "ignore"]
        for c in counted:
            difference = torch.tensor(ratio[c.winner] - ratio[c.loser], dtype=torch.float64)
            loss = float(pair_losses(config, difference, torch.tensor(c.tie)))
            if not c.tie:
                loss -= config.sft_coefficient * ours[c.winner] / len(group.responses[c.winner])
                margins.append(config.beta * float(difference))
            expected += group.weight * loss / len(counted)
    with base.using("policy"):
        loss, tally = objective.loss(pack(GROUPS, base.device))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    total, count = tally["rewards/margins"]
    assert total / count == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert tally["rewards/accuracies"] == (sum(m > 0 for m in margins), len(margins))
    assert tally["rewards/chosen"][0] - tally["rewards/rejected"][0] == pytest.approx(total, rel=1e-4)
    assert tally["rewards/tie_margins"][1] == (config.ties != "ignore")


def test_step_zero_is_exact_with_every_loss(base):
    for knobs, expected in (
        ({}, math.log(2)),
        ({"label_smoothing": 0.2}, math.log(2)),
        ({"loss": "robust", "label_smoothing": 0.2}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "ipo"}, 25.0),
    ):
        config = DPOConfig(**knobs)
        if base.peft is None:
            base.new_adapter("policy", config)
        objective = DirectPreference(base, config, None)
        with torch.no_grad(), base.using("policy"):
            metrics = objective.evaluate(GROUPS)
        assert metrics["loss"] == pytest.approx(expected, abs=1e-6)
        assert metrics["kl"] == metrics["rewards/margins"] == metrics["rewards/accuracies"] == 0


def test_kl_along_samples_is_on_average_the_kl(tmp_path):
    """Σ_y π(y) Σ_t KL_t over every answer the toy can give is KL(π ‖ π_ref)."""
    base = load_base(str(toy.make_enumerable_model(tmp_path / "toy")), "fp32", "cpu")
    objective = moved(base)
    answers = toy.all_answers(base, 2)
    policy, reference = (toy.log_policy(base, adapter, [4], answers) for adapter in ("policy", None))
    found = pack([Group([4], answers)], base.device)
    with torch.no_grad():
        with base.using("policy"):
            ours = base.read(found)[found.predictors]
        theirs = base.read(found)[found.predictors]
        along = found.sum_per_response(kl_per_token(base.logits, ours, theirs, chunk=7)).double()
    exact = toy.kl(policy, reference)
    assert exact > 0.05
    assert float((policy.exp() * along).sum()) == pytest.approx(exact, abs=1e-5)
    held = [Group([i], [], index=i) for i in range(2, 6)]
    with torch.no_grad(), base.using("policy"):
        measured = [objective.kl(held)["kl"] for _ in range(2)]
    assert measured[0] == measured[1] > 0, "the same random numbers each time"


def test_reference_is_kept_on_disk_and_a_damaged_file_is_written_anew(base, tmp_path):
    objective, forward, said = moved(base), pack(GROUPS, base.device), []
    file = tmp_path / "cache" / "reference.json"
    with torch.no_grad(), base.using("policy"):
        expected = objective.loss(forward)[0]
        for content, complaints in ((None, 0), ("{", 1), ('{"a": "b"}', 2), ("[1]", 3)):
            if content is not None:
                file.write_text(content)
            objective.known = ReferenceLogProbs(file, said.append)
            assert objective.loss(forward)[0] == expected
            objective.known.save()
            assert len(json.loads(file.read_text())) == 5
            assert len(said) == complaints
        other = ReferenceLogProbs(file, said.append)
        other.known = {"another run's": 1.0}
        other.save()
        objective.known = ReferenceLogProbs(file, said.append)
        assert len(objective.known.known) == 6, "what was there stays"
        objective.known.of(forward, lambda _: pytest.fail("everything is known already"))
        repacked = sum(objective.loss(pack([group], base.device))[0] for group in GROUPS)
        assert float(repacked) == pytest.approx(float(expected), abs=1e-4)


RUN_TWICE = """
import sys, torch
from pathlib import Path
from training import dpo, reference
from training.__main__ import main
given = sys.argv[1:]
assert main([*given, "--output", "one"]) == 0
first = reference.ReferenceLogProbs.of
def known(self, pack, compute):
    return first(self, pack, lambda _: sys.exit("the reference was computed again"))
reference.ReferenceLogProbs.of = known
assert main([*given, "--output", "two"]) == 0
"""


def test_a_second_run_takes_the_reference_from_the_disk(tiny_model, rankings_file, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_TWICE, "dpo", "--base-model", tiny_model, "--data", rankings_file, "--dtype", "fp32",
         "--reference-cache", "--max-steps", "3", "--learning-rate", "1e-2", "--num-threads", "1", "--device", "cpu"],
        cwd=tmp_path, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "preference-loop" / "reference").glob("*.json"))) == 1
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert rows[1][0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert [row.get("loss") for row in rows[0]] == pytest.approx([row.get("loss") for row in rows[1]], abs=1e-4)


def test_ties_are_learned_from_or_refused(command, tiny_model, tmp_path):
    rows = [{"prompt": f"Say {i}", "completions": [f"Yes, {i}.", "No."], "ranks": [1, 1]} for i in range(8)]
    write_rows(tmp_path / "ties.jsonl", rows)
    given = ["dpo", "--base-model", tiny_model, "--data", "ties.jsonl", "--dtype", "fp32", "--max-steps", 3]
    refused = command(*given, "--output", "ignored", check=False)
    assert refused.returncode == 2
    assert "set ties to davidson" in refused.stderr.splitlines()[-1]
    command(*given, "--output", "run", "--ties", "davidson", "--learning-rate", "1e-2")
    first, *_, last = read_metrics(tmp_path / "run")
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6), "between equals a tie has probability 1/2"
    assert last["eval/rewards/tie_margins"] < 0.5
    assert "rewards/accuracies" not in last


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
