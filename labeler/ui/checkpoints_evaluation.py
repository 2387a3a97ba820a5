"""How good a checkpoint is: what was measured, by what its run and people's votes say; and the button that measures."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from labeler import checkpoint_actions, checkpoint_work, checkpoints, evaluation, lineage
from labeler.agreement import Figure
from labeler.checkpoints import Checkpoint
from labeler.ui import page, plots
from labeler.ui.checkpoints_files import progress
from labeler.ui.checkpoints_graph import neutral, text
from labeler.ui.checkpoints_page import attempt
from labeler.ui.markdown import render
from labeler.ui.quality_view import number, share
from labeler.workspace import Workspace

POLICY_METRICS = (
    ("Score, held out", "eval/score"), ("Score in training", "objective/score"), ("KL, held out", "eval/kl"),
    ("KL in training", "objective/kl"), ("Answer length, held out", "eval/length"),
    ("Answer length in training", "response/length"),
    ("Agreement, held out", "eval/rewards/accuracies"), ("Margin, held out", "eval/rewards/margins"),
    ("Loss, held out", "eval/loss"),
)  # fmt: skip
UNITS = {"KL": "nats per answer from the reference", "Answer length": "tokens", "Loss": "nats"}


class Evaluation:
    """The section. `outputs` take what `updates` gives, `live` what `look` gives."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        with gr.Accordion("Evaluation", open=True, visible=False, elem_id="checkpoint-evaluation") as self.fold:
            self.report = page.html(elem_id="checkpoint-report")
            with gr.Row(visible=False, elem_classes="knobs") as self.knobs:
                self.reward = gr.Dropdown([], label="Scored by", elem_id="checkpoint-scored-by")
                fewest, most = checkpoint_actions.FEWEST_PROMPTS, checkpoint_actions.MOST_PROMPTS
                self.prompts = gr.Number(
                    32, label="Prompts", precision=0, minimum=fewest, maximum=most, elem_id="checkpoint-prompts"
                )
            with gr.Row(elem_classes="start-row"):
                self.button = gr.Button("Evaluate", variant="primary", scale=0, min_width=160,
                                        elem_id="checkpoint-evaluate")  # fmt: skip
                self.stop = gr.Button("Stop", visible=False, scale=0, min_width=100)
            self.state = page.html(elem_id="checkpoint-evaluating")
        self.outputs = [self.fold, self.knobs, self.reward, self.button]
        self.live = [self.report, self.state, self.stop]

    def updates(self, checkpoint: Checkpoint | None, chosen: int | None) -> list[Any]:
        """New values for `outputs`; `chosen` is the reward model that is chosen now."""
        if checkpoint is None or checkpoint.kind == "base":
            return [gr.update(visible=False), gr.update(), gr.update(), gr.update()]
        here = checkpoint.base_model == self.workspace.base_model and checkpoints.present(self.workspace, checkpoint)
        models = checkpoints.choices(self.workspace, ["reward"])
        own = lineage.origin(self.workspace.store, checkpoint).reward_model
        first = own.id if own else models[0][1] if models else None
        first = page.keep_choice(models, first, models[0][1] if models else None)
        return [
            gr.update(visible=True),
            gr.update(visible=here and checkpoint.kind == "policy"),
            gr.update(choices=models, value=page.keep_choice(models, chosen, first)),
            gr.update(visible=here),
        ]

    def look(self, checkpoint: Checkpoint | None) -> tuple[list[Any], bool]:
        """New values for `live`, and whether an evaluation goes on."""
        if checkpoint is None:
            return ["", "", gr.update(visible=False)], False
        work = checkpoint_work.look(self.workspace, "evaluate", checkpoint.id)
        busy = work is not None and work.state == "running"
        drawn = progress(work, "The evaluation", lambda _: "")
        return [report_html(self.workspace, checkpoint), drawn, gr.update(visible=busy)], busy

    def listen(self, chosen: Any, said: Any) -> list[Any]:
        """Let the buttons act; what goes wrong stands in `said`. Returns the events."""
        workspace = self.workspace

        def begin(checkpoint_id: int, reward_id: int | None, prompts: float | None, request: gr.Request) -> str:
            def act() -> str:
                checkpoint_actions.evaluate(workspace, checkpoint_id, reward_id, int(prompts or 0))
                return "Measuring in the background; you may go on."

            return attempt(request, workspace, act)

        def stop(checkpoint_id: int, request: gr.Request) -> str:
            def act() -> str:
                checkpoint_work.stop(workspace, "evaluate", checkpoint_id)
                return "Stopped."

            return attempt(request, workspace, act)

        return [
            self.button.click(begin, [chosen, self.reward, self.prompts], said, **page.QUIET),
            self.stop.click(stop, chosen, said, **page.QUIET),
        ]


def report_html(workspace: Workspace, checkpoint: Checkpoint) -> str:
    """All that is known of how good it is; HTML."""
    found = evaluation.result(workspace, checkpoint.id)
    if checkpoint.kind == "reward":
        return reward_html(found) if found else (
            '<p class="empty">Not measured yet. Evaluate it to see how often it agrees with people on comparisons that '
            "it was not trained on.</p>"
        )  # fmt: skip
    measured = policy_html(found) if found else (
        '<h4>Against its parent, by a reward model</h4>'
        '<p class="empty">Not measured yet. Evaluate it: both answer the same prompts, and a reward '
        "model scores the answers.</p>"
    )  # fmt: skip
    return run_html(checkpoint) + votes_html(workspace, checkpoint) + measured


def _figure(found: dict[str, Any]) -> Figure:
    return Figure(found["value"], found["low"], found["high"], found["n"])


def _card(title: str, value: str, n: str, good: str) -> str:
    return f"<div><dt>{text(title)}</dt><dd><b>{text(value)}</b><span>{text(n)}</span><p>{text(good)}</p></dd></div>"


def _when(found: dict[str, Any]) -> str:
    left = f" {found['left_out']:,} were left out: too long for the model." if found.get("left_out") else ""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["made_at"]))
    return f"Measured {made}. Intervals are 95%, by resampling prompts.{left}"


def run_html(checkpoint: Checkpoint) -> str:
    """What the run measured at this step."""
    metrics = checkpoint.manifest.get("metrics")
    cells = []
    for title, name in POLICY_METRICS:
        value = metrics.get(name) if isinstance(metrics, dict) else None
        if isinstance(value, int | float):
            unit = next((unit for start, unit in UNITS.items() if title.startswith(start)), "")
            cells.append(f"<div><dt>{title}</dt><dd>{plots.number(float(value))} <small>{unit}</small></dd></div>")
    if not cells:
        return ""
    return f'<h4>What its run measured</h4><dl class="result">{"".join(cells)}</dl>'


def votes_html(workspace: Workspace, checkpoint: Checkpoint) -> str:
    """How people voted between the checkpoint and its parent."""
    if checkpoint.parent_id is None:
        return ""
    parent = checkpoints.get(workspace.store, checkpoint.parent_id)
    figure, ties = evaluation.votes_between(workspace.store, checkpoint.id, parent.id)
    if figure.value is None:
        return (f'<h4>People\'s votes</h4><p class="empty">Nobody has compared it with {text(parent.name)} yet. Vote '
                "blindly between the two in Compare.</p>")  # fmt: skip
    n = f"n = {figure.n:,} votes, {ties:,} of them ties (half a win each)"
    card = _card(
        f"Preferred to {parent.name}", share(figure), n,
        "Above 50% with an interval that does not reach 50%, people prefer it.",
    )  # fmt: skip
    return f'<h4>People\'s votes</h4><dl class="figures">{card}</dl>'


def policy_html(found: dict[str, Any]) -> str:
    """A policy against its parent, by a reward model."""
    settings, n = found["settings"], f"n = {found['prompts']:,} prompts"
    figures = {name: _figure(found[name]) for name in ("win_rate", "score", "parent_score", "length", "parent_length")}
    held = (
        "Prompts that its run held out." if found["held_out"]
        else "Prompts of the workspace: the run may have been trained on them, which flatters it."
    )  # fmt: skip
    cards = [
        _card(f"Scores higher than {settings['parent']}", share(figures["win_rate"]), n,
              f"Judged by {settings['reward_model']}. A policy that was trained on that model's scores is flattered."),
        _card("Score", number(figures["score"]), n, f"Its parent's: {number(figures['parent_score'])}."),
        _card("Answer length, tokens", number(figures["length"]), n,
              f"Its parent's: {number(figures['parent_length'])}. A score that rises with length alone is no gain."),
    ]  # fmt: skip
    samples = "".join(_sample(each, settings["parent"]) for each in found["samples"])
    return (
        f'<h4>Against its parent, by a reward model</h4><p class="meta">{text(held)} {text(_when(found))}</p>'
        f'<dl class="figures">{"".join(cards)}</dl><details class="samples"><summary>Samples side by side '
        f"({len(found['samples'])})</summary>{samples}</details>"
    )


def _sample(found: dict[str, Any], parent: str) -> str:
    asked = " ".join(str(found["prompt"][-1]["content"]).split())[:300]
    sides = "".join(
        f'<article class="side"><header><span class="name">{text(name)}</span><span class="chip">score '
        f'{plots.number(score)}</span></header><div class="answer markdown" dir="auto">{neutral(render(words))}</div>'
        "</article>"
        for name, words, score in zip(("this checkpoint", parent), (found["ours"], found["parents"]), found["scores"],
                                      strict=True)
    )  # fmt: skip
    return f'<p class="asked"><b>Prompt</b> {text(asked)}</p><div class="sides sides-2">{sides}</div>'


def reward_html(found: dict[str, Any]) -> str:
    """A reward model on held-out comparisons."""
    accuracy = _figure(found["accuracy"])
    n = f"n = {accuracy.n:,} comparisons of {found['prompts']:,} prompts"
    card = _card("Agrees with people", share(accuracy), n,
                 "50% is guessing; 60% to 75% is usual, since people do not agree with each other more.")  # fmt: skip
    strength = found["strength"]
    said = (
        "by the strength that people stated" if strength["stated"]
        else "by how many ranks lie between, since nobody stated a strength"
    )  # fmt: skip
    groups = [
        (f"Accuracy {said}", strength["groups"], "Should rise: clear preferences are easier."),
        ("Accuracy by difference in length", found["length"], "Should not depend on it much."),
        ("Accuracy where the longer or the shorter was preferred", found["longer"],
         "Alike is good. Far apart, the model has learned to like length."),
    ]  # fmt: skip
    tables = "".join(_group_table(title, rows, good) for title, rows, good in groups if rows)
    return (
        f'<h4>On comparisons that its run held out</h4><p class="meta">{text(_when(found))}</p>'
        f'<dl class="figures">{card}</dl><div class="curves">{calibration_svg(found["calibration"])}</div>{tables}'
    )


def _group_table(title: str, rows: list[dict[str, Any]], good: str) -> str:
    body = [[text(row["name"]), share(_figure(row)), f"{row['n']:,}"] for row in rows]
    drawn = page.table(("Comparisons", "Accuracy (95%)", "n"), body, title)
    return f'<h5>{text(title)}</h5><p class="meta">{text(good)}</p>{drawn}'


def calibration_svg(bins: list[dict[str, Any]]) -> str:
    """How often it is right, over how sure it says it is; with intervals, and the line of perfect calibration."""
    width, height, left, right, top, bottom = plots.WIDTH, plots.HEIGHT + 30, plots.LEFT, plots.RIGHT, plots.TOP, 40

    def x(sure: float) -> float:
        return left + (sure - 0.5) * 2 * (width - left - right)

    def y(right_share: float) -> float:
        return height - bottom - right_share * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(m):.1f}" y2="{y(m):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(m) + 4:.1f}" text-anchor="end">{m:.0%}</text>'
        for m in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    parts += [
        f'<text class="tick" x="{x(m):.1f}" y="{height - 22}" text-anchor="middle">{m:.0%}</text>'
        for m in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    parts.append(f'<text class="tick" x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">how sure it is'
                 "</text>")  # fmt: skip
    parts.append(f'<line class="line line-1" x1="{x(0.5)}" y1="{y(0.5):.1f}" x2="{x(1)}" y2="{y(1):.1f}"/>')
    for each in bins:
        at, value = x(each["confidence"]), y(each["value"])
        if each["low"] is not None:
            parts.append(f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{y(each["low"]):.1f}" '
                         f'y2="{y(each["high"]):.1f}"/>')  # fmt: skip
        title = f"sure to {each['confidence']:.0%}: right in {share(_figure(each))}, n = {each['n']:,}"
        parts.append(f'<circle class="dot dot-0" cx="{at:.1f}" cy="{value:.1f}" r="4"><title>{title}</title></circle>')
    spoken = "; ".join(f"sure to {b['confidence']:.0%}: right in {share(_figure(b))}, n = {b['n']:,}" for b in bins)
    good = "On the dashed line it is as often right as it says. Below: too sure."
    return (
        '<figure><figcaption><strong>Calibration</strong> <span class="unit">share of comparisons that it gets right'
        f'</span></figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="Calibration. {text(spoken)}">'
        f'{"".join(parts)}</svg><p class="good">{good}</p></figure>'
    )
