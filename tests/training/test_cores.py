"""A run leaves half of its threads to whoever answers, and takes them back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training import CHAT_LOCK, cores
from training.config import DPOConfig
from training.models import load_base
from training.packs import Group, pack


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "chat.lock"
    path.touch()
    monkeypatch.setenv(CHAT_LOCK, str(path))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield path
    cores.heed()
    torch.set_num_threads(before)


def answers() -> Iterator[int]:
    yield from range(3)


def test_threads_are_halved_while_somebody_answers(lock: Path, tiny_model: Path) -> None:
    base = load_base(str(tiny_model), "fp32", "cpu")
    base.new_adapter("policy", DPOConfig())
    base.set_trainable("policy")
    found = pack([Group([5, 6], [[7]])], base.device)
    seen = []
    first, second = (cores.answering(answers(), lock, training=False) for _ in range(2))
    next(first), next(second)
    torch.set_num_threads(4)
    for holder in (first, second, None):  # both must have ended
        with base.using("policy"):
            hidden = base.read(found)
        seen.append(torch.get_num_threads())
        base.backward(hidden.sum())
        seen.append(torch.get_num_threads())
        if holder:
            holder.close()  # type: ignore[attr-defined]
    assert seen == [2, 2, 2, 2, 4, 4]


def test_who_answers_beside_a_run_uses_half_of_the_cores(lock: Path) -> None:
    cpus = len(os.sched_getaffinity(0))
    for training, threads in ((True, max(1, cpus // 2)), (False, cpus)):
        given = cores.answering(answers(), lock, training)
        assert list(given) == [0, 1, 2]
        assert torch.get_num_threads() == threads


def test_a_killed_app_gives_the_cores_back(lock: Path) -> None:
    code = "import sys, time; from pathlib import Path; from training import cores\n"
    code += (
        "a = cores.answering(iter([1, 2]), Path(sys.argv[1]), True); next(a); print('on', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "on\n"
    cores.heed()
    assert torch.get_num_threads() == 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    cores.heed()
    assert torch.get_num_threads() == 4


def test_without_a_lock_nothing_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for path in ("", str(tmp_path / "nowhere")):
        monkeypatch.setenv(CHAT_LOCK, path)
        cores.heed()
        assert torch.get_num_threads() == before
