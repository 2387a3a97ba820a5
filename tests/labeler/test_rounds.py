"""Rounds: what came of each policy, the prompts and models of the next one, and whether more labels are worth it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler import jobs, rounds
from labeler.agreement import Figure
from labeler.chat import Chat
from labeler.events import Event
from labeler.leaderboard import Vote
from labeler.prompts import add_completion, add_prompt
from labeler.rankings import record_event
from labeler.store import scalar
from labeler.tasks import create_task, open_assignment
from labeler.users import ensure_user, local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from tests.labeler.studio import chat_with_checkpoints, wait_for


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Chat:
    return chat_with_checkpoints(tmp_path_factory.mktemp("rounds"), tiny_model)


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "workspace", "no-model", seed_file=None)


def task(workspace: Workspace, number: int, source: str = "import", provenance: dict | None = None) -> int:
    with workspace.store.write() as db:
        prompt_id = add_prompt(db, [{"role": "user", "content": f"Question {number}"}], "", "import")
        texts = (f"{number} a", f"{number} b", f"{number} c")
        ids = [add_completion(db, prompt_id, text, None, {}, None, None, source) for text in texts]
        return create_task(db, prompt_id, ids, project_id=1, overlap=2, source=source, provenance=provenance)


def say(workspace: Workspace, task_id: int, name: str, ranks: list[int | None]) -> None:
    with workspace.store.write() as db:
        user = ensure_user(db, name)
        assignment = open_assignment(db, task_id, user, 0.0, shuffle=False)
    record_event(workspace.store, user, Event(f"event-{task_id}-{name}", assignment, "submit", ranks))


def vote(first: int, second: int, outcome: float, ranking: int) -> Vote:
    return Vote(1, 1, first, second, outcome, ranking)


def test_the_share_of_votes_against_the_parent() -> None:
    cast = [vote(7, 1, 1.0, 1), vote(1, 7, 1.0, 2), vote(1, 8, 0.0, 3), vote(8, 1, 0.5, 4), vote(7, 8, 1.0, 5),
            vote(7, 2, 1.0, 6)]  # fmt: skip
    share = rounds.win_share(cast, {7, 8}, 1)
    assert (share.value, share.n) == (2.5 / 4, 4)
    assert share.low is not None
    assert share.high is not None
    assert share.low < 2.5 / 4 < share.high
    both = [vote(7, 1, 1.0, 9), vote(8, 1, 0.0, 9)]  # of one ranking: one vote
    assert rounds.win_share(both, {7, 8}, 1) == rounds.share_of(0.5, 1)
    assert rounds.win_share(cast, {99}, 1) == Figure(None)


def test_the_ceiling_is_what_agreement_allows(empty: Workspace) -> None:
    assert rounds.ceiling(empty.store.db) == Figure(None)
    for number in range(10):
        shown = task(empty, number)
        say(empty, shown, "Ada", [1, 2, 3])
        say(empty, shown, "Bo", [1, 2, 3] if number else [3, 1, 1])  # two pairs turned round, one a tie
    top = rounds.ceiling(empty.store.db)
    assert top.n == 29
    assert top.value == pytest.approx((1 + (2 * 27 / 29 - 1) ** 0.5) / 2)
    assert top.low is not None
    assert top.low < top.value
    # two who are each right with probability 0.9 agree on 82%
    assert rounds._knowing(0.82) == pytest.approx(0.9)
    assert rounds._knowing(0.4) == 0.5


def test_prompts_come_by_uncertainty_then_by_chance(empty: Workspace) -> None:
    for number in range(8):
        said = {"selected_by": "ensemble", "disagreement": number / 100} if number < 3 else None
        task(empty, number, provenance=said)
    questions = [
        scalar(empty.store.db, "SELECT id FROM prompts WHERE messages LIKE ?", [f"%Question {n}%"]) for n in range(8)
    ]
    chosen, by_model = rounds.choose_prompts(empty.store, 5)
    assert (chosen[:3], by_model) == ([questions[2], questions[1], questions[0]], 3)
    assert set(chosen[3:]) <= set(questions[3:])
    assert rounds.choose_prompts(empty.store, 5, seed=0) == (chosen, 3)
    others = {tuple(rounds.choose_prompts(empty.store, 5, seed=seed)[0][3:]) for seed in range(9)}
    assert len(others) > 1
    for number in (1, 2):
        task(empty, number, source="sample")  # a round has asked these
    assert rounds.choose_prompts(empty.store, 8)[0][-2:] == [questions[2], questions[1]]


def test_a_curve_is_told_in_words() -> None:
    climbing = {"prompts": [10, 20, 30, 40, 50], "comparisons": [20, 40, 60, 80, 100], "n": 25,
                "accuracy": [[0.5] * 3, [0.55] * 3, [0.6] * 3, [0.65] * 3, [0.7, 0.68, 0.72]]}  # fmt: skip
    said = rounds.describe_curve(climbing, Figure(0.8, 0.7, 0.9, 40))
    assert "is right on 70.0% of about 25 held-out ones" in said
    assert "The last 20 of them changed that by +5.0 points (+3.0 to +7.0 over 3 splits)" in said
    assert "ceiling at about 80.0% (40 pairs of opinions)" in said
    assert "more labels are worth collecting" in said
    flat = climbing | {"accuracy": [[0.5] * 3] * 3 + [[0.79, 0.8, 0.8], [0.79] * 3]}
    assert "That is reached" in rounds.describe_curve(flat, Figure(0.8, 0.7, 0.9, 40))
    assert "No two people have judged the same pair" in rounds.describe_curve(flat, Figure(None))


def test_rounds_of_real_runs(chat: Chat) -> None:
    workspace = chat.workspace
    found = rounds.pair(workspace)
    assert found is not None
    policy, parent = found
    assert policy.kind == "policy"
    assert policy.parent_id == parent.id
    assert rounds.next_number(workspace.store.db) == 1


def test_a_curve_is_a_run(chat: Chat) -> None:
    workspace = chat.workspace
    for number in range(25):
        say(workspace, task(workspace, 100 + number), "Ada", [1, 2, None])
    job_id = rounds.ask_curve(workspace, local_owner(workspace.store))
    worker = Worker(workspace, poll_seconds=0.05)
    worker.start()
    try:
        wait_for(lambda: jobs.get(workspace.store, job_id).state not in jobs.OPEN_STATES, 120)
    finally:
        worker.stop()
    job = rounds.newest_curve(workspace.store)
    assert job is not None
    assert (job.id, job.state, job.error) == (job_id, "finished", None)
    assert job.result is not None
    assert len(job.result["accuracy"]) == 5
    assert "held-out ones" in rounds.describe_curve(job.result, rounds.ceiling(workspace.store.db))
