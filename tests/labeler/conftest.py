"""Fixtures of the tests that let a tiny model talk."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.chat import Chat
from labeler.workspace import Workspace
from tests.labeler.studio import chat_with_checkpoints


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Chat:
    """The tiny model with the checkpoints of `chat_with_checkpoints`."""
    return chat_with_checkpoints(tmp_path_factory.mktemp("talking"), tiny_model)


@pytest.fixture
def workspace(talking: Chat) -> Workspace:
    """Where those checkpoints are. A module that needs no model has a workspace of its own."""
    return talking.workspace
