"""The speed benchmarks, on a tiny model: what they print, and that the work is the one they say."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.train
from benchmarks import compare, growth
from benchmarks.watch import Watch, flops_per_token
from benchmarks.work import parse
from data.formats import parse_ranking, read_rows, write_rows
from data.records import InputError
from training.base import Base
from training.batches import Fit, encode_rankings
from training.models import load_base
from training.packs import Group
from training.reward import PreferenceLikelihood

PAIRS = [{"prompt": f"Say {i}.", "chosen": f"{i}, of course.", "rejected": "No, I will not do that."} for i in range(6)]
PEER_FIELDS = {
    "reward": {"pairs_per_s", "total_s", "before_training_s", "peak_rss_mb", "losses", "tokens"},
    "ppo": {"batch", "epochs", "response", "s_per_update", "peak_rss_mb"},
    "rollout": {"batch", "new_tokens", "tokens_per_s", "peak_rss_mb"},
}
POSITIVE = {"pairs_per_s", "rankings_per_s", "total_s", "before_training_s", "peak_rss_mb", "tokens", "tokens_per_s",
            "matmul_share", "peak_tflops", "s_per_update"}  # fmt: skip


@pytest.fixture
def measure(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run a work on the pairs of this file and check what every work says of itself."""
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # a run in this process leaves pytest its signals

    def run(method: str, *more: str) -> dict[str, Any]:
        common = ["--model", tiny_model, "--data", tmp_path / "pairs.jsonl", "--dtype", "fp32", "--threads", 1]
        assert benchmarks.train.main([method, *map(str, common), *more]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {"method", "dtype", "precompute", "compile_s", "children_rss_mb", "padding"} <= found.keys()
        for name in POSITIVE & found.keys():
            value = found[name]
            assert min(value if isinstance(value, list) else [value]) > 0, name
        assert 0 <= found["padding"] < 1
        return found

    return run


SMALL = ("--steps", "3", "--batch", "2", "--warm", "1")


@pytest.mark.parametrize(("method", "more"), [("reward", ()), ("dpo", ()), ("dpo", ("--precompute",))])
def test_preferences(measure: Any, method: str, more: tuple[str, ...]) -> None:
    found = measure(method, *SMALL, *more)
    assert found.keys() >= PEER_FIELDS["reward"] | POSITIVE - {"s_per_update"}
    assert len(found["losses"]) == 3
    assert method == "reward" or found["losses"][0] == pytest.approx(0.6931, abs=1e-4)
    assert found["pairs_per_s"] == found["rankings_per_s"]  # each of these rankings is one pair


def test_compiling_is_counted_though_it_comes_before_the_steps(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "compile", lambda *_: time.sleep(0.3))
    found = measure("reward", *SMALL, "--set", "fast=compile")
    assert found["compile_s"] >= 0.3
    assert found["before_training_s"] >= 0.3


def test_rows_are_met_in_the_order_of_the_file(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[list[int]] = []
    denominator = PreferenceLikelihood.denominator

    def watched(objective: PreferenceLikelihood, groups: list[Group]) -> float:
        texts = [objective.base.tokenizer.decode(list(group.responses[0])) for group in groups]
        met.append([int(text.split(",")[0]) for text in texts])
        return denominator(objective, groups)

    monkeypatch.setattr(PreferenceLikelihood, "denominator", watched)
    measure("reward", *SMALL)
    assert met == [[0, 1], [2, 3], [4, 5]]


def test_precomputing_leaves_one_forward_a_pair(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is read before the steps that are timed, not in them."""
    seen: list[bool] = []
    efficiency = Watch.efficiency

    def watched(watch: Watch, base: Any, groups: Any, logits: bool, warm: int) -> dict[str, Any]:
        start = watch.ends[warm - 1]
        seen.extend(read.learns for read in watch.reads if read.time > start)
        return efficiency(watch, base, groups, logits, warm)

    monkeypatch.setattr(Watch, "efficiency", watched)
    measure("dpo", *SMALL, "--precompute")
    assert seen
    assert all(seen)
    seen.clear()
    measure("dpo", *SMALL)
    assert not all(seen)


def test_ppo_answers_at_full_length(measure: Any) -> None:
    found = measure("ppo", "--steps", "2", "--batch", "3", "--warm", "1", "--response", "5")
    assert found.keys() >= PEER_FIELDS["ppo"]
    assert found["sampled_tokens"] == [15, 15]
    assert len(found["s_per_update"]) == 2


@pytest.mark.parametrize("adapter", [(), ("--adapter",)])
def test_rollout(measure: Any, adapter: tuple[str, ...]) -> None:
    found = measure("rollout", "--batch", "3", "--response", "5", *adapter)
    assert found.keys() >= PEER_FIELDS["rollout"]
    assert found["adapter"] == bool(adapter)
    assert len(found["tokens_per_s"]) == 3


def test_the_fast_paths_are_off_everywhere(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Base] = []

    def watched(*arguments: Any, **more: Any) -> Base:
        loaded.append(load_base(*arguments, **more))
        return loaded[-1]

    monkeypatch.setattr(benchmarks.train, "load_base", watched)
    measure("rollout", "--batch", "2", "--response", "3", "--set", "fast=off")
    measure("ppo", "--steps", "2", "--batch", "2", "--response", "3", "--set", "fast=off")
    assert [base.fast for base in loaded] == [False] * 3
    measure("rollout", "--batch", "2", "--response", "3")
    assert loaded[-1].fast


def test_threads_wait_as_in_the_trainer() -> None:
    """What OpenMP is told counts only where it is told before torch is imported."""
    code = """
import os, sys
class AtTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.exit(os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, AtTorch())
import benchmarks.train
"""
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=inherited, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "20000"


def test_flops_are_those_of_the_layers(tiny_model: Path) -> None:
    """Counted by torch while the model reads a prompt and one answer; with attention whole, which it computes so."""
    base = load_base(str(tiny_model), "fp32", "cpu")
    base.model.set_attn_implementation("eager")  # torch does not count the fused one
    prompt, response = 64, 64
    forward, backward = flops_per_token(base, [Group([5] * prompt, [[5] * response])], logits=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = base.hidden(torch.full((1, prompt + response), 5))
        base.logits(hidden[:, prompt:])
    length, config = prompt + response, base.model.config
    hidden_half = 4 * config.num_hidden_layers * config.hidden_size * (length * length - length * (length + 1) / 2)
    norms = 2 * (2 * config.num_hidden_layers + 1) * config.hidden_size * length  # weights that are no matrices
    assert forward * length == pytest.approx(counter.get_total_flops() - hidden_half + norms, rel=1e-6)
    seen = length * (length + 1) / 2
    assert (backward - forward) * length == pytest.approx(4 * config.num_hidden_layers * config.hidden_size * seen)


def test_too_few_rows_are_said(measure: Any, tmp_path: Path, tiny_model: Path) -> None:
    words = ["reward", "--model", str(tiny_model), "--data", str(tmp_path / "pairs.jsonl")]
    assert benchmarks.train.main(words) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dpo", "--response", "5"], "--response has no part in dpo"),
        (["rollout", "--steps", "3"], "--steps has no part in rollout"),
        (["reward", "--precompute"], "--precompute has no part in reward"),
        (["ppo", "--adapter"], "--adapter has no part in ppo"),
        (["dpo", "--set", "lora_rank=4", "batch_size=2"], "--set batch_size would be other work"),
        (["rollout", "--set", "fast=off", "lora_rank=4"], "rollout heeds only fast and device"),
    ],
)
def test_what_would_be_ignored_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.train.main([*words, "--data", "pairs.jsonl"])
    assert told in capsys.readouterr().err


# -- beside the peer ---------------------------------------------------------------------------------------------------


def test_both_sides_get_the_same_work(tmp_path: Path) -> None:
    options = argparse.Namespace(data="pairs", prompts="prompts", rankings=None, only=compare.WORKS, steps=5)
    for work in compare.works(options, tmp_path).values():
        assert work.ours == work.peer
        for side in (work.ours, work.peer):
            parsed = parse(argparse.ArgumentParser(), [str(word) for word in side], "model")
            assert parsed.steps == (None if parsed.method == "rollout" else 5)


def test_rankings_are_compared_with_the_pairs_that_they_imply(tmp_path: Path) -> None:
    ranked = {"prompt": "Which?", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 1, 3]}
    work = compare.rankings_work([parse_ranking(ranked)] * compare.RANKINGS, tmp_path)
    pairs = [row for _, row in read_rows(tmp_path / "pairs.jsonl")]
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs[:5]] == [
        ("b", "a"), ("c", "a"), ("a", "d"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert len(pairs) == 5 * compare.RANKINGS
    assert work.peer[-1] == 5 * compare.RANKINGS // compare.PAIRS_AT_ONCE
    with pytest.raises(InputError, match="0 rankings of four"):
        compare.rankings_work([], tmp_path)


def test_ratios_and_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peer and ours take turns; PPO's ratio says how many times as fast, though its unit is seconds."""
    seconds = {"benchmarks.peer_speed": iter([40.0, 50.0, 60.0]), "benchmarks.train": iter([10.0, 10.0, 20.0])}
    asked: list[str] = []

    def measured(module: str, *_: Any) -> dict[str, Any]:
        asked.append(module)
        update = next(seconds[module])
        return {
            "method": "ppo",
            "s_per_update": [99.0, update, update],
            "peak_rss_mb": 1000 if "peer" in module else 250,
        }

    monkeypatch.setattr(compare, "measure", measured)
    monkeypatch.setattr(compare, "peer_environment", lambda *_: {})
    options = argparse.Namespace(peer_folder=Path(), rounds=3, set=[])
    found = compare.compare(compare.Work(["ppo"], ["ppo"], "s/update"), "model", options)
    assert asked == ["benchmarks.peer_speed", "benchmarks.train"] * 3
    assert found["speed"] == {"peer": [40.0, 50.0, 60.0], "ours": [10.0, 10.0, 20.0]}
    assert found["ratio"] == 5.0
    assert found["ratio_of_rounds"] == [3.0, 5.0]
    assert found["memory_ratio"] == 0.25
    assert "| 40, 50, 60 | 10, 10, 20 | 5.00 (3.00 to 5.00) | 1.05 | 0.26 | 0.25 |" in compare.table({"ppo": found})


# -- growth ------------------------------------------------------------------------------------------------------------


def test_pairs_have_the_wanted_length(tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    base = load_base(str(tiny_model), "fp32", "cpu")
    rows = list(islice(growth.pairs_of_length(str(tmp_path / "pairs.jsonl"), str(tiny_model), 128), 3))
    groups, fitted = encode_rankings(base, [parse_ranking(row) for row in rows], 128 + growth.TEMPLATE_TOKENS)
    assert fitted.kept == 3
    assert not fitted.shortened
    for group in groups:
        for response in group.responses:
            assert 120 <= len(group.prompt) + len(response) <= 128 + growth.TEMPLATE_TOKENS


def test_preparing_stops_before_the_first_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is there and none repeats another, though the file is repeated."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    encoded: list[Fit] = []

    def watched(*arguments: Any) -> Any:
        groups, fitted = encode_rankings(*arguments)
        encoded.append(fitted)
        return groups, fitted

    monkeypatch.setattr("training.dpo.encode_rankings", watched)
    options = argparse.Namespace(
        data=str(tmp_path / "pairs.jsonl"), model=str(tiny_model), method="dpo", prepare=20, set=["lora_rank=4"]
    )
    found = growth.prepare(options)
    assert [(fit.kept, fit.duplicates) for fit in encoded] == [(20, 0)]
    assert found["preferences"] == 20
    assert min(found["seconds"], found["peak_rss_mb"]) > 0


def test_growth_measures_each_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    asked: list[list[str]] = []

    def measured(module: str, arguments: list[object]) -> dict[str, Any]:
        asked.append([module.rpartition(".")[2], *map(str, arguments)])
        return dict.fromkeys(("pairs_per_s", "tokens_per_s", "padding", "matmul_share", "compile_s", "peak_rss_mb"), 1)

    monkeypatch.setattr(growth, "measure", measured)
    options = argparse.Namespace(
        data=str(tmp_path / "pairs.jsonl"), model=str(tiny_model), method="dpo", lengths=[64], batches=[2], counts=[7],
        steps=3, set=["seed=1"],
    )  # fmt: skip
    by_length, by_batch, by_count = (list(growth.points(name, options)) for name in ("length", "batch", "data"))
    assert [row["length"] for row in by_length + by_batch] == [64, growth.AT_LENGTH]
    assert [row["batch"] for row in by_length + by_batch] == [growth.AT_BATCH, 2]
    assert asked[2][0] == "growth"
    assert asked[2][-4:] == ["--prepare", "7", "--set", "seed=1"]
    assert growth.table(by_length).splitlines()[2] == "| 64 | 4 | 1 | 1 | 1 | 1 | 1 | 1 |"
    assert by_count
