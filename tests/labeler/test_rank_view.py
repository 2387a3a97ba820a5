"""What the Rank tab is told."""

from __future__ import annotations

from pathlib import Path

from labeler.ui.markdown import render
from labeler.ui.rank_view import next_view, render_ahead
from labeler.users import local_owner
from tests.labeler.labels import make_workspace, rank


def test_the_next_task_is_rendered_before_it_is_asked_for(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    owner = local_owner(workspace.store)
    render.cache_clear()
    first = next_view(workspace, owner)
    assert render.cache_info().misses == 4
    assert render_ahead(workspace, owner, first["assignment"]) == {}
    assert render.cache_info().misses == 8
    assert next_view(workspace, owner)["assignment"] == first["assignment"]
    rank(workspace, [1, 2, 3, 4])
    second = next_view(workspace, owner)
    assert second["messages"] != first["messages"]
    assert render.cache_info().misses == 8
    assert render_ahead(workspace, owner, first["assignment"]) == {}  # it is not open any more
    assert render.cache_info().misses == 8
