"""The Rounds tab: the loop, round after round; the next one; and whether more labels are worth collecting."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
import numpy as np

from data.records import InputError
from labeler import jobs, rounds, sampling, worker
from labeler.agreement import Figure
from labeler.auth import current_user
from labeler.chat import Sampling
from labeler.rounds import Round
from labeler.ui import page, plots
from labeler.ui.quality_view import share
from labeler.ui.run_view import notice
from labeler.users import User
from labeler.workspace import Workspace

TICK_SECONDS = 2.0
READERS = ("lead", "researcher", "owner")
DEFAULT_PROMPTS, MOST_PROMPTS, DEFAULT_EACH = 30, 10_000, 2

ABOUT = """<h2>Rounds</h2>
<p class="muted" style="max-width: 75ch">A round is a policy that was trained (DPO or PPO) on what people said until
then. Rank the answers of the newest policy against those of the model it came from, train again, and see here whether
people notice.</p>"""
EMPTY = "No round yet. Rank some answers in Rank, then start a recipe in Train: its policy will be the first round."
NEXT = """<h2>Next round</h2>
<p class="muted" style="max-width: 75ch">Answers of both models to the same prompts become a labeling project. Whoever
ranks them does not see which is which. Prompts come first on which the reward model's heads disagree most (order the
tasks in Team to measure that), and those that no round has used.</p>"""
NO_POLICY = "There is no policy yet to sample from: train one in Train first."
CURVE = """<h2>Are more labels worth collecting?</h2>
<p class="muted" style="max-width: 75ch">A linear reward model on the base model's own hidden states learns from a fifth
of your labels, two fifths, and so on, three times, and is judged on prompts that it has not seen. A trained reward
model is better than that, but where this curve still climbs, more labels pay. Takes minutes and waits in the queue.</p>
"""


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    page.html(ABOUT)
    table = page.html(elem_id="rounds-table")
    page.html(NEXT)
    models = page.html(elem_id="rounds-models")
    with gr.Row(elem_classes="pickers"):
        name = gr.Textbox(label="Name of the project", max_lines=1, elem_id="rounds-name")
        count = gr.Number(DEFAULT_PROMPTS, label="Prompts", precision=0, minimum=1, maximum=MOST_PROMPTS,
                          elem_id="rounds-count")  # fmt: skip
        each = gr.Number(DEFAULT_EACH, label="Answers of each model", precision=0, minimum=1, maximum=4,
                         elem_id="rounds-each")  # fmt: skip
        temperature = gr.Number(Sampling().temperature, label="Temperature", minimum=0, maximum=2, step=0.1,
                                elem_id="rounds-temperature")  # fmt: skip
        longest = gr.Number(Sampling().max_new_tokens, label="Longest answer, tokens", precision=0, minimum=1,
                            elem_id="rounds-longest")  # fmt: skip
    with gr.Row(elem_classes="start-row"):
        begin = gr.Button("Sample the next round", variant="primary", scale=0, min_width=220, elem_id="rounds-start")
    said = page.html(elem_id="rounds-said")
    page.html(CURVE)
    with gr.Row(elem_classes="start-row"):
        ask = gr.Button("Compute the curve", scale=0, min_width=220, elem_id="rounds-curve")
    problem = page.html()
    curve = page.html(elem_id="rounds-curve-state")
    seen = page.shown()
    timer = gr.Timer(TICK_SECONDS, active=False)

    def show(request: gr.Request, before: str) -> list[Any]:
        try:
            reader(request, workspace)
        except InputError as error:
            return [f'<p class="empty">{escape(str(error))}</p>', *(gr.skip() for _ in range(3 + len(live)))]
        found = rounds.pair(workspace)
        names = (
            f"<p><b>{escape(found[0].name)}</b> against <b>{escape(found[1].name)}</b>, which it came from.</p>"
            if found
            else notice(NO_POLICY, "info")
        )
        return [
            history_html(rounds.history(workspace)),
            names,
            gr.update(value=f"Round {rounds.next_number(workspace.store.db)}"),
            gr.update(interactive=found is not None),
            *look(request, before),
        ]

    def look(request: gr.Request, before: str) -> list[Any]:
        try:
            reader(request, workspace)
        except InputError:
            return [gr.skip() for _ in live]
        job = rounds.newest_curve(workspace.store)
        drawn = curve_html(workspace, job)
        busy = job is not None and job.state in jobs.OPEN_STATES
        if drawn == before:
            return [gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=busy)]
        return [drawn, drawn, gr.update(interactive=not busy), gr.Timer(active=busy)]

    def sample(request: gr.Request, title: str, number: float, answers: float, heat: float, tokens: float) -> str:
        try:
            user = reader(request, workspace)
            found = rounds.pair(workspace)
            if found is None:
                raise InputError(NO_POLICY)
            if not 1 <= (number or 0) <= MOST_PROMPTS:
                raise InputError(f"Prompts must be from 1 to {MOST_PROMPTS:,}")
            chosen, by_model = rounds.choose_prompts(workspace.store, int(number))
            settings = {"temperature": heat, "max_new_tokens": int(tokens or 0)}
            made = sampling.create(
                workspace, user, title or "", [one.id for one in found], chosen, int(answers or 0), settings
            )
        except InputError as error:
            return notice(str(error))
        how = f"{by_model} of them by the reward model's uncertainty" if by_model else "at random: no reward model has"
        how += "" if by_model else " looked at them yet"
        return notice(
            f"{jobs.get(workspace.store, made).label} is queued: {len(chosen)} prompts, {how}. Its tasks appear in "
            f"Rank, in the project {title.strip()}, while it samples.",
            "info",
        )

    def compute(request: gr.Request) -> str:
        try:
            user = reader(request, workspace)
            job = rounds.newest_curve(workspace.store)
            if job is None or job.state not in jobs.OPEN_STATES:  # else a double click
                rounds.ask_curve(workspace, user)
        except InputError as error:
            return notice(str(error))
        return ""

    live = [seen, curve, ask, timer]
    page.on_show(show, [seen], [table, models, name, begin, *live])
    begin.click(sample, [name, count, each, temperature, longest], said, **page.QUIET).then(
        show, [seen], [table, models, name, begin, *live], **page.QUIET
    )
    ask.click(compute, None, problem, **page.QUIET).then(look, [seen], live, **page.QUIET)
    timer.tick(look, [seen], live, queue=False, **page.QUIET)


def reader(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may see the rounds. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in READERS:
        raise InputError(f"{user.name} may not see the rounds; ask a researcher or a lead")
    return user


def history_html(found: list[Round]) -> str:
    """The rounds as a table; HTML."""
    if not found:
        return f'<p class="empty">{escape(EMPTY)}</p>'
    titles = ("Round", "Policy", "Came from", "Labels", "Reward model", "Blind votes won", "KL")
    body = [
        (
            str(number),
            escape(one.checkpoint.name if one.checkpoint else one.job.label),
            escape(one.parent.name),
            "–" if one.labels is None else f"{one.labels:,}",
            _reward(one),
            _counted(one.wins, "vote") if one.wins.n else "no votes yet: rank a round, or vote in Compare",
            "–" if one.kl is None else f"{one.kl:.2f} nats",
        )
        for number, one in enumerate(found, 1)
    ]
    return page.table(titles, body, "Rounds")


def _reward(one: Round) -> str:
    if one.job.method == "dpo":
        return "DPO needs none"
    return _counted(one.accuracy, "held-out comparison") if one.accuracy.value is not None else "–"


def _counted(figure: Figure, noun: str) -> str:
    """ "62% (51 to 72), n = 80 votes"."""
    number = f" · {figure.n:,} {noun}{'' if figure.n == 1 else 's'}" if figure.n else ""
    return f'{share(figure)}<span class="muted">{number}</span>'


def curve_html(workspace: Workspace, job: jobs.Job | None) -> str:
    """Where the last learning curve stands, or what it says; HTML."""
    if job is None:
        return '<p class="empty">Not computed yet.</p>'
    if job.state == "finished" and job.result:
        said = rounds.describe_curve(job.result, rounds.ceiling(workspace.store.db))
        return f'<p class="now" role="status">{escape(said)}</p>{curve_plot(job.result)}'
    if job.state == "queued":
        return '<p class="now" role="status">Waits until the run before it is done, then starts by itself.</p>'
    if job.state == "running":
        line = jobs.progress_line(job, worker.read_status(workspace.runs_folder / job.id))
        return f'<p class="now" role="status">{escape(line)}</p>'
    said = f"{job.label} {job.state}"
    return notice(f"{said}: {job.error}." if job.error else f"{said}. Compute it again.")


def curve_plot(result: dict[str, Any]) -> str:
    """Accuracy over comparisons, the mean and the lowest and highest split; HTML."""
    x, accuracy = result["comparisons"], np.array(result["accuracy"])
    lines = [
        (title, [(float(at), float(value)) for at, value in zip(x, values, strict=True)])
        for title, values in (
            ("mean", accuracy.mean(1)),
            ("lowest split", accuracy.min(1)),
            ("highest split", accuracy.max(1)),
        )
    ]
    return plots.overlay("Accuracy on held-out prompts", lines, "share, by comparisons learned from")
