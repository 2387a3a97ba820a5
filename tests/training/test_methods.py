"""Every method through the real command: it learns, stops, resumes exactly, and says what was wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from data.formats import write_rows
from tests.tiny import make_toy_model
from tests.training.conftest import ROOT, last_json
from training.run_folder import checkpoints, read_manifest, read_metrics, read_status

METHODS = ["sft", "reward", "dpo", "ppo"]


def weights(checkpoint):
    return load_file(checkpoint / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_the_command_trains_and_leaves_a_whole_run_folder(method, command, arguments, tmp_path):
    result = last_json(command(*arguments(method, "run", "--max-steps", 3)))
    run = tmp_path / "run"
    assert result["steps"] == 3
    assert read_status(run)["state"] == "finished"
    assert (run / "log.txt").read_text().count("step 3/3") == 1
    metrics = read_metrics(run)
    assert [row["step"] for row in metrics][-3:] == [1, 2, 3]
    assert all(math.isfinite(v) for row in metrics for v in row.values())
    *_, checkpoint = checkpoints(run)
    assert str(checkpoint) == result["checkpoint"]
    manifest = read_manifest(checkpoint)
    assert manifest["kind"] == ("reward" if method == "reward" else "policy")
    assert len(manifest["base_model"]["sha256"]) == len(manifest["data"]["sha256"]) == 64
    still = [name for name, w in weights(checkpoint).items() if "lora_B" in name and not w.any()]
    assert not still, "B starts at zero: these parameters never moved"


def test_dpo_starts_at_log_two_and_learns(command, arguments, tmp_path):
    result = last_json(command(*arguments("dpo", "run", "--max-steps", 12)))
    metrics = read_metrics(tmp_path / "run")
    assert metrics[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["loss"] < 0.5
    assert result["eval/rewards/accuracies"] == 1.0


def test_reward_model_learns_the_order(command, arguments, tmp_path):
    result = last_json(command(*arguments("reward", "run", "--max-steps", 15, "--validation-fraction", 0.2)))
    assert result["eval/accuracy"] == 1.0
    assert result["eval/nll"] < 0.4
    scored = tmp_path / "scored.jsonl"
    rows = [{"prompt": "Q?", "chosen": "It is a fine number, 5.", "rejected": "No."}]
    rows += [{"prompt": "Q?", "completion": rows[0]["chosen"]}]
    rows += [{"prompt": "Q?", "completions": [rows[0]["rejected"], rows[0]["chosen"]]}]
    write_rows(tmp_path / "in.jsonl", rows)
    command("score", "--checkpoint", result["checkpoint"], "--data", "in.jsonl", "--output", scored, "--dtype", "fp32")
    pair, single, many = map(json.loads, scored.read_text().splitlines())
    assert pair["scores"][0] > pair["scores"][1]
    assert single["score"] == pytest.approx(pair["scores"][0], abs=1e-5)
    assert many["scores"] == pytest.approx(pair["scores"][::-1], abs=1e-5)
    judged = last_json(
        command(
            "evaluate", "--checkpoint", result["checkpoint"], "--data", tmp_path / "rankings.jsonl", "--dtype", "fp32"
        )
    )
    assert judged["accuracy"] > 0.9
    assert {"accuracy", "nll", "ece", "n"} <= set(judged)


YES = "def yes(prompts, completions):\n    return [text.split().count('yes') / 4 for text in completions]\n"


@pytest.fixture
def toy(command, tmp_path):
    """Run PPO on the toy model, rewarded for the word yes; returns its metrics."""
    model = make_toy_model(tmp_path / "toy")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("one", "two", "three", "four")])
    (tmp_path / "my_reward.py").write_text(YES)

    def run(name, *more):
        command("ppo", "--base-model", model, "--dtype", "fp32", "--data", "prompts.jsonl", "--output", name,
                "--reward-function", "my_reward:yes", "--max-new-tokens", 4, "--batch-size", 64,
                "--samples-per-prompt", 16, *more)  # fmt: skip
        return read_metrics(tmp_path / name)

    return run


def test_the_value_head_learns_to_predict_the_return(toy):
    metrics = toy("run", "--max-steps", 30, "--learning-rate", 0, "--value-learning-rate", 0.02, "--beta", 0)
    assert metrics[0]["val/explained_variance"] == 0
    assert sum(row["val/explained_variance"] for row in metrics[-15:]) / 15 > 0.05
    assert metrics[-1]["objective/kl"] == 0


def test_ppo_raises_the_reward_and_beta_holds_it_back(toy, tmp_path):
    free = toy("free", "--max-steps", 25, "--learning-rate", 1e-2, "--beta", 0)
    held = toy("held", "--max-steps", 25, "--learning-rate", 1e-2, "--beta", 1)
    assert free[0]["objective/kl"] == 0
    assert free[0]["objective/score"] < 0.2, "one word in eleven"
    assert free[-1]["objective/score"] > 0.8
    assert held[-1]["objective/kl"] < 0.5 * free[-1]["objective/kl"]
    assert held[-1]["objective/score"] < free[-1]["objective/score"]
    *_, checkpoint = checkpoints(tmp_path / "free")
    assert load_file(checkpoint / "value_head.safetensors")["weight"].any()
    samples = [json.loads(line) for line in (tmp_path / "free" / "samples.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "completion", "score"} <= set(samples[0])


def test_first_step_of_ppo_has_ratio_one(command, arguments, tmp_path):
    command(*arguments("ppo", "run", "--max-steps", 1, "--ppo-epochs", 1, "--minibatches", 1))
    (row,) = read_metrics(tmp_path / "run")
    assert row["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert row["policy/clipfrac"] == 0
    assert row["policy/approxkl"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_never_stopped(method, command, arguments, tmp_path):
    steps = ("--max-steps", 6, "--save-every", 3, "--eval-every", 2)
    command(*arguments(method, "straight", *steps))
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *arguments(method, "killed", *steps)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert [path.name for path in checkpoints(tmp_path / "killed")] == ["step-000003"], "it was killed on its way"
    command(*arguments(method, "killed", *steps, "--resume"))
    assert "resuming after step 3" in (tmp_path / "killed" / "log.txt").read_text()
    runs = [tmp_path / "straight", tmp_path / "killed"]
    rows = [[{k: v for k, v in row.items() if k != "time"} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    ends = [weights(checkpoints(run)[-1]) for run in runs]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_resume_keeps_its_settings_and_refuses_others(command, arguments, tmp_path):
    command(*arguments("sft", "run", "--max-steps", 2, "--seed", 5))
    done = last_json(command("sft", "--output", tmp_path / "run", "--resume", "--max-steps", 3))
    assert done["steps"] == 3
    assert read_manifest(checkpoints(tmp_path / "run")[-1])["config"]["seed"] == 5
    (tmp_path / "other.jsonl").write_text('{"prompt": "x", "completion": "y"}\n{"prompt": "z", "completion": "y"}\n')
    for more, words in [
        (["sft", "--seed", 6], "seed"),
        (["dpo"], "sft"),
        (["sft", "--data", "other.jsonl"], "content of the data"),
    ]:
        refused = command(*more, "--output", tmp_path / "run", "--resume", check=False)
        assert refused.returncode == 2
        assert words in refused.stderr.splitlines()[-1]


def test_sigterm_saves_and_stops(arguments, tmp_path, command):
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *arguments("dpo", "run", "--max-steps", 5000)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not read_metrics(tmp_path / "run", 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    status = read_status(tmp_path / "run")
    assert status["state"] == "stopped"
    assert 0 < status["step"] < 5000
    assert checkpoints(tmp_path / "run")[-1].name == f"step-{status['step']:06d}"


def test_methods_continue_one_another_and_merge(command, arguments, tmp_path, tiny_model):
    sft = last_json(command(*arguments("sft", "sft", "--max-steps", 2)))["checkpoint"]
    dpo = last_json(command(*arguments("dpo", "dpo", "--max-steps", 1, "--from-checkpoint", sft)))["checkpoint"]
    assert read_manifest(dpo)["parent"] == sft
    assert read_metrics(tmp_path / "dpo")[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6), "reference = parent"
    base = last_json(
        command(*arguments("dpo", "base", "--max-steps", 1, "--from-checkpoint", sft, "--reference", "base"))
    )
    assert read_metrics(tmp_path / "base")[0]["eval/loss"] != pytest.approx(math.log(2), abs=1e-3)
    command("merge", "--checkpoint", base["checkpoint"], "--output", "merged", "--dtype", "fp32")
    out = ("--prompts", tmp_path / "rankings.jsonl", "--num-completions", 2, "--max-new-tokens", 6, "--dtype", "fp32")
    command("generate", "--checkpoint", base["checkpoint"], "--output", "a.jsonl", *out)
    command("generate", "--base-model", tmp_path / "merged", "--output", "b.jsonl", *out)
    command("generate", "--base-model", tiny_model, "--output", "c.jsonl", *out)
    texts = [[json.loads(line)["completions"] for line in (tmp_path / f"{n}.jsonl").open()] for n in "abc"]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    info = json.loads((tmp_path / "a.jsonl").open().readline())["completion_info"][1]
    assert info | {"num_tokens": 0, "finish_reason": ""} == {
        "temperature": 0.7,
        "top_p": 1.0,
        "seed": 0,
        "max_new_tokens": 6,
        "sample": 1,
        "num_tokens": 0,
        "finish_reason": "",
    }


def test_mistakes_are_one_line_and_exit_nonzero(command, arguments, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "config.json").write_text('{"learning_rte": 1}')
    for given, words in [
        (["reward", "--data", "absent.jsonl", "--output", "o"], "absent.jsonl: no such file"),
        (["reward", "--data", "bad.jsonl", "--output", "o"], "bad.jsonl:1"),
        (["reward", "--config", "config.json"], "learning_rte"),
        (["dpo", "--data", "bad.jsonl"], "--output"),
        (["dpo", "--data", "bad.jsonl", "--output", "o", "--beta", "-1"], "beta must be at least"),
        (["ppo", "--data", "bad.jsonl", "--output", "o", "--max-steps", "1.5"], "whole number"),
        (["score", "--checkpoint", "absent", "--data", "bad.jsonl", "--output", "s.jsonl"], "no such folder"),
        (arguments("reward", "o", "--max-length", 16), "raise it"),
        (arguments("ppo", "o", "--reward-function", "nothing:here"), "nothing:here"),
        (
            ["reward", "--data", "bad.jsonl", "--output", "o", "--fold", "0", "--validation-fraction", "0"],
            "bad.jsonl:1",
        ),
        (["generate", "--prompts", "bad.jsonl", "--output", "o.jsonl", "--temperature", "-1"], "--temperature"),
    ]:
        done = command(*given, check=False)
        assert done.returncode == 2, given
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: "), done.stderr
        assert words in last
        assert "Traceback" not in done.stderr
