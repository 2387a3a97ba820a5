"""What a run's policy says at its steps, two of them side by side. runs_samples.js shows the two that are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from labeler.jobs import Job
from training import run_folder

MAX_STEPS = 40
"""Steps that one may choose from; of more, these are spread evenly, the first and the last among them."""

NONE = '<p class="empty">This run writes no sample texts. Set Sample prompts to 3 in the settings of the next one.</p>'
NOT_YET = '<p class="empty">The first texts appear when the model is loaded, before its first step.</p>'


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl, as far as they can be read; those of older versions had no prompts in common."""
    try:
        rows = run_folder.read_lines(folder / "samples.jsonl")
    except (OSError, ValueError):
        return []
    return [row for row in rows if "number" in row]


def view(job: Job, rows: Sequence[dict[str, Any]]) -> str:
    """All of it as HTML; "" for a run that has no policy."""
    if "sample_prompts" not in job.config:
        return ""
    if not rows:
        return NONE if not job.config["sample_prompts"] else NOT_YET if job.state in ("queued", "running") else ""
    steps = spread(sorted({int(row["step"]) for row in rows}))
    first, last = steps[0], steps[-1]
    choice = _choice("left", "Left", steps, first) + _choice("right", "Right", steps, last)
    articles = []
    for number in sorted({int(row["number"]) for row in rows}):
        told = {int(row["step"]): row for row in rows if row["number"] == number}
        cells = "".join(_cell(told[step], step in (first, last)) for step in steps if step in told)
        prompt = next(iter(told.values()))["prompt"][-1]["content"]
        articles.append(f'<article><p class="asked">{text(prompt)}</p><div class="sides">{cells}</div></article>')
    return (
        f'<section class="samples" data-run="{escape(job.id)}"><div class="choice">{choice}</div>'
        f'<p class="muted">The same prompts with the same random numbers (seed {int(rows[0]["seed"])}) at every step: '
        f"what differs between two steps is the model.</p>{''.join(articles)}</section>"
    )


def spread(steps: Sequence[int], most: int = MAX_STEPS) -> list[int]:
    """At most `most` of the steps, evenly spread."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def text(words: str) -> str:
    """Hostile text as HTML that stays text, also where Gradio reads the page as a template once more."""
    return escape(words).replace("$", "&#36;").replace("{", "&#123;")


def _choice(side: str, label: str, steps: Sequence[int], chosen: int) -> str:
    options = "".join(
        f'<option value="{step}"{" selected" if step == chosen else ""}>step {step}</option>' for step in steps
    )
    return f'<label>{label} <select data-side="{side}" data-default="{chosen}">{options}</select></label>'


def _cell(row: dict[str, Any], shown: bool) -> str:
    facts = [f"{int(row['num_tokens'])} tokens" + (", cut" if row.get("finish_reason") == "length" else "")]
    facts += [f"score {float(row['score']):.3g}"] if "score" in row else []
    facts += [f"held-out score {float(row['judge_score']):.3g}"] if "judge_score" in row else []
    answer = text(row["completion"]) or '<span class="muted">(nothing)</span>'
    return (
        f'<div class="side" data-step="{int(row["step"])}"{"" if shown else " hidden"}>'
        f'<p class="meta"><strong>Step {int(row["step"])}</strong> · {" · ".join(facts)}</p>'
        f'<p class="answer">{answer}</p></div>'
    )
