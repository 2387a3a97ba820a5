"""Two processes against one, through `accelerate launch` on CPU with gloo: the same numbers, and nobody hangs."""

import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.training.conftest import ROOT, last_json
from training.run_folder import checkpoints, read_metrics, read_status

LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
          "--dynamo_backend=no", "--main_process_port=0", "-m", "training"]  # fmt: skip
METHODS = ["sft", "reward", "dpo", "ppo"]
RICH_PPO = ["--value-model", "adapter", "--value-warmup", 1, "--normalise-rewards", "running", "--kl-target", 0.2,
            "--kl-horizon", 20, "--kl-placement", "loss", "--kl-estimator", "k3", "--entropy-coefficient", 0.01,
            "--stop-kl", 0.01, "--missing-eos-penalty", 0.1, "--batch-size", 10, "--samples-per-prompt", 2]  # fmt: skip
"""Everything in PPO that looks at more than one process's share."""
UNEQUAL = {"time", "tokens", "packing/fill"}
"""What one process and two need not share: the clock, and means over forwards, of which two processes make more."""


@pytest.fixture
def arguments(arguments):
    """Eleven groups in batches of five: the processes' shares are unequal."""
    return lambda method, output, *more: arguments(method, output, "--batch-size", 5, *more)


@pytest.fixture
def launch(tmp_path):
    """Start the real command in two processes; whatever still runs after the test is ended."""
    started = []

    def start(*arguments):
        with open(tmp_path / "stderr.txt", "w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *LAUNCH, *map(str, arguments)], cwd=tmp_path, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        started.append(psutil.Process(process.pid))
        return process

    yield start
    for process in started:
        if process.is_running():
            for each in [*process.children(recursive=True), process]:
                each.kill()


def finished(process, tmp_path, seconds=300):
    """The process's JSON result."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, (tmp_path / "stderr.txt").read_text()
    (line,) = [line for line in out.splitlines() if line.startswith("{")]
    assert out.splitlines()[-1] == line
    return line


def wait_until(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_same(one, two):
    rows = [[{k: v for k, v in row.items() if k not in UNEQUAL} for row in read_metrics(run)] for run in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("method", "more"), [*((method, []) for method in METHODS), ("ppo", RICH_PPO)])
def test_two_processes_give_the_numbers_of_one(method, more, command, launch, arguments, tmp_path):
    steps = ("--max-steps", 5, "--tokens-per-forward", 100, "--validation-fraction", 0.2, *more)
    two = launch(*arguments(method, "two", *steps))
    command(*arguments(method, "one", *steps))
    finished(two, tmp_path)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "log.txt").read_text().count("step 5/5") == 1, "only the main process writes"
    assert read_status(tmp_path / "two")["state"] == "finished"


@pytest.mark.parametrize("method", METHODS)
def test_a_base_that_is_split_over_two_processes_gives_the_same_numbers(method, command, launch, arguments, tmp_path):
    """DPO's processes remember different references, PPO's sample for different lengths: none may wait forever."""
    steps = ("--max-steps", 5, "--tokens-per-forward", 100, "--validation-fraction", 0.2, "--lora-layers", 1)
    more = ("--gradient-checkpointing",) if method == "reward" else ()
    two = launch(*arguments(method, "two", *steps, *more, "--shard-base"))
    command(*arguments(method, "one", *steps))
    finished(two, tmp_path)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_run_goes_on_with_another_number_of_processes(command, launch, arguments, tmp_path):
    steps = ("--save-every", 3, "--eval-every", 3)
    finished(launch(*arguments("dpo", "run", "--max-steps", 6, "--schedule", "constant", *steps)), tmp_path)
    for left in checkpoints(tmp_path / "run")[1:]:
        (tmp_path / "run" / "state" / left.name).unlink()
    assert last_json(command("dpo", "--output", tmp_path / "run", "--resume"))["steps"] == 6
    command(*arguments("dpo", "straight", "--max-steps", 6, "--schedule", "constant", *steps))
    assert "resuming after step 3" in (tmp_path / "run" / "log.txt").read_text()
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_sigterm_to_the_launcher_saves_and_stops_everybody(launch, arguments, tmp_path):
    process = launch(*arguments("reward", "run", "--max-steps", 100_000))
    wait_until(lambda: read_metrics(tmp_path / "run", 2))
    everybody = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert not [p for p in everybody if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    status = read_status(tmp_path / "run")
    assert status["state"] == "stopped"
    assert checkpoints(tmp_path / "run")[-1].name == f"step-{status['step']:06d}"


def test_when_one_process_dies_the_other_ends_and_says_so(launch, arguments, tmp_path):
    process = launch(*arguments("sft", "run", "--max-steps", 100_000))
    wait_until(lambda: read_metrics(tmp_path / "run", 2))
    main = read_status(tmp_path / "run")["pid"]
    (other,) = [
        p for p in psutil.Process(process.pid).children(recursive=True) if p.pid != main and "training" in p.cmdline()
    ]
    other.kill()
    assert process.wait(60) != 0
    assert not psutil.pid_exists(main)
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed"
    assert "another process of this run" in status["message"]


def test_a_mistake_is_told_once_in_two_processes(launch, arguments, tmp_path):
    process = launch(*arguments("sft", "run", "--max-length", 16))
    assert process.wait(120) != 0
    lines = (tmp_path / "stderr.txt").read_text().splitlines()
    assert sum(line.startswith("error: ") and "raise it" in line for line in lines) == 1
    assert math.isfinite(read_status(tmp_path / "run")["updated_at"])
