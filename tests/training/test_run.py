"""What a run does when it is asked, judged or wronged: control.json, the best checkpoint, patience, a full disk."""

import json
import math
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from data.records import InputError
from tests.training.conftest import ROOT
from training import __main__, files, processes, run
from training.config import PPOConfig, SFTConfig
from training.run import Run
from training.run_folder import checkpoints, read_manifest, read_metrics, read_status


@pytest.fixture
def train(tiny_model, rankings_file, tmp_path, monkeypatch):
    """The command in this very process; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = torch.get_num_threads()

    def call(output, *more, method="sft"):
        common = ["--base-model", tiny_model, "--dtype", "fp32", "--data", rankings_file, "--output", output]
        knobs = ["--num-threads", 1, "--batch-size", 4, "--learning-rate", "1e-2"]
        return __main__.main(list(map(str, [method, *common, *knobs, *more])))

    yield call
    torch.set_num_threads(threads)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def after_step(monkeypatch):
    """Do something when a step has been logged."""

    def arrange(step, act):
        log = Run.log

        def logged(self, at, metrics):
            log(self, at, metrics)
            if at == step:
                act(self.folder)

        monkeypatch.setattr(Run, "log", logged)

    return arrange


def ask(folder, **wishes):
    (folder / "control.json").write_text(json.dumps(wishes))


def names(folder):
    return [path.name for path in checkpoints(folder)]


def rows(folder):
    return [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(folder)]


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "adapter_model.safetensors")


# -- control.json ------------------------------------------------------------------------------------------------------


def test_asked_to_stop_it_saves_and_a_resume_goes_on(train, after_step, tmp_path):
    after_step(2, lambda folder: ask(folder, stop=True))
    assert train("run", "--max-steps", 5) == 0
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", 3)
    assert names(tmp_path / "run")[-1] == "step-000003"
    assert not (tmp_path / "run" / "control.json").exists()
    assert __main__.main(["sft", "--output", "run", "--resume"]) == 0
    assert read_status(tmp_path / "run")["state"] == "finished"


def test_asked_to_save_it_saves_once_and_goes_on(train, after_step, tmp_path):
    after_step(2, lambda folder: ask(folder, save=True))
    assert train("run", "--max-steps", 6, "--save-every", 100, "--eval-every", 100) == 0
    assert names(tmp_path / "run") == ["step-000003", "step-000006"]


def test_paused_it_waits_until_told_to_go_on(train, after_step, tmp_path, monkeypatch):
    messages = []

    def slept(seconds):
        messages.append(read_status(tmp_path / "run")["message"])
        if len(messages) == 3:
            ask(tmp_path / "run", pause=False, num_threads=2)

    monkeypatch.setattr(run.time, "sleep", slept)
    counts = []
    monkeypatch.setattr(processes, "set_threads", counts.append)
    after_step(2, lambda folder: ask(folder, pause=True))
    assert train("run", "--max-steps", 4) == 0
    assert messages == ["paused"] * 3
    assert counts == [1, 2], "the knob at the start, then what was asked for, once"
    assert len(rows(tmp_path / "run")) == 5


def test_a_save_asked_for_with_a_pause_is_done_after_it(train, after_step, tmp_path, monkeypatch):
    monkeypatch.setattr(run.time, "sleep", lambda seconds: ask(tmp_path / "run", pause=False))
    after_step(2, lambda folder: ask(folder, save=True, pause=True))
    assert train("run", "--max-steps", 6, "--save-every", 100, "--eval-every", 100) == 0
    assert names(tmp_path / "run") == ["step-000003", "step-000006"]


@pytest.mark.parametrize("text", ["{", "[]", '{"stopp": true}', '{"stop": "yes"}', '{"num_threads": -1}'])
def test_a_mistake_in_control_json_is_said_once_and_changes_nothing(tmp_path, text):
    said = []
    control = run.Control(tmp_path / "control.json", said.append)
    (tmp_path / "control.json").write_text(text)
    assert control.read() == control.read() == run.Wishes()
    assert len(said) == 1
    assert "control.json is not followed" in said[0]


# -- the best checkpoint -----------------------------------------------------------------------------------------------


def walk(
    folder, data, values, config=SFTConfig, method="sft", name="eval/loss", resume=False, start=0, losses=(), **knobs
):
    """A run that only logs and saves these values, one a step; returns the Run."""
    with Run(config(data=str(data), output=str(folder), **knobs), method, resume) as made:
        made.begin(start, 100)
        for step, value in enumerate(values, start + 1):
            made.log(step, {"loss": losses[step - 1] if losses else 1.0, name: value})
            made.save_checkpoint(
                step, lambda path: (path / "w").write_text("w"), lambda path: path.write_text("s"),
                {"kind": "policy", "metrics": {name: value}, "data": {"sha256": ""}},
            )  # fmt: skip
        made.finish(checkpoints(folder)[-1], {})
    return made


def test_the_best_checkpoint_stays_beside_the_newest(rankings_file, tmp_path):
    made = walk(tmp_path / "a", rankings_file, [3.0, 1.0, 1.0, 2.0, 5.0], keep_checkpoints=1)
    assert names(tmp_path / "a") == ["step-000002", "step-000005"]
    assert made.result["best_checkpoint"].endswith("step-000002")
    assert read_status(tmp_path / "a")["result"]["best_checkpoint"] == made.result["best_checkpoint"]
    made = walk(tmp_path / "b", rankings_file, [3.0, 1.0, 4.0, 2.0], PPOConfig, "ppo", "eval/score", keep_checkpoints=1)
    assert made.result["best_checkpoint"].endswith("step-000003"), "a reward is better when higher"


def test_patience_counts_evaluations_without_a_better_one_and_survives_a_resume(rankings_file, tmp_path):
    made = walk(tmp_path / "a", rankings_file, [3.0, 2.0, 2.5], patience=2)
    assert not made.out_of_patience
    again = walk(tmp_path / "a", rankings_file, [2.0], patience=2, resume=True, start=3)
    assert again.out_of_patience, "an equal value is not a better one"
    assert again._judged == [3.0, 2.0, 2.5, 2.0]
    assert walk(tmp_path / "b", rankings_file, [1.0, 2.0, 3.0]).out_of_patience is False, "0 means never"


def test_a_run_that_learns_nothing_stops_early(train, tmp_path, capsys):
    knobs = ("--max-steps", 50, "--eval-every", 1, "--patience", 2, "--learning-rate", 0)
    assert train("run", *knobs) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 2
    assert result["best_checkpoint"].endswith("step-000002")
    status = read_status(tmp_path / "run")
    assert (status["state"], status["total_steps"]) == ("finished", 50)
    assert "stopped early" in (tmp_path / "run" / "log.txt").read_text()
    assert train("none", *knobs, "--validation-fraction", 0) == 2
    assert "patience needs held-out data" in capsys.readouterr().err.splitlines()[-1]


# -- what may go wrong -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(rankings_file, tmp_path, monkeypatch):
    done = []
    sync, replace = files.sync, os.replace
    monkeypatch.setattr(run, "sync", lambda path: (done.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("name", os.path.basename(b))), replace(a, b)))
    walk(tmp_path / "run", rankings_file, [1.0])
    placed = done.index(("name", "step-000001"))
    assert {("sync", "w"), ("sync", "manifest.json"), ("sync", "partial-step-000001")} <= set(done[:placed])
    assert done[-2:] != done[:placed]
    assert ("sync", "checkpoints") in done[placed:]


@pytest.mark.parametrize(("limit", "rank"), [(15_000, 4), (4_000_000, 600)], ids=["weights", "optimiser state"])
def test_a_full_disk_leaves_the_earlier_checkpoints_whole(train, tmp_path, limit, rank):
    """No file may grow beyond `limit` bytes: the weights do not fit, or they do and the optimiser's state does not."""
    assert train("run", "--max-steps", 4, "--save-every", 2, "--lora-rank", rank) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    sizes = [next(path for path in before if path.name == "adapter_model.safetensors").stat().st_size]
    sizes.append((tmp_path / "run" / "state" / "step-000002").stat().st_size)
    assert sum(size > limit for size in sizes) == (2 if rank == 4 else 1), sizes
    more = ["sft", "--output", "run", "--resume", "--max-steps", "8"]
    full = subprocess.run(
        [sys.executable, "-m", "training", *more], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert full.returncode == 2
    last = full.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "step-000006: the checkpoint could not be written" in last
    assert "Traceback" not in full.stderr
    assert read_status(tmp_path / "run")["state"] == "failed"
    after = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert after == before
    assert not list((tmp_path / "run" / "checkpoints").glob(".partial-*"))
    assert __main__.main(more) == 0
    assert names(tmp_path / "run")[-1] == "step-000008"


def test_a_learning_rate_out_of_all_reason_ends_in_one_line(train, tmp_path, capsys):
    knobs = ("--max-steps", 60, "--save-every", 1, "--eval-every", 100, "--warmup-ratio", 0, "--max-grad-norm", 0)
    assert train("run", *knobs, "--learning-rate", 1, "--beta", 10, method="dpo") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "diverged; lower learning_rate (now 1)" in last
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed"
    assert status["step"] < 60
    assert all(w.isfinite().all() for w in weights(tmp_path / "run").values())
    checkpoint = checkpoints(tmp_path / "run")[-1]
    assert train("next", "--max-steps", 1, "--from-checkpoint", checkpoint, "--learning-rate", 1e-6) == 0


def test_a_loss_that_is_not_a_number_is_never_saved(rankings_file, tmp_path):
    with pytest.raises(InputError, match="loss is nan at step 3"):
        walk(tmp_path / "run", rankings_file, [2.0, 1.0, 1.5], losses=[1.0, 1.0, math.nan])
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert names(tmp_path / "run") == ["step-000001", "step-000002"]
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_a_loss_that_blows_up_ends_the_run_and_noise_does_not(rankings_file, tmp_path):
    values, noise = [2.0] * 12, [0.7, 9.0, 2.0, 5.0, 1.0, 8.0, 0.1, 6.0, 3.0, 2.0, 9.0, 1.0]
    walk(tmp_path / "noise", rankings_file, values, losses=noise)
    with pytest.raises(InputError, match=r"the loss rose from 2 to 10.8 by step 6"):
        walk(tmp_path / "run", rankings_file, values, losses=[2.0, *[10.8] * 11])
    resumed = Run(SFTConfig(data=str(rankings_file), output=str(tmp_path / "noise")), "sft", True)
    with resumed:
        resumed.begin(8, 12)
        resumed.log(9, {"loss": 5.0})
        with pytest.raises(InputError, match=r"the loss rose from 0\.7 to 6\.42 by step 10"):
            resumed.log(10, {"loss": 13.0})


# -- the same again ----------------------------------------------------------------------------------------------------


def test_a_seed_makes_a_run_repeat(train, tmp_path):
    knobs = ("--max-steps", 3, "--lora-dropout", 0.1)
    for output, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert train(output, *knobs, "--seed", seed) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_manifest_says_where_it_comes_from(train, tmp_path):
    assert train("sft", "--max-steps", 1) == 0
    (first,) = checkpoints(tmp_path / "sft")
    assert train("dpo", "--max-steps", 1, "--from-checkpoint", first, method="dpo") == 0
    (second,) = checkpoints(tmp_path / "dpo")
    assert train("more", "--max-steps", 1, "--from-checkpoint", second) == 0
    manifest = read_manifest(checkpoints(tmp_path / "more")[-1])
    assert manifest["parent"] == str(second)
    chain = manifest["lineage"]
    assert [(link["method"], link["step"], link["checkpoint"]) for link in chain] == [
        ("sft", 1, str(first)),
        ("dpo", 1, str(second)),
    ]
    assert {link["base_model"]["sha256"] for link in chain} == {manifest["base_model"]["sha256"]}
    assert all(len(link["data"]["sha256"]) == 64 for link in chain)
    assert read_manifest(first)["lineage"] == []


def test_a_continued_adapter_keeps_its_settings_and_flags_against_it_are_refused(train, tmp_path, capsys):
    lora = ("--lora-rank", 3, "--lora-alpha", 5, "--lora-targets", "q_proj,v_proj", "--use-rslora", "--lora-layers", 1)
    assert train("a", "--max-steps", 1, *lora) == 0
    (parent,) = checkpoints(tmp_path / "a")
    for flags, words in [
        (("--lora-rank", 4), "--lora-rank does not go with --from-checkpoint: the adapter that is continued has 3"),
        (("--lora-targets", "all-linear"), "has q_proj,v_proj"),
        (("--no-use-rslora",), "--use-rslora"),
    ]:
        assert train("b", "--max-steps", 1, "--from-checkpoint", parent, *flags) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert train("b", "--max-steps", 1, "--from-checkpoint", parent, "--lora-rank", 3) == 0
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["lora_alpha"], config["lora_targets"], config["lora_layers"], config["use_rslora"]) == (
        5, "q_proj,v_proj", 1, True,
    )  # fmt: skip
    assert __main__.main(["sft", "--output", "b", "--resume", "--max-steps", "2"]) == 0
