"""What the Train tab says before a run is started: what it will learn from and what is wrong with that."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import before, estimates, jobs
from labeler.agreement import Figure
from labeler.before import Before, Split
from labeler.estimates import Estimate, gigabytes
from labeler.ui import page
from labeler.workspace import Workspace
from training.config import METHODS
from training.knobs import knobs

WEIGHED = ("reward", "dpo")
"""The methods that heed the weight of a ranking."""

BUSY = 0.5
"""Cores that others kept busy while the speed was measured, from which on that is said."""


def weigh_box() -> gr.Checkbox:
    """The snapshot filter that the form offers."""
    return gr.Checkbox(
        label="Weight by reliability",
        info="Each ranking counts as much as its annotator is fitted to be reliable, from who agrees with whom; one "
        "who guesses is left out. Off: all count the same.",
        elem_id="train-weigh",
    )


def filters(method: str, weighed: bool) -> dict[str, Any]:
    """What the run's snapshot is filtered by."""
    return {"weight_by_reliability": True} if weighed and method in WEIGHED else {}


def view(
    workspace: Workspace, method: str, settings: Callable[[], dict[str, Any]], weighed: bool, measure: bool = False
) -> str:
    """HTML. `settings` reads the form; where a field is wrong, that is said when the run is started.

    `measure`: begin to measure the machine's speed where it is not known.
    """
    try:
        chosen = settings()
    except InputError:
        chosen = {knob.name: knob.default for knob in knobs(METHODS[method])}
    kind, passing = jobs.SNAPSHOT_KINDS[method], filters(method, weighed)
    found = before.look(workspace, kind, passing, chosen["validation_fraction"], chosen["seed"], chosen["fold"])
    line = takes(workspace, method, chosen, passing, measure) if found.count else ""
    return learns_from(found, chosen["validation_fraction"], bool(passing)) + line


def takes(workspace: Workspace, method: str, settings: dict[str, Any], passing: dict[str, Any], measure: bool) -> str:
    """The line about time and memory: an estimate, or why there is none yet."""
    try:
        going = estimates.measure(workspace, method, settings) if measure else ""
        found = estimates.estimate(workspace, method, settings, passing)
    except InputError:
        return ""
    facts = _estimate(found) if found else [going or "not known yet: the machine's speed has not been measured"]
    if found and going:
        facts.append(going)
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    warning = ""
    if found and found.memory > found.room:
        words = "More memory than is free: it would be refused. Lower Tokens per forward, or turn on"
        warning = f'<div class="notice error" role="status"><p>{words} Gradient checkpointing.</p></div>'
    return f'<p class="facts" id="train-takes"><b>Takes</b>{line}</p>{warning}'


def _estimate(found: Estimate) -> list[str]:
    facts = [
        f"about {jobs.duration(found.seconds)}",
        f"up to {gigabytes(found.memory)} of memory, {gigabytes(found.room)} free",
    ]
    if found.runs:
        facts.append(f"going by {count(found.runs, 'earlier run')} too")
    elif found.busy >= BUSY:
        facts.append("measured while other programs ran: it may take less")
    return facts


def learns_from(found: Before, fraction: float, weighed: bool) -> str:
    """The facts in a line, then the split, agreement and length, whose labels they are, and what is wrong."""
    share = f"{fraction:.0%} held out by prompt" if fraction else "nothing held out"
    learned = [source for source in found.sources if source.learned]
    facts = [count(found.count, found.kind.removesuffix("s") if found.kind != "preferences" else "comparison")]
    if found.kind == "preferences":
        facts.append(count(len({source.annotator for source in learned}), "annotator"))
        facts.append(("over " if found.cut else "") + count(found.prompts, "prompt"))
    elif found.kind == "prompts":
        facts.append("answers are written by the model itself")
    line = "".join(f"<span>{escape(fact)}</span>" for fact in (*facts, share))
    notices = "".join(
        f'<div class="notice info" role="status"><p><b>{escape(each.wrong)}</b> {escape(each.remedy)}</p></div>'
        for each in found.concerns
    )
    return f'<p class="facts"><b>Learns from</b>{line}</p>{notices}{_details(found, weighed)}'


def _details(found: Before, weighed: bool) -> str:
    said = []
    if found.split:
        said.append(_split(found.split, found.kind, found.cut))
    if found.agreement.value is not None:
        tasks = count(found.shared_tasks, "task")
        said.append(
            f"People agree on {_share(found.agreement, 'pair of votes', 'pairs of votes')} on {tasks} that two or more "
            "of them ranked."
        )
    if found.longer.value is not None:
        said.append(f"The longer answer is preferred in {_share(found.longer, 'comparison', 'comparisons')}.")
    table = ""
    if found.sources:
        titles = ["Project", "Annotator", "Rankings", "Comparisons"] + ["Weight"] * weighed
        body = [
            [escape(one.project), escape(one.annotator), f"{one.rankings:,}", f"{one.comparisons:,}"]
            + [f"{one.weight:.2f}" if one.learned else "left out: guesses"] * weighed
            for one in found.sources
        ]
        table = page.table(titles, body, "Whose labels the run learns from")
    if not said and not table:
        return ""
    text = f'<p class="meta">{escape(" ".join(said))}</p>' if said else ""
    return f'<details class="before"><summary>What it will learn from</summary>{text}{table}</details>'


def _split(split: Split, kind: str, cut: bool) -> str:
    noun = "comparison" if kind == "preferences" else kind.removesuffix("s")
    sides = [(split.train, split.train_prompts), (split.held, split.held_prompts)]
    if kind == "prompts":
        words = [count(number, noun) for number, _ in sides]
    else:
        words = [f"{count(number, noun)} of {count(prompts, 'prompt')}" for number, prompts in sides]
    of = f"Of the first {before.LIMIT:,} rows: " if cut else ""
    return f"{of}{words[0]} to train on, {words[1]} held out."


def _share(figure: Figure, one: str, many: str) -> str:
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.0%} to {figure.high:.0%}, "
    return f"{figure.value:.0%} ({interval}n = {figure.n:,}) of {one if figure.n == 1 else many}"


def count(number: int, noun: str) -> str:
    """ "1 prompt", "1,024 prompts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
