"""PPO: each stage of the derivation alone, whole runs on a toy, and the optimum where it is known."""

import json
import math
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.formats import read_prompts, write_rows
from data.records import InputError
from tests import toy as enumerable
from tests.tiny import make_toy_model
from training import advantages, ppo, reward
from training.advantages import Episode, Rollout, Running
from training.base import Base
from training.batches import encode_prompts
from training.chat_template import decode, encode_prompt
from training.config import PPOConfig, RewardConfig
from training.critic import load_critic
from training.models import load_base
from training.packs import Group, pack
from training.reward_model import Score
from training.rewards import load_reward
from training.run_folder import checkpoints, read_metrics

FUNCTIONS = """
def yes(prompts, completions):
    return [text.split().count("yes") / 4 for text in completions]

def each_yes(prompts, completions, tokens):
    assert [" ".join(t for t in words if t[0] != "<") for words in tokens] == completions
    return [[float(token == "yes") for token in words] for words in tokens]

def too_few(prompts, completions):
    return [[1.0] for _ in completions]

def not_a_number(prompts, completions):
    return [float("nan") for _ in completions]

WORTH = {"yes": 1.0, "no": -0.5, "one": 0.4}

def worth(prompts, completions):
    return [sum(WORTH.get(word, 0.0) for word in text.split()) for text in completions]

def one_short(prompts, completions):
    return [1.0 for _ in completions[1:]]
"""


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory):
    return make_toy_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture
def toy(toy_model, tmp_path, monkeypatch):
    """Configs and runs of PPO on the toy model, in this process."""
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("one", "two", "three", "four")])
    (tmp_path / "toy_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # a run in this process leaves pytest its signals

    def config(name="run", **more):
        given = {"base_model": str(toy_model), "dtype": "fp32", "num_threads": 1, "lora_rank": 4, "max_length": 40,
                 "data": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / name), "max_new_tokens": 4,
                 "batch_size": 16, "samples_per_prompt": 4, "max_steps": 2, "learning_rate": 1e-2,
                 "reward_function": "toy_rewards:yes"}  # fmt: skip
        return PPOConfig(**given | more)

    def run(name="run", resume=False, **more):
        return ppo.train(config(name, **more), resume)

    return SimpleNamespace(config=config, run=run, folder=tmp_path)


def weights(run, step=-1):
    return load_file(checkpoints(run)[step] / "adapter_model.safetensors")


def metrics_of(run):
    return [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(run)]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"baseline": "leave-one-out"}, "set advantage to baseline"),
        ({"advantage": "baseline", "baseline": "group-normalised"}, "samples_per_prompt to 2"),
        ({"advantage": "return", "value_warmup": 3}, "has none"),
        ({"advantage": "rewards-to-go", "value_model": "adapter"}, "has none"),
        ({"value_start": "reward-model"}, "needs a reward_model"),
        ({"value_warmup": 3, "value_coefficient": 0}, "raise it"),
        ({"policy_loss": "reinforce"}, "one step a rollout"),
        ({"stop_kl": 0.1, "ppo_epochs": 1, "minibatches": 1}, "nothing to stop"),
        ({"dual_clip": 0.9}, "above 1"),
        ({"dual_clip": 3, "policy_loss": "importance"}, "policy_loss clip"),
        ({"kl_placement": "loss"}, "gradient is 0 on average"),
        ({"kl_target": 6, "beta": 0}, "beta 0 stays 0"),
        ({"lora_dropout": 0.1}, "lora_dropout must be 0"),
        ({"minibatches": 9, "batch_size": 16, "samples_per_prompt": 2}, "8 prompts of an update"),
        ({"advantage": "best"}, "one of return"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_remedy(given, words):
    with pytest.raises(InputError, match=words):
        PPOConfig(**given)


# -- rewards -----------------------------------------------------------------------------------------------------------


def groups_of(base: Base, config: PPOConfig, texts: list[list[str]]) -> tuple[list[Group], list]:
    records = read_prompts(config.data)
    groups, _ = encode_prompts(base, records, 20)
    word = base.tokenizer.convert_tokens_to_ids
    return [
        Group(group.prompt, [[word(w) for w in text.split()] for text in row], index=group.index)
        for group, row in zip(groups, texts, strict=False)
    ], records


def test_a_reward_function_says_one_number_or_one_a_token(toy, toy_model):
    base = load_base(str(toy_model), "fp32", "cpu")
    groups, records = groups_of(base, toy.config(), [["yes yes <end>", "no"], ["two yes"]])
    of = load_reward(base, toy.config()).of
    assert [[r.tolist() for r in row] for row in of(groups, records)] == [[[0, 0, 0.5], [0]], [[0, 0.25]]]
    of = load_reward(base, toy.config(reward_function="toy_rewards:each_yes")).of
    assert [[r.tolist() for r in row] for row in of(groups, records)] == [[[1, 1, 0], [0]], [[0, 1]]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy_rewards:too_few", "1 rewards for a completion of 3 tokens"),
        ("toy_rewards:not_a_number", "one finite number"),
        ("toy_rewards:one_short", "0 rewards for 1 completions"),
        ("toy_rewards:nobody", "cannot be imported"),
    ],
)
def test_a_reward_function_that_is_wrong_is_named(toy, toy_model, name, words):
    base = load_base(str(toy_model), "fp32", "cpu")
    groups, records = groups_of(base, toy.config(), [["yes yes <end>"]])
    with pytest.raises(InputError, match=words):
        load_reward(base, toy.config(reward_function=name)).of(groups, records)


def episodes(*rewards: list[float], values: list[list[float]] | None = None, ended: bool = True) -> Rollout:
    """A rollout with these rewards a token, log-ratios of 0.1 a token, and these values."""
    listed = []
    for i, row in enumerate(rewards):
        n = len(row)
        v = torch.tensor(values[i]) if values else torch.zeros(n)
        listed.append(
            Episode(torch.full((n,), -1.0), torch.full((n,), -1.1), v, torch.ones(n), torch.tensor(row), ended)
        )
    return Rollout(listed, torch.device("cpu"))


def test_rewards_are_normalised_then_clipped_then_charged():
    rollout = episodes([0.0, 0.0, 7.0], [3.0], ended=False)
    config = PPOConfig(reward_clip=1.5, missing_eos_penalty=0.25, beta=0.5)
    found = advantages.shaped_rewards(rollout, config, Running(0.5), mean=5.0, std=1.0)
    # (7 - 5) clipped to 1.5, (3 - 5) to -1.5; 0.25 off at the end; 0.5 · 0.1 off at each token
    expected = torch.tensor([[-0.05, -0.05, 1.5 - 0.25 - 0.05], [-1.5 - 0.25 - 0.05, 0.0, 0.0]])
    torch.testing.assert_close(found * rollout.mask, expected)
    in_the_loss = PPOConfig(beta=0.5, kl_placement="loss", kl_estimator="k3", normalise_rewards="none")
    found = advantages.shaped_rewards(rollout, in_the_loss, Running(0.5), mean=5.0, std=1.0)
    torch.testing.assert_close(found, rollout.rewards)


def test_running_statistics_are_those_of_all_scores_so_far():
    batches = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3 + 2 for n in (5, 1, 12)]
    running = Running(0.1)
    for batch in batches:
        running.see(batch)
    everything = torch.cat(batches).double()
    assert running.mean == pytest.approx(float(everything.mean()), rel=1e-12)
    assert running.std == pytest.approx(float(everything.std()), rel=1e-12)
    assert Running(**running.state()) == running
    rollout = episodes([1.0, 1.0], [0.0, 4.0])
    found = advantages.shaped_rewards(rollout, PPOConfig(normalise_rewards="running", beta=0), Running(0), 9, 9)
    # sums 2 and 4: mean 3, deviation √2; a reward along the way is scaled, the mean comes off once
    torch.testing.assert_close(found, torch.tensor([[1.0, -2.0], [0.0, 1.0]]) / 2**0.5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # rewards (1, 2, 3) and (4, 5) of two answers to one prompt, V = (1, 0, 2) and (3, 1)
        ({"advantage": "return"}, [[6.0, 6.0, 6.0], [9.0, 9.0]]),
        ({"advantage": "rewards-to-go"}, [[6.0, 5.0, 3.0], [9.0, 5.0]]),
        ({"advantage": "baseline"}, [[5.0, 5.0, 1.0], [6.0, 4.0]]),
        ({"advantage": "baseline", "baseline": "leave-one-out"}, [[-3.0, -3.0, -3.0], [3.0, 3.0]]),
        ({"advantage": "baseline", "baseline": "group-normalised"}, [[-0.70707] * 3, [0.70707] * 2]),
        ({"advantage": "gae", "lam": 1.0}, [[5.0, 5.0, 1.0], [6.0, 4.0]]),
        ({"advantage": "gae", "lam": 0.0}, [[0.0, 4.0, 1.0], [2.0, 4.0]]),  # δ_t = r_t + V_{t+1} - V_t
    ],
)
def test_each_advantage_by_hand(setting, expected):
    rollout = episodes([1.0, 2.0, 3.0], [4.0, 5.0], values=[[1.0, 0.0, 2.0], [3.0, 1.0]])
    config = PPOConfig(samples_per_prompt=2, **setting)
    found, returns = advantages.advantages_and_returns(rollout.rewards, rollout, config)
    for row, numbers in zip(found, expected, strict=True):
        torch.testing.assert_close(row, torch.tensor([*numbers, 0.0][:3]), rtol=0, atol=1e-4)
    if setting != {"advantage": "gae", "lam": 0.0}:
        torch.testing.assert_close(returns, torch.tensor([[6.0, 5.0, 3.0], [9.0, 5.0, 0.0]]))


# -- whole runs --------------------------------------------------------------------------------------------------------

ONE_STEP = {"ppo_epochs": 1, "minibatches": 1}
STAGES = {
    "reinforce": {"advantage": "return", "policy_loss": "reinforce", **ONE_STEP},
    "rewards-to-go": {"advantage": "rewards-to-go", "policy_loss": "importance"},
    "baseline": {"advantage": "baseline", "reward_function": "toy_rewards:each_yes"},
    "rloo": {"advantage": "baseline", "baseline": "leave-one-out", "policy_loss": "reinforce", **ONE_STEP},
    "grpo": {"advantage": "baseline", "baseline": "group-normalised", "kl_placement": "loss", "kl_estimator": "k3"},
    "k2 loss": {"kl_placement": "loss", "kl_estimator": "k2", "dual_clip": 3.0, "entropy_coefficient": 0.01},
    "k3 reward": {"kl_estimator": "k3", "normalise_rewards": "running", "reward_clip": 2.0, "kl_target": 0.5},
    "critic": {"value_model": "adapter", "missing_eos_penalty": 0.5, "stop_kl": 1e-4, "max_grad_norm": 0.1},
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_from_a_policy_that_starts_as_the_reference(toy, stage):
    toy.run(max_steps=16, beta=0.01, batch_size=64, samples_per_prompt=16, save_every=99, **STAGES[stage])
    rows = read_metrics(toy.folder / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["objective/kl"] > 0.05
    first, last = (sum(row["objective/score"] for row in part) / 4 for part in (rows[:4], rows[-4:]))
    assert last > first
    if STAGES[stage].get("ppo_epochs") == 1:
        assert all(row["policy/ratio"] == 1 and row["policy/approxkl"] == 0 for row in rows)


RICH = {
    "value_model": "adapter", "value_warmup": 1, "normalise_rewards": "running", "reward_clip": 3.0, "kl_target": 0.2,
    "kl_horizon": 32, "kl_placement": "loss", "kl_estimator": "k3", "dual_clip": 3.0, "entropy_coefficient": 0.01,
    "missing_eos_penalty": 0.1, "stop_kl": 0.02, "beta": 0.1, "reward_function": "toy_rewards:each_yes",
}  # fmt: skip


def test_gradient_accumulation_changes_nothing(toy):
    """One forward a minibatch, and many small ones: the same metrics and weights."""
    for name, tokens in (("whole", 4096), ("parts", 16)):
        toy.run(name, max_steps=3, tokens_per_forward=tokens, learning_rate=1e-3, **RICH)
    found = [metrics_of(toy.folder / name) for name in ("whole", "parts")]
    for whole, parts in zip(*found, strict=True):
        assert parts == pytest.approx(whole, rel=1e-3, abs=2e-5)
    whole, parts = (weights(toy.folder / name) for name in ("whole", "parts"))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_what_was_read_to_be_scored_is_learned_from(toy, monkeypatch, minibatches):
    """The first forward of the first epoch is that reading, to the last bit; `fast off` reads again."""
    reads, read = list[int](), Base.read
    monkeypatch.setattr(Base, "read", lambda base, pack: reads.append(1) or read(base, pack))
    found = {}
    for name in ("once", "again"):
        if name == "again":
            plainly = lambda part, base: base.read(part.pack)[part.pack.predictors]  # noqa: E731
            monkeypatch.setattr(ppo.Part, "read", plainly)
        toy.run(name, max_steps=3, **RICH | {"minibatches": minibatches, "stop_kl": 0.0})
        found[name] = metrics_of(toy.folder / name), weights(toy.folder / name), len(reads)
        reads.clear()
    assert found["once"][0] == found["again"][0]
    assert all(torch.equal(weight, found["again"][1][name]) for name, weight in found["once"][1].items())
    assert found["again"][2] == found["once"][2] + 3
    monkeypatch.undo()


def test_a_rich_run_resumes_exactly(toy):
    """Critic with an adapter, adaptive beta, running statistics, warm-up: all of it is in the checkpoint."""
    steps = {"max_steps": 6, "save_every": 2, "keep_checkpoints": 9, "eval_every": 3, "validation_fraction": 0.3}
    toy.run("straight", **steps, **RICH)
    shutil.copytree(toy.folder / "straight", toy.folder / "killed")
    for late in ("step-000004", "step-000006"):  # as a kill after step 2 would have left it, with more metrics written
        shutil.rmtree(toy.folder / "killed" / "checkpoints" / late)
        (toy.folder / "killed" / "state" / late).unlink()
    result = toy.run("killed", resume=True, **steps, **RICH)
    assert metrics_of(toy.folder / "straight") == metrics_of(toy.folder / "killed")
    assert len({row["objective/beta"] for row in metrics_of(toy.folder / "killed")[1:]}) > 1
    for file in ("adapter_model", "critic/adapter_model", "value_head"):
        ends = [load_file(checkpoints(toy.folder / n)[-1] / f"{file}.safetensors") for n in ("straight", "killed")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]), file
    again = toy.run("killed", resume=True, **steps, **RICH)
    assert again == result, "a run that is resumed at its end says what it had said"


def test_epochs_stop_when_the_policy_has_gone_far(toy):
    toy.run("free", ppo_epochs=4, learning_rate=3e-2, warmup_ratio=0)
    toy.run("held", ppo_epochs=4, learning_rate=3e-2, warmup_ratio=0, stop_kl=1e-3)
    free, held = (metrics_of(toy.folder / name)[0] for name in ("free", "held"))
    assert free["policy/steps"] == 8
    assert 1 <= held["policy/steps"] < 8
    assert held["policy/approxkl"] <= 1e-3 < free["policy/approxkl"]


@pytest.mark.parametrize("value_model", ["head", "adapter"])
def test_while_the_critic_warms_up_the_policy_stands_still(toy, value_model):
    toy.run(max_steps=4, save_every=1, keep_checkpoints=9, value_warmup=2, value_model=value_model, weight_decay=0.1)
    run = toy.folder / "run"
    still, moved = weights(run, 1), weights(run, 3)
    assert not any(w.any() for name, w in still.items() if "lora_B" in name)
    assert any(w.any() for name, w in moved.items() if "lora_B" in name)
    assert load_file(checkpoints(run)[1] / "value_head.safetensors")["weight"].any()
    if value_model == "adapter":
        critic = load_file(checkpoints(run)[1] / "critic" / "adapter_model.safetensors")
        assert any(w.any() for name, w in critic.items() if "lora_B" in name)
    assert [row["objective/kl"] == 0 for row in metrics_of(run)] == [True, True, True, False]


def test_a_critic_starts_as_the_reward_model_or_the_parents(toy, toy_model):
    rows = [{"prompt": f"{word} one", "completions": ["yes yes", "no"], "ranks": [1, 2]} for word in ("two", "three")]
    write_rows(toy.folder / "rankings.jsonl", rows)
    result = reward.train(
        RewardConfig(base_model=str(toy_model), dtype="fp32", num_threads=1, lora_rank=4, max_steps=3, max_length=40,
                     data=str(toy.folder / "rankings.jsonl"), output=str(toy.folder / "reward"), learning_rate=1e-2)
    )  # fmt: skip
    config = toy.config(
        "run",
        reward_function=None,
        reward_model=result["checkpoint"],
        value_model="adapter",
        value_start="reward-model",
    )
    base = load_base(str(toy_model), "fp32", "cpu")
    critic, model = load_critic(base, config, None), Score(base, result["checkpoint"])
    (groups, _), hidden = groups_of(base, config, [["yes yes <end>", "no <end>"]]), []
    row = pack(groups, base.device)
    for adapter in (critic.adapter, model.adapter):
        with base.using(adapter), torch.no_grad():
            hidden.append(base.read(row)[row.last].float())
    value, score = critic.head(hidden[0]), model.head(hidden[1])
    torch.testing.assert_close(value, (score - model.mean) / model.std)
    assert float((score[0] - score[1]).abs()) > 1e-3, "the head says something"

    elsewhere = toy.config("x", reward_function=None, reward_model=str(toy_model), value_model="adapter",
                           value_start="reward-model")  # fmt: skip
    with pytest.raises(InputError, match="value_start zero"):
        load_critic(load_base(str(toy_model), "fp32", "cpu"), elsewhere, None)

    done = ppo.train(config)
    child = toy.config("child", from_checkpoint=done["checkpoint"], value_model="adapter")
    parent = load_file(f"{done['checkpoint']}/value_head.safetensors")
    torch.testing.assert_close(
        load_critic(load_base(str(toy_model), "fp32", "cpu"), child, None).head.bias, parent["bias"]
    )
    for other in ({"value_model": "head"}, {"value_model": "adapter", "value_start": "zero"}):
        child = toy.config("child", from_checkpoint=done["checkpoint"], **other)
        assert not load_critic(load_base(str(toy_model), "fp32", "cpu"), child, None).head.weight.any()
    child = toy.config("child", from_checkpoint=done["checkpoint"], advantage="return")
    assert load_critic(base, child, None) is None


def test_samples_are_written_at_their_interval_and_held_out_prompts_judged(toy):
    write_rows(toy.folder / "held.jsonl", [{"prompt": "three two"}, {"prompt": "four one"}])
    toy.run(max_steps=5, sample_every=2, eval_every=4, save_every=5, validation_data=str(toy.folder / "held.jsonl"))
    lines = [json.loads(line) for line in (toy.folder / "run" / "samples.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [0, 2, 4, 5]
    assert [line["prompt"][-1]["content"] for line in lines[:2]] == ["three two", "four one"], "held-out ones first"
    for line in lines:
        assert line["score"] == line["completion"].split().count("yes") / 4
    rows = read_metrics(toy.folder / "run")
    assert [row["step"] for row in rows if "eval/score" in row] == [0, 4, 5]
    assert rows[0]["eval/kl"] == pytest.approx(0, abs=1e-6)


# -- the optimum -------------------------------------------------------------------------------------------------------

RLOO = {"advantage": "baseline", "baseline": "leave-one-out"}


@pytest.mark.parametrize(
    ("beta", "apart", "setting"), [(0.3, 1.0, {}), (0.5, 0.3, {}), (1.0, 0.05, {}), (0.5, 0.3, RLOO)]
)
def test_the_policy_ends_at_the_known_optimum(toy, beta, apart, setting):
    """π* ∝ π_ref exp(r / β) over the 31 answers of at most two tokens; no entropy bonus, no whitening."""
    model = enumerable.make_enumerable_model(toy.folder / "model")
    write_rows(toy.folder / "prompts.jsonl", [{"prompt": "one two"}])
    result = toy.run(
        base_model=str(model), reward_function="toy_rewards:worth", beta=beta, max_new_tokens=2, batch_size=128,
        samples_per_prompt=128, minibatches=1, max_steps=80, learning_rate=4e-3, value_learning_rate=1e-2, lora_rank=16,
        whiten_advantages=False, lam=1.0, max_grad_norm=0.0, save_every=80, tokens_per_forward=1024, **setting,
    )  # fmt: skip
    base = load_base(str(model), "fp32", "cpu")
    prompt = encode_prompt(base, [{"role": "user", "content": "one two"}])
    answers = enumerable.all_answers(base, 2)
    import toy_rewards  # the module that the run was given

    rewards = torch.tensor(toy_rewards.worth([], [decode(base, a) for a in answers]), dtype=torch.float64)
    reference = enumerable.log_policy(base, None, prompt, answers)
    policy = enumerable.log_policy(base, base.attach(result["checkpoint"]), prompt, answers)
    assert float(policy.exp().sum()) == pytest.approx(1, abs=1e-5), "these are all the answers there are"
    optimum = enumerable.optimal_policy(reference, rewards, beta)
    before, after = enumerable.kl(reference, optimum), enumerable.kl(policy, optimum)
    print(f"beta {beta}: KL to the optimum {before:.4f} before, {after:.5f} after")
    assert before > apart
    assert after < 0.01
