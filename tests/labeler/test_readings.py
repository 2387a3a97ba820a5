"""What is said of a run's figures: from its own numbers, and only where they bear it out."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import psutil
import pytest

from labeler import readings, resources
from labeler.ui import plots

CONFIG = {"loss": "sigmoid", "learning_rate": 5e-5}


def history(count: int = 40, seed: int = 0, **lines: Any) -> list[dict[str, float]]:
    """Rows of `count` steps; each line is (start, end, noise)."""
    random.seed(seed)
    return [
        {"step": step}
        | {
            name.replace("__", "/"): start + (end - start) * step / count + random.gauss(0, noise)
            for name, (start, end, noise) in lines.items()
        }
        for step in range(1, count + 1)
    ]


def titles(method: str, rows: list[dict[str, float]], config: dict[str, Any] = CONFIG) -> list[str]:
    return [puzzle.title for puzzle in readings.puzzles(method, config, rows)]


def test_the_chosen_reward_falls_while_the_margin_grows() -> None:
    rows = history(loss=(0.69, 0.5, 0.01), rewards__chosen=(0, -2, 0.1), rewards__margins=(0, 1, 0.1))
    (puzzle,) = readings.puzzles("dpo", CONFIG, rows)
    assert puzzle.title == "The reward of chosen answers falls"
    assert "The margin grows all the same" in puzzle.explanation
    rows = history(loss=(0.69, 0.68, 0.001), rewards__chosen=(0, -2, 0.1), rewards__margins=(0, 0, 0.1))
    assert "the margin does not grow" in readings.puzzles("dpo", CONFIG, rows)[-1].explanation
    rows = history(loss=(0.69, 0.5, 0.01), rewards__chosen=(0, 0.01, 0.2), rewards__margins=(0, 1, 0.1))
    assert titles("dpo", rows) == []


def test_the_loss_stuck_at_ln_2() -> None:
    stuck = history(loss=(math.log(2), math.log(2), 0.002))
    assert titles("dpo", stuck) == ["The loss stays at 0.6931"]
    assert titles("reward", stuck, {"loss": "bradley-terry"}) == ["The loss stays at 0.6931"]
    assert titles("dpo", stuck, {"loss": "ipo"}) == [], "which starts elsewhere"
    assert titles("dpo", stuck[:6]) == [], "every run begins there"
    assert titles("dpo", history(loss=(0.69, 0.6, 0.002))) == []


def test_a_negative_kl_is_noise_or_a_fault() -> None:
    noise = history(objective__kl=(0, 0, 0.05), seed=1)
    assert titles("ppo", noise) == ["The KL is below 0"]
    biased = history(objective__kl=(0, -3, 0.05))
    assert titles("ppo", biased) == ["The KL is below 0, and not by chance"]
    assert titles("ppo", history(objective__kl=(0, 3, 0.05))) == []


def test_a_score_that_rises_while_kl_and_length_explode() -> None:
    far = history(objective__score=(0, 2, 0.1), objective__kl=(0, 60, 1), response__length=(20, 60, 1))
    (puzzle,) = readings.puzzles("ppo", CONFIG, far)
    assert "KL is" in puzzle.explanation
    assert "tokens" in puzzle.explanation
    near = history(objective__score=(0, 2, 0.1), objective__kl=(0, 4, 0.1), response__length=(20, 22, 1))
    flat = history(objective__score=(0, 0, 0.1), objective__kl=(0, 60, 1), response__length=(20, 60, 1))
    assert titles("ppo", near) == titles("ppo", flat) == []


@pytest.mark.parametrize(
    ("share", "n", "standing"), [(0.9, 100, "good"), (0.55, 40, "wait"), (0.2, 100, "bad"), (0.7, None, "good")]
)
def test_agreement_carries_its_count_and_interval(share: float, n: int | None, standing: str) -> None:
    rows = [{"step": 5, "eval/accuracy": share} | ({"eval/n": n} if n else {})]
    found = readings.reading("reward", "accuracy", rows)
    assert found is not None
    assert found.standing == standing
    assert ("95%:" in found.sentence and f"{n} held-out" in found.sentence) == bool(n)


def test_memorising_is_seen_in_the_held_out_loss() -> None:
    rows = [{"step": s, "eval/loss": v} for s, v in ((0, 0.69), (10, 0.6), (20, 0.66))]
    assert readings.reading("dpo", "loss", rows[:2]) == (
        "good", "Held out 0.6, from 0.69 at the start: still learning."
    )  # fmt: skip
    found = readings.reading("dpo", "loss", rows)
    assert found is not None
    assert (found.standing, "lowest 0.6 at step 10" in found.sentence) == ("bad", True)


def test_noise_is_no_movement() -> None:
    flat, rising = (history(objective__score=(0, end, 0.3), seed=3) for end in (0, 2))
    assert [readings.reading("ppo", "objective/score", rows)[0] for rows in (flat, rising)] == ["wait", "good"]  # type: ignore[index]


def test_a_reading_stands_under_its_plot_and_only_where_there_is_one() -> None:
    html = plots.key_curves("ppo", history(objective__score=(0, 2, 0.1)))
    assert 'class="now-good"' in html
    assert "now-" not in plots.key_curves("ppo", history(3, objective__score=(0, 2, 0.1)))


def test_every_reader_belongs_to_a_plot() -> None:
    first = {(method, panel.names[0]) for method, panels in plots.PANELS.items() for panel in panels}
    assert set(readings.READERS) == first


def test_resources_of_this_process_and_of_none() -> None:
    me = psutil.Process()
    found = resources.usage(os.getpid(), me.create_time())
    assert found is not None
    assert found.memory >= me.memory_info().rss // 2
    assert "GB" in resources.in_words(found)
    assert resources.usage(os.getpid(), me.create_time() - 100) is None, "a pid that was used again"
    assert resources.usage(None, None) is None
    assert resources.in_words(resources.Usage(2_100_000_000, 1.75, 2, 50_000_000)) == (
        "2.1 GB of memory, 50 MB free · 1.8 of 2 cores"
    )
