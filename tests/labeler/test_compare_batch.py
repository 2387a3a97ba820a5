"""Which prompts the batch mode of Compare draws from."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.records import InputError
from labeler.prompts import add_prompt
from labeler.store import rows
from labeler.ui.compare_batch import EVERYTHING, UNRANKED, prompt_ids
from tests.labeler.labels import make_workspace, rank


def test_prompts_that_somebody_has_ranked_can_be_left_out(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    db = workspace.store.db
    seeded = [row["id"] for row in rows(db, "SELECT id FROM prompts ORDER BY id")]
    assert prompt_ids(workspace, UNRANKED, 10, seed=0) == seeded
    for _ in seeded:
        rank(workspace, [1, 2, 3, 4])
    with pytest.raises(InputError, match="no prompts in this set"):
        prompt_ids(workspace, UNRANKED, 10, seed=0)
    with workspace.store.write() as db:
        new = [add_prompt(db, [{"role": "user", "content": f"New {number}?"}], "", "import") for number in range(5)]
        add_prompt(db, [{"role": "user", "content": "Between us?"}], "", "chat")  # whoever typed it did not publish it
    assert prompt_ids(workspace, UNRANKED, 10, seed=0) == new
    assert prompt_ids(workspace, EVERYTHING, 10, seed=0) == seeded + new
    some = prompt_ids(workspace, UNRANKED, 2, seed=0)
    assert len(some) == 2
    assert set(some) < set(new)
    assert some == prompt_ids(workspace, UNRANKED, 2, seed=0)
    with pytest.raises(InputError, match="at least one"):
        prompt_ids(workspace, UNRANKED, 0, seed=0)
    workspace.store.close()
