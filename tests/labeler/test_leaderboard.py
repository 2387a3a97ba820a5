"""The leaderboard: the fit is an independent one's, intervals hold the truth, and only blind human votes count."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import evalica
import numpy as np
import pytest
from scipy.optimize import root

from benchmarks.leaderboard import CASES, HIGH, LOW, Case, coverage, simulate
from labeler import bradley_terry, leaderboard, tasks
from labeler.agreement import Figure
from labeler.events import Event
from labeler.leaderboard import POINTS, Vote, standings, tabulate, votes
from labeler.prompts import add_completion, add_prompt
from labeler.rankings import record_comparison, record_event
from labeler.store import scalar
from labeler.users import User, ensure_user, local_owner
from labeler.workspace import Workspace, open_workspace


@pytest.fixture(scope="module")
def many() -> list[Vote]:
    """20,000 votes on six checkpoints, a tenth of them ties; longer answers win more."""
    strengths = (0.0, 0.2, 0.5, 0.9, 1.4, 2.0)
    case = Case(strengths, prompts=400, annotators=30, rankings=20_000, ties=0.1, for_length=0.5)
    return simulate(case, np.random.default_rng(0))


def test_the_fit_is_evalicas(many: list[Vote]) -> None:
    table = tabulate(many, range(1, 7))
    design, rows = bradley_terry.kinds(table, control_length=False)
    wins, total = np.bincount(rows, table.outcome)[None], np.bincount(rows)[None].astype(float)
    ours = bradley_terry.fit(design, wins, total, 6, prior_sd=np.inf)[0]
    words = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    theirs = evalica.bradley_terry(
        table.first.tolist(), table.second.tolist(), [words[o] for o in table.outcome], tolerance=1e-14, limit=10_000
    )
    scores = np.log(theirs.scores.sort_index().to_numpy())
    assert len(many) == 20_000
    assert np.abs(ours - (scores - scores.mean())).max() < 1e-6


@pytest.mark.parametrize("control_length", [False, True])
def test_the_fit_with_prior_and_length_is_scipys(many: list[Vote], control_length: bool) -> None:
    """The same likelihood written vote by vote, its top found by somebody else's method."""
    x = np.zeros((len(many), 7))
    for row, vote in enumerate(many):
        x[row, vote.first - 1], x[row, vote.second - 1] = 1, -1
        a, b = vote.lengths
        x[row, 6] = np.round(3 * (a - b) / (a + b), 2) if control_length else 0
    y = np.array([vote.outcome for vote in many])

    def slope(parameters: np.ndarray) -> np.ndarray:
        return (y - 1 / (1 + np.exp(-x @ parameters))) @ x - parameters / 3.0**2

    theirs = root(slope, np.zeros(7), method="hybr", tol=1e-13).x
    found = bradley_terry.estimate(tabulate(many, range(1, 7)), control_length, draws=2)
    assert np.abs(found.parameters - theirs[: len(found.parameters)]).max() < 1e-6
    if control_length:
        assert found.parameters[6] == pytest.approx(0.44, abs=0.04)  # 0.5, and the ties take about a tenth


@pytest.mark.parametrize("name", ["by prompt", "both"])
def test_intervals_hold_the_truth(name: str) -> None:
    """A small version of benchmarks/leaderboard.py."""
    found = coverage(CASES[name], simulations=30, seed=1, draws=100)
    assert found["intervals"] == 90
    assert LOW <= found["coverage"] <= HIGH


def wins(first: int, second: int, count: int, outcome: float = 1.0, start: int = 0) -> list[Vote]:
    return [Vote(start + i, i % 7, first, second, outcome, start + i) for i in range(count)]


def test_who_never_lost_has_a_finite_strength_and_a_wide_interval() -> None:
    (best, _) = standings(wins(1, 2, 20), anchor=2).places
    assert (best.checkpoint_id, best.one_sided, best.wins) == (1, True, 20)
    assert best.strength.low is not None
    assert best.strength.high is not None
    assert best.strength.low > 0
    assert 500 < best.strength.high - best.strength.low < 3000


def test_checkpoints_that_no_votes_connect_have_no_strength() -> None:
    found = standings([*wins(1, 2, 10), *wins(2, 1, 4, start=50), *wins(8, 9, 3, start=100)], anchor=1)
    assert [place.checkpoint_id for place in found.places] == [1, 2, 8, 9]
    assert found.places[0].strength == Figure(0, 0, 0, 14)
    assert [place.rank for place in found.places] == [1, 1, None, None]
    assert found.places[2].strength == Figure(None, n=3)
    assert found.matrix[8, 9] == (3, 3)
    assert (found.votes, found.prompts, found.annotators) == (17, 17, 7)


def test_the_points_are_those_of_chess() -> None:
    found = standings([*wins(1, 2, 640), *wins(2, 1, 360, start=1000)], anchor=2)
    assert found.places[0].strength.value == pytest.approx(POINTS * np.log(0.64 / 0.36), rel=0.01)
    assert found.places[0].strength.value == pytest.approx(100, abs=1)
    assert found.gaps[0].votes_needed == 0
    assert [place.rank for place in found.places] == [1, 2]
    assert found.length is None


def test_how_many_votes_separate_neighbours() -> None:
    """12 of 20: d = ln 1.5, p(1 - p) = 0.24. (1.96 + 0.84)^2 / d^2 = 47.7 less the 4.8 there are, over 0.24: 179."""
    (gap,) = standings([*wins(1, 2, 12), *wins(2, 1, 8, start=50)]).gaps
    assert (gap.better, gap.worse, gap.points.n) == (1, 2, 20)
    assert gap.votes_needed == pytest.approx(179, rel=0.1)  # the prior and the resampling move it a little
    (even,) = standings(wins(1, 2, 30, 0.5)).gaps
    assert even.votes_needed is None


def test_one_annotators_votes_are_not_resampled_by_annotator() -> None:
    cast = [Vote(i, 1, 1, 2, float(i % 3 == 0), i) for i in range(60)]
    found = bradley_terry.estimate(tabulate(cast, [1, 2]))
    assert len(found.clustered) == 1
    assert found.clustered[0][1] == 59


@pytest.mark.parametrize(("degrees", "known"), [(4, 2.776), (10, 2.228), (30, 2.042), (None, 1.960)])
def test_quantiles_of_students_t(degrees: int | None, known: float) -> None:
    assert bradley_terry.quantile(degrees) == pytest.approx(known, abs=0.01)


# -- which votes there are ---------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = open_workspace(tmp_path / "workspace", "tiny", seed_file=None)
    with workspace.store.write() as db:
        for name in ("one", "two"):
            db["checkpoints"].insert({"name": name, "kind": "policy", "base_model": "tiny"})
    return workspace


def ids(workspace: Workspace) -> list[int]:
    return [row["id"] for row in workspace.store.db.query("SELECT id FROM checkpoints ORDER BY id")]


def compare(
    workspace: Workspace,
    ranks: Sequence[int | None],
    checkpoints: Sequence[int | None],
    blind: bool = True,
    source: str = "compare",
    user: User | None = None,
) -> None:
    record_comparison(
        workspace.store,
        user or local_owner(workspace.store),
        [{"role": "user", "content": "Say something."}],
        [("x" * (i + 1), checkpoint, {"blind": blind}) for i, checkpoint in enumerate(checkpoints)],
        ranks,
        all_bad=not any(ranks),
        source=source,
        event_id=str(uuid.uuid4()),
    )


def test_a_ranking_of_three_is_three_comparisons_that_share_its_weight(workspace: Workspace) -> None:
    base, one, two = ids(workspace)
    compare(workspace, [1, 2, 2], [one, base, two])
    found = votes(workspace.store.db)
    assert [(vote.first, vote.second, vote.outcome) for vote in found] == [
        (one, base, 1.0), (one, two, 1.0), (base, two, 0.5),
    ]  # fmt: skip
    assert sum(vote.weight for vote in found) == pytest.approx(2)
    assert found[1].lengths == (1, 3)
    assert len({vote.ranking for vote in found}) == 1


def test_what_is_no_blind_comparison_of_checkpoints_is_left_out(workspace: Workspace) -> None:
    base, one, two = ids(workspace)
    compare(workspace, [1, 2], [one, base], blind=False)
    compare(workspace, [1, 2], [one, base], source="chat")
    compare(workspace, [None, None], [one, base])
    compare(workspace, [1, 2], [one, None])
    compare(workspace, [1, 2, None], [one, one, two])
    assert votes(workspace.store.db) == []
    assert len(votes(workspace.store.db, blind_only=False)) == 2


def test_votes_of_a_project_are_those_of_the_rank_tab(workspace: Workspace) -> None:
    base, one, _ = ids(workspace)
    compare(workspace, [2, 1], [one, base])
    with workspace.store.write() as db:
        prompt = add_prompt(db, [{"role": "user", "content": "Which?"}], "", "seed")
        made = [add_completion(db, prompt, f"{each}", each, {}, 1, "stop", "sample") for each in (one, base)]
        tasks.create_task(db, prompt, made, project_id=1)
        somebody = ensure_user(db, "somebody")
    found = tasks.next_assignment(workspace.store, somebody)
    assert found is not None
    event = Event(str(uuid.uuid4()), found.id, "submit", [1 if c.text == str(one) else 2 for c in found.completions])
    assert record_event(workspace.store, somebody, event)
    (labelled,) = votes(workspace.store.db, project_id=1)
    assert (labelled.prompt_id, labelled.annotator_id, labelled.outcome) == (prompt, somebody.id, 1.0)
    (compared,) = votes(workspace.store.db, project_id=leaderboard.NO_PROJECT)
    assert (compared.first, compared.outcome) == (one, 0.0)
    assert len(votes(workspace.store.db)) == 2
    record_event(workspace.store, somebody, Event(str(uuid.uuid4()), found.id, "retract"))
    assert len(votes(workspace.store.db)) == 1
    assert scalar(workspace.store.db, "SELECT count(*) FROM events") == 3
