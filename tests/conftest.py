"""Fixtures that several rooms share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with the real tokenizer, as a folder."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


class OneBrowser(LoadScopeScheduling):
    """Of the processes that `make test` starts one has all browser tests: two browsers wait too long for two cores."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "browser" if path.startswith("tests/browser/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneBrowser:
    """How tests are given to the processes: file by file."""
    return OneBrowser(config, log)
