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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests that share a name xdist would run one only: schemathesis puts the operation where pytest never looks."""
    for item in items:
        if item.parent is not None and not item.nodeid.endswith(item.name):
            item._id = type(item._id).parse(f"{item.parent.nodeid}::{item.name}")
    assert len({item.nodeid for item in items}) == len(items), "tests share a name, so one would not be run"


class OneBrowser(LoadScopeScheduling):
    """Of the processes that `make test` starts one has all browser tests: two browsers wait too long for two cores."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "browser" if path.startswith("tests/browser/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneBrowser:
    """How tests are given to the processes: file by file."""
    return OneBrowser(config, log)
