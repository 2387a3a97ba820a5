"""The Leaderboard tab: which checkpoint people prefer, how sure that is, and how many more votes would settle it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import leaderboard
from labeler.agreement import Figure
from labeler.auth import current_user
from labeler.bradley_terry import FEWEST
from labeler.leaderboard import NO_PROJECT, Gap, Standing, Standings
from labeler.projects import all_projects
from labeler.quality import wilson
from labeler.store import rows
from labeler.ui import page, plots
from labeler.workspace import Workspace

READERS = ("lead", "researcher", "owner")
"""Roles that see the standings. Annotators do not: knowing who leads is no help to a blind vote."""
EVERYTHING = -1
"""The choice "all votes" in the menu of projects."""
IN_MATRIX = 12
"""Checkpoints in the matrix: the strongest."""
WIDTH, HEIGHT, RIGHT = 400, 34, 6
"""Of a picture of an interval, in units of its own; it is stretched to its cell."""

EMPTY = (
    '<p class="empty">No blind vote has compared two checkpoints yet. Vote in Compare, or make a labeling project of '
    "several checkpoints' answers there and rank them in Rank.</p>"
)
HOW = """<details class="signs"><summary>How this is computed</summary><dl>
<dt>Strength</dt><dd>Bradley-Terry: the chance that one checkpoint beats another depends on the difference of their
strengths alone. A tie is half a win for each; all bad compares nothing. 100 points ahead win 64% of the votes, 200
points 76%, 400 points 91%. Points are differences to one checkpoint, which therefore has none of its own
uncertainty.</dd>
<dt>Votes</dt><dd>Every blind comparison in force, from Compare and from rankings whose answers come from different
checkpoints. A ranking of K answers counts as K - 1 votes, shared evenly by its pairs. Known answers, repeats,
adjudications and votes with the names in view are left out.</dd>
<dt>Intervals</dt><dd>95%. Votes are resampled by prompt and by annotator, since those of one prompt or of one person
hang together; with fewer than {fewest} annotators by prompt alone, and then they say nothing about other people.
Where hardly anything was won or lost, they are at least as wide as the likelihood says.</dd>
<dt>Prior</dt><dd>Weak: strengths are normal with a standard deviation of 3 in log-odds (521 points). It keeps a
checkpoint that won everything from having no strength at all.</dd>
<dt>At equal length</dt><dd>The same, with the difference in length, 3 (a - b) / (a + b) of the characters, as one more
cause of winning. If a lead shrinks here, it was partly bought with words.</dd>
<dt>Rank</dt><dd>1 more than the checkpoints that are better beyond chance; neighbours that are not separated share
one.</dd></dl></details>""".replace("{fewest}", str(FEWEST))


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    project = gr.Dropdown([], label="Votes of", elem_id="leaderboard-project")
    board = page.html("<p class='empty' role='status'>Counting votes …</p>", elem_id="leaderboard")

    def show(chosen: int | None, request: gr.Request) -> list[Any]:
        try:
            user = current_user(request, workspace)
            if user.role not in READERS:
                raise InputError(f"{user.name} may not see the standings; ask a lead")
        except InputError as error:
            return [gr.skip(), f'<p class="empty">{escape(str(error))}</p>']
        db = workspace.store.db
        choices = [("all projects and Compare", EVERYTHING), ("Compare alone", NO_PROJECT)]
        choices += [(one.name, one.id) for one in all_projects(db)]
        chosen = page.keep_choice(choices, chosen, EVERYTHING)
        cast = leaderboard.votes(db, None if chosen == EVERYTHING else chosen)
        found = leaderboard.standings(cast, workspace.base_checkpoint_id)
        names = {row["id"]: row["name"] for row in rows(db, "SELECT id, name FROM checkpoints")}
        return [gr.Dropdown(choices, value=chosen), board_html(found, names)]

    page.on_show(show, [project], [project, board])
    project.input(show, project, [project, board], show_progress_on=board, api_visibility="private")


def board_html(found: Standings, names: dict[int, str]) -> str:
    """Everything below the menu. Names are escaped here."""
    if found.anchor is None:
        return EMPTY
    names = {one: escape(name) for one, name in names.items()}
    return f"{_summary(found, names)}{_table(found, names)}{_gaps(found, names)}{_matrix(found, names)}{HOW}"


def _summary(found: Standings, names: dict[int, str]) -> str:
    by = "prompt and annotator" if found.annotators >= FEWEST else "prompt"
    counted = ", ".join(
        f"{count:,} {word}{'' if count == 1 else 's'}"
        for count, word in (
            (found.votes, "comparison"),
            (found.rankings, "ranking"),
            (found.prompts, "prompt"),
            (found.annotators, "annotator"),
        )
    )
    lines = [f"{counted}. Points ahead of {names[found.anchor or 0]}, 95% intervals by {by}."]
    if found.annotators < FEWEST:
        lines.append(f"With fewer than {FEWEST} annotators this is what these people prefer, not what people do.")
    sided = [names[one.checkpoint_id] for one in found.places if one.one_sided]
    if sided:
        lines.append(f"Won or lost every vote, so the number rests on the prior: {', '.join(sided)}.")
    apart = [names[one.checkpoint_id] for one in found.places if one.rank is None]
    if apart:
        lines.append(
            f"No chain of votes leads from {names[found.anchor or 0]} to {', '.join(apart)}: compare them to rank them."
        )
    if found.length is not None:
        lines.append(f"An answer twice as long gains {points(found.length)} points for its length alone.")
    return f'<p class="meta" role="status">{" ".join(lines)}</p>'


def _table(found: Standings, names: dict[int, str]) -> str:
    ends = [
        x
        for one in found.places
        for x in (one.strength.low, one.strength.high, one.controlled.low, one.controlled.high)
        if x is not None
    ]
    marks = plots.ticks(min([*ends, -1.0]), max([*ends, 1.0]))
    body = [
        [
            "–" if one.rank is None else str(one.rank),
            f"<b>{names[one.checkpoint_id]}</b>",
            _picture(one, names[one.checkpoint_id], marks),
            "0, the zero" if one.checkpoint_id == found.anchor else points(one.strength),
            "0, the zero" if one.checkpoint_id == found.anchor else points(one.controlled),
            f"{one.wins / one.strength.n:.0%} of {one.strength.n:,}",
        ]
        for one in found.places
    ]
    scale = f"{plots.number(marks[0])} … 0 … {plots.number(marks[-1])}"
    titles = ["Rank", "Checkpoint", f"Points {scale}", "Points", "At equal length", "Won"]
    return page.table(titles, body, "Standings")


def points(figure: Figure) -> str:
    """ "+85 (12 to 158)"."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:+.0f} ({figure.low:.0f} to {figure.high:.0f})"


def _picture(one: Standing, name: str, marks: list[float]) -> str:
    """The interval as a bar and the strength in it; below it, thinner, the same at equal length."""
    figure = one.strength
    if figure.value is None or figure.low is None or figure.high is None:
        return "<span class='meta'>not connected</span>"

    def x(value: float) -> float:
        return RIGHT + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - 2 * RIGHT)

    parts = []
    for mark in marks:
        at = f'x1="{x(mark):.1f}" x2="{x(mark):.1f}"'
        parts.append(f'<line class="{"grid" if mark else "zero"}" {at} y1="0" y2="{HEIGHT}"/>')
    for kind, each, top, height in (("plain", figure, 5, 14), ("controlled", one.controlled, 23, 6)):
        if each.value is None or each.low is None or each.high is None:
            continue
        parts.append(
            f'<rect class="{kind}" x="{x(each.low):.1f}" width="{max(1.0, x(each.high) - x(each.low)):.1f}" '
            f'y="{top}" height="{height}"/><rect class="value" x="{x(each.value) - 1.5:.1f}" width="3" '
            f'y="{top - 2}" height="{height + 4}"/>'
        )
    label = f"{name}: {points(figure)} points"
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _gaps(found: Standings, names: dict[int, str]) -> str:
    if not found.gaps:
        return ""
    body = [[names[one.better], names[one.worse], points(one.points), f"{one.points.n:,}", needed(one)]
            for one in found.gaps]  # fmt: skip
    return (
        "<h2>Neighbours</h2><p class='meta'>Votes needed: further votes between the two, each on a new prompt, that "
        "would separate them in 80% of cases if they are as far apart as it seems now. Do not stop at the first moment "
        "they are separated: decide the number before, then vote.</p>"
        + page.table(["Ahead", "Behind", "By points", "Votes between them", "Votes needed"], body, "Neighbours")
    )


def needed(gap: Gap) -> str:
    """How many further votes, in words."""
    if gap.votes_needed == 0:
        return "none: separated"
    return "more than 100,000: as good as equal" if gap.votes_needed is None else f"about {gap.votes_needed:,}"


def _matrix(found: Standings, names: dict[int, str]) -> str:
    order = [one.checkpoint_id for one in found.places][:IN_MATRIX]

    def cell(row: int, column: int) -> str:
        wins, n = found.matrix.get((row, column), (0.0, 0))
        if not n:
            return "<td>–</td>"
        low, high = wilson(wins, n)
        return f"<td><b>{wins / n:.0%}</b><small>{low:.0%} to {high:.0%}</small><small>n {n:,}</small></td>"

    head = "".join(f"<th scope='col'>{names[one]}</th>" for one in order)
    body = "".join(
        f"<tr><th scope='row'>{names[row]}</th>{''.join(cell(row, column) for column in order)}</tr>" for row in order
    )
    return (
        "<details class='pairs'><summary>Who wins against whom</summary><p class='meta'>How often the checkpoint of "
        "the row wins against that of the column, ties as half, with the 95% interval of as many independent votes."
        "</p><div class='table-wrap' tabindex='0' role='region' aria-label='Win rates'><table "
        f"class='quality-table matrix'><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "</details>"
    )
