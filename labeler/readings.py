"""What a run's figures say now, in words: is this good, and what of it puzzles people who see it for the first time.

Pure functions of the rows of metrics.jsonl. A change is told from noise by the means of the first and the last quarter
of the steps and their standard errors; neighbouring steps are not independent, so this is a rule of thumb, not a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from labeler.quality import wilson

Metrics = Sequence[Mapping[str, Any]]

LN2 = math.log(2)
FAR, TOO_FAR = 10.0, 20.0
"""KL from the reference in nats an answer: from here on answers get odd, and from here on they are."""


class Reading(NamedTuple):
    """One plain sentence; `standing` is "good", "wait" or "bad"."""

    standing: str
    sentence: str


class Puzzle(NamedTuple):
    """Something that a run does and people ask about."""

    title: str
    explanation: str


class Trend(NamedTuple):
    """Means of the first and the last quarter of a metric's values, and the standard error of their difference."""

    first: float
    last: float
    error: float

    @property
    def change(self) -> float:
        return self.last - self.first

    @property
    def clear(self) -> bool:
        """Whether it moved by more than two standard errors."""
        return abs(self.change) > 2 * self.error


def values(metrics: Metrics, name: str) -> list[tuple[float, float]]:
    """(step, value) of one metric, the finite ones, in the order of the steps."""
    return [
        (float(row["step"]), float(row[name]))
        for row in metrics
        if isinstance(row.get(name), int | float) and isinstance(row.get("step"), int | float)
        if math.isfinite(row[name])
    ]


def trend(metrics: Metrics, name: str, fewest: int = 8) -> Trend | None:
    """How a metric moved; None before it has `fewest` values."""
    found = [value for _, value in values(metrics, name)]
    if len(found) < fewest:
        return None
    quarter = max(2, len(found) // 4)
    (first, first_error), (last, last_error) = _mean(found[:quarter]), _mean(found[-quarter:])
    return Trend(first, last, math.hypot(first_error, last_error))


def _mean(found: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    mean = sum(found) / len(found)
    variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return mean, math.sqrt(variance / len(found))


# -- what good looks like, now -----------------------------------------------------------------------------------------


def reading(method: str, name: str, metrics: Metrics) -> Reading | None:
    """What to think of the key plot whose first metric is `name`; None while there is too little to say."""
    read = READERS.get((method, name))
    return read(metrics) if read else None


def _agreement(held_out: str, training: str) -> Callable[[Metrics], Reading | None]:
    """Share of comparisons that the model decides as people did."""

    def read(metrics: Metrics) -> Reading | None:
        held, seen = values(metrics, held_out), trend(metrics, training)
        if not held:
            if seen is None:
                return None
            return Reading("wait", f"{seen.last:.2f} of what it learns from; without held-out data nobody knows more.")
        share, n = held[-1][1], values(metrics, "eval/n")
        of = "the held-out comparisons"
        standing, verdict = ("good", "better than guessing") if share > 0.5 else ("bad", "no better than guessing")
        if n and n[-1][1]:
            low, high = wilson(share * n[-1][1], int(n[-1][1]))
            of = f"{int(n[-1][1]):,} held-out comparisons (95%: {low:.2f} to {high:.2f})"
            if low <= 0.5 <= high:
                standing, verdict = "wait", "not yet told from guessing, which is 0.5"
        sentence = f"{share:.2f} of {of}: {verdict}."
        if seen is not None and seen.last - share > 0.15:
            sentence += f" It is {seen.last:.2f} on what it learns from: it begins to memorise, so train no longer."
        return Reading(standing, sentence)

    return read


def _held_out_loss(*names: str) -> Callable[[Metrics], Reading | None]:
    """The first of these that is measured; lower is better."""

    def read(metrics: Metrics) -> Reading | None:
        held = next((found for name in names if (found := values(metrics, name))), [])
        if len(held) < 2:
            return _movement("loss", down=True)(metrics)
        now, start = held[-1][1], held[0][1]
        step, best = min(held, key=lambda point: point[1])
        if now > best + 0.02 * abs(best) and step < held[-1][0]:
            return Reading(
                "bad", f"Held out {now:.4g}, lowest {best:.4g} at step {step:g}: memorising since. That one is kept."
            )
        if now < start:
            return Reading("good", f"Held out {now:.4g}, from {start:.4g} at the start: still learning.")
        return Reading("wait", f"Held out {now:.4g}, as at the start: nothing is learned yet.")

    return read


def _movement(name: str, down: bool = False) -> Callable[[Metrics], Reading | None]:
    """A metric that should rise, or fall."""

    def read(metrics: Metrics) -> Reading | None:
        found = trend(metrics, name)
        if found is None:
            return None
        told = f"{abs(found.change):.3g} ± {2 * found.error:.2g}"
        if not found.clear:
            return Reading("wait", f"No clear movement yet: {found.change:+.3g} ± {2 * found.error:.2g} so far.")
        right = (found.change < 0) == down
        return Reading(
            "good" if right else "bad",
            f"{'Down' if found.change < 0 else 'Up'} by {told} since the start{'' if right else ', the wrong way'}.",
        )

    return read


def _length_bias(metrics: Metrics) -> Reading | None:
    longer, shorter = values(metrics, "eval/accuracy/chosen-longer"), values(metrics, "eval/accuracy/chosen-shorter")
    if not longer or not shorter:
        return None
    gap = longer[-1][1] - shorter[-1][1]
    if abs(gap) <= 0.15:
        return Reading("good", f"{abs(gap):.2f} apart: length decides little.")
    liked = "longer" if gap > 0 else "shorter"
    return Reading("bad", f"{abs(gap):.2f} apart: it likes {liked} answers. Look at what was labelled.")


def _chosen_above_rejected(metrics: Metrics) -> Reading | None:
    chosen, rejected = trend(metrics, "rewards/chosen"), trend(metrics, "rewards/rejected")
    if chosen is None or rejected is None:
        return None
    gap = chosen.last - rejected.last
    return Reading(
        "good" if gap > 0 else "bad",
        f"Chosen is {abs(gap):.3g} {'above' if gap > 0 else 'below'} rejected: {chosen.last:.3g}, {rejected.last:.3g}.",
    )


def _distance(*names: str) -> Callable[[Metrics], Reading | None]:
    """KL from the reference."""

    def read(metrics: Metrics) -> Reading | None:
        found = next((found for name in names if (found := values(metrics, name))), [])
        if not found:
            return None
        now = found[-1][1]
        if now < FAR:
            return Reading("good", f"{now:.3g} nats: near the reference.")
        if now < TOO_FAR:
            return Reading("wait", f"{now:.3g} nats: on its way out. Read the answers before you go on.")
        return Reading("bad", f"{now:.3g} nats: far out, expect odd text. Raise beta or stop at an earlier checkpoint.")

    return read


def _length(metrics: Metrics) -> Reading | None:
    found, ended = trend(metrics, "response/length"), values(metrics, "response/ended")
    if found is None or found.first <= 0:
        return None
    change = found.change / found.first
    sentence = f"{found.last:.3g} tokens, {change:+.0%} since the beginning."
    if ended and ended[-1][1] < 0.5:
        return Reading("bad", f"{sentence} Only {ended[-1][1]:.0%} come to an end in time: raise max new tokens.")
    return Reading("good" if abs(change) < 0.25 else "wait", sentence)


def _entropy(metrics: Metrics) -> Reading | None:
    found = trend(metrics, "objective/entropy")
    if found is None or found.first <= 0:
        return None
    left = found.last / found.first
    if left < 0.5:
        return Reading("bad", f"{left:.0%} of its beginning is left: answers become alike. Raise beta or the bonus.")
    return Reading("good", f"{left:.0%} of its beginning is left.")


def _clipped(metrics: Metrics) -> Reading | None:
    found = trend(metrics, "policy/clipfrac")
    if found is None:
        return None
    if found.last > 0.2:
        return Reading("bad", f"{found.last:.0%} of late: steps too large. Lower the learning rate.")
    return Reading("good", f"{found.last:.1%} of late: small, safe steps.")


def _explained(metrics: Metrics) -> Reading | None:
    found = trend(metrics, "val/explained_variance")
    if found is None:
        return None
    if found.last < 0.05:
        return Reading("wait", f"{found.last:.2g} of late: the critic knows no more than the mean yet.")
    return Reading("good", f"{found.last:.0%} of the returns' variance is foreseen.")


READERS: dict[tuple[str, str], Callable[[Metrics], Reading | None]] = {
    ("sft", "loss"): _held_out_loss("eval/loss"),
    ("sft", "accuracy"): _movement("accuracy"),
    ("reward", "accuracy"): _agreement("eval/accuracy", "accuracy"),
    ("reward", "loss"): _held_out_loss("eval/nll", "eval/loss"),
    ("reward", "margin"): _movement("margin"),
    ("reward", "eval/accuracy/chosen-longer"): _length_bias,
    ("dpo", "rewards/accuracies"): _agreement("eval/rewards/accuracies", "rewards/accuracies"),
    ("dpo", "rewards/margins"): _movement("rewards/margins"),
    ("dpo", "loss"): _held_out_loss("eval/loss"),
    ("dpo", "rewards/chosen"): _chosen_above_rejected,
    ("dpo", "eval/kl"): _distance("eval/kl"),
    ("ppo", "objective/score"): _movement("objective/score"),
    ("ppo", "objective/kl"): _distance("eval/kl", "objective/kl"),
    ("ppo", "response/length"): _length,
    ("ppo", "objective/entropy"): _entropy,
    ("ppo", "policy/clipfrac"): _clipped,
    ("ppo", "val/explained_variance"): _explained,
}
"""By method and by the first metric of the key plot."""


# -- what puzzles ------------------------------------------------------------------------------------------------------


def puzzles(method: str, config: Mapping[str, Any], metrics: Metrics) -> list[Puzzle]:
    """Explanations of what this run does now."""
    found = {
        "reward": [_stuck],
        "dpo": [_stuck, _chosen_falls],
        "ppo": [_negative_kl, _score_alone],
    }.get(method, [])
    return [puzzle for look in found if (puzzle := look(config, metrics))]


def _stuck(config: Mapping[str, Any], metrics: Metrics) -> Puzzle | None:
    """ln 2 is what every logistic loss of pairs starts from; other losses start elsewhere."""
    loss = trend(metrics, "loss", fewest=12)
    if config.get("loss") not in ("sigmoid", "bradley-terry") or loss is None:
        return None
    if abs(loss.last - LN2) > 0.01 or (loss.clear and loss.change < -0.005):
        return None
    return Puzzle(
        "The loss stays at 0.6931",
        "That is ln 2, the loss of a coin toss: the model cannot yet tell preferred answers from the others. Every run "
        f"of this kind starts there; staying means that nothing is learned. Raise the learning rate (now "
        f"{config.get('learning_rate', 0):g}), see that the warm-up ends within the run, and look in Data whether the "
        "comparisons contradict each other or are mostly ties.",
    )


def _chosen_falls(config: Mapping[str, Any], metrics: Metrics) -> Puzzle | None:
    chosen, margin = trend(metrics, "rewards/chosen"), trend(metrics, "rewards/margins")
    if chosen is None or not chosen.clear or chosen.change >= 0 or chosen.last >= 0:
        return None
    grows = margin is not None and margin.clear and margin.change > 0
    meaning = (
        "The margin grows all the same, so it does learn."
        if grows
        else "And the margin does not grow: this run learns nothing good. Lower the learning rate."
    )
    return Puzzle(
        "The reward of chosen answers falls",
        "DPO asks only that chosen answers stay above rejected ones. Both may become less likely, as long as the "
        f"rejected ones do so faster; their probability goes to answers that nobody compared. {meaning} Read the "
        "samples. To hold the chosen answers up, set the SFT coefficient to 0.1 or more, or raise beta.",
    )


def _negative_kl(config: Mapping[str, Any], metrics: Metrics) -> Puzzle | None:
    found = [value for _, value in values(metrics, "objective/kl")]
    late = found[-max(2, len(found) // 4) :]
    if len(found) < 3 or min(late) >= 0:
        return None
    mean, error = _mean(late)
    if mean + 2 * error >= 0:
        return Puzzle(
            "The KL is below 0",
            "The true KL never is. What is plotted is its estimate from this step's answers, the mean of "
            "log π − log π_ref, and near 0 chance takes it to either side. Nothing is wrong: lately it is "
            f"{mean:.2g} ± {2 * error:.1g}.",
        )
    return Puzzle(
        "The KL is below 0, and not by chance",
        f"Lately it is {mean:.2g} ± {2 * error:.1g} nats, which no unbiased estimate stays at: answers are sampled "
        "from something else than what is scored. Look for a sampler with another temperature, top-p or top-k, a "
        "minimum length, or an older policy. The policy can raise its reward by making such answers unlikely: stop it.",
    )


def _score_alone(config: Mapping[str, Any], metrics: Metrics) -> Puzzle | None:
    score, kl = trend(metrics, "objective/score"), trend(metrics, "objective/kl")
    length = trend(metrics, "response/length")
    if score is None or not score.clear or score.change <= 0:
        return None
    signs = []
    if kl is not None and kl.last > TOO_FAR:
        signs.append(f"the KL is {kl.last:.3g} nats")
    if length is not None and length.clear and length.last > 1.5 * length.first > 0:
        signs.append(f"answers grew from {length.first:.3g} to {length.last:.3g} tokens")
    if not signs:
        return None
    return Puzzle(
        "The score rises, but is the answer better?",
        f"The score rose by {score.change:.3g}, while {' and '.join(signs)}. So far from where it was trained a reward "
        "model is easily pleased: by length, by flattery, by the same phrase again. Read the samples, compare an early "
        "and a late checkpoint blindly in Compare, and prefer the earlier one where they are as good. Next time raise "
        "beta, or set a KL target.",
    )
