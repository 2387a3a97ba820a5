"""What the Quality tab shows, as HTML: agreement with its curve and pairs, and the annotators. Names are escaped."""

from __future__ import annotations

from html import escape

from labeler import quality
from labeler.agreement import Agreement, Figure
from labeler.ui import plots

FEW = 5
"""So many annotators have their pairs shown unfolded."""
STATES = {"fine": ("✓", "fine"), "look": ("▲", "look"), "few": ("·", "too few")}
"""Sign and word, so that no state is said by colour alone."""

GOOD = {
    "percent": "Share of pairs of votes (better, worse or tie) that are the same. Some 70% is usual for chat answers; "
    "near 40% the guidelines leave too much open.",
    "nominal": "Krippendorff's alpha: 1 is full agreement, 0 is chance. Above 0.67 labels carry conclusions, above 0.8 "
    "firm ones; on matters of taste expect less.",
    "ordinal": "The same, but a tie against a preference counts less than the opposite preference.",
    "tau": "Two rankings of one task: 1 is the same order, 0 unrelated, -1 reversed. Above 0.5 is good for four "
    "answers.",
}
NOBODY = (
    "No two people have ranked the same task yet, so nothing can be said about agreement. Give the project an overlap "
    "of 2 or more, or mix in known answers."
)


def share(figure: Figure) -> str:
    """A share with its interval: "81% (78 to 84)"."""
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.0%}"
    return f"{figure.value:.0%} ({100 * figure.low:.0f} to {100 * figure.high:.0f})"


def number(figure: Figure) -> str:
    """A coefficient with its interval: "0.71 (0.66 to 0.75)"."""
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def figures_html(found: quality.Quality) -> str:
    """The project's agreement, its curve and the matrix of pairs."""
    if not found.overall.tasks:
        return f'<p class="empty">{escape(NOBODY)}</p>'
    overall = found.overall
    left_out = (
        f" Not defined for {overall.undefined:,} more: one of the two only ties there." if overall.undefined else ""
    )
    cards = [
        _card("Same vote", overall.percent, "pairs of votes", GOOD["percent"], share=True),
        _card("Alpha, nominal", overall.nominal, "votes", GOOD["nominal"]),
        _card("Alpha, ordinal", overall.ordinal, "votes", GOOD["ordinal"]),
        _card("Kendall's tau-b", overall.tau, "pairs of rankings", GOOD["tau"] + left_out),
    ]
    for title, figure, good in (
        ("Known answers", found.gold, "Share of votes that are those of the known answer."),
        (
            "Own again",
            found.retest,
            "Share of votes that people repeat when a task comes back, a ceiling for the rest.",
        ),
    ):
        if figure.n:
            cards.append(_card(title, figure, "votes", good, share=True))
    newest = f" The newest {found.rankings:,} rankings are looked at." if found.cut else ""
    return (
        f"<h2>Agreement</h2><p class='meta'>{overall.tasks:,} tasks that two or more people ranked; known answers and "
        f"repeats apart. Intervals are 95%, by resampling tasks.{newest}</p>"
        f"<dl class='figures'>{''.join(cards)}</dl><div class='curves'>{_curve(found)}</div>{_matrix(found)}"
    )


def _card(title: str, figure: Figure, unit: str, good: str, share: bool = False) -> str:
    if figure.value is None:
        value, interval = "–", "not defined: all votes are the same, or nobody can be compared"
    else:
        value = f"{figure.value:.1%}" if share else f"{figure.value:.3f}"
        interval = "no interval from a single task"
        if figure.low is not None and figure.high is not None:
            one, other = (f"{x:.1%}" if share else f"{x:.3f}" for x in (figure.low, figure.high))
            interval = f"{one} to {other}"
    return (
        f"<div><dt>{escape(title)}</dt><dd><b>{value}</b><span>{interval} · n = {figure.n:,} {unit}</span>"
        f"<p>{escape(good)}</p></dd></div>"
    )


def _curve(found: quality.Quality) -> str:
    """Same votes over time, each point with its interval."""
    points = [(name, one.percent) for name, one in found.periods if one.percent.value is not None]
    if len(points) < 2:
        return ""
    width, height, left, right, top, bottom = 420, 210, 58, 12, 12, 30
    ends = [x for _, one in points for x in (one.low, one.value, one.high) if x is not None]
    marks = plots.ticks(100 * min(ends), 100 * max(ends))

    def y(percent: float) -> float:
        return height - bottom - (percent - marks[0]) / (marks[-1] - marks[0]) * (height - top - bottom)

    def x(index: int) -> float:
        return left + 14 + index / (len(points) - 1) * (width - left - right - 28)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}%</text>'
        for mark in marks
    ]
    line = []
    for index, (name, one) in enumerate(points):
        assert one.value is not None
        at, value = x(index), y(100 * one.value)
        line.append(f"{at:.1f},{value:.1f}")
        if one.low is not None and one.high is not None:
            parts.append(
                f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{y(100 * one.low):.1f}" '
                f'y2="{y(100 * one.high):.1f}"/>'
            )
        title = f"{escape(name)}: {share(one)}, n = {one.n:,}"
        parts.append(
            f'<circle class="dot dot-0" cx="{at:.1f}" cy="{value:.1f}" r="3.5"><title>{title}</title></circle>'
        )
    for index in sorted({0, len(points) - 1}):
        anchor = "start" if index == 0 else "end"
        at = left if index == 0 else width - right
        parts.append(
            f'<text class="tick" x="{at}" y="{height - 10}" text-anchor="{anchor}">{escape(points[index][0])}</text>'
        )
    parts.append(f'<polyline class="line line-0" points="{" ".join(line)}"/>')
    last = points[-1]
    label = escape(f"Same votes over time; {last[0]}: {share(last[1])}")
    return (
        "<figure><figcaption><strong>Same vote over time</strong> <span class='unit'>share of pairs of votes, "
        f"95% intervals</span></figcaption><svg viewBox='0 0 {width} {height}' role='img' aria-label='{label}'>"
        f"{''.join(parts)}</svg><p class='good'>Level or rising is good. A fall: new people, new kinds of prompts, or "
        "guidelines that no longer fit.</p></figure>"
    )


def _matrix(found: quality.Quality) -> str:
    """Each two annotators with the most rankings."""
    names = {one.user_id: one.name for one in found.annotators}
    order = sorted({user for pair in found.pairs for user in pair}, key=lambda user: names[user].lower())
    if len(order) < 2:
        return ""

    def cell(first: int, second: int) -> str:
        one: Agreement | None = found.pairs.get((first, second)) or found.pairs.get((second, first))
        if one is None or one.percent.value is None:
            return "<td>–</td>"
        alpha = "–" if one.ordinal.value is None else f"{one.ordinal.value:.2f}"
        tau = "–" if one.tau.value is None else f"{one.tau.value:.2f}"
        return (
            f"<td><b>{one.percent.value:.0%}</b><small>{_interval(one.percent)}</small>"
            f"<small>α {alpha} · τ {tau}</small><small>n {one.percent.n:,} · {one.tasks:,} tasks</small></td>"
        )

    head = "".join(f"<th scope='col'>{escape(names[user])}</th>" for user in order[:-1])
    body = "".join(
        f"<tr><th scope='row'>{escape(names[row])}</th>{''.join(cell(row, column) for column in order[:place])}"
        f"{'<td></td>' * (len(order) - 1 - place)}</tr>"
        for place, row in enumerate(order[1:], 1)
    )
    return (
        f"<details class='pairs'{' open' if len(order) <= FEW else ''}><summary>Pair by pair</summary><p class='meta'>"
        "Same votes with 95% interval, alpha (ordinal), tau-b, votes compared. Who is low throughout is somebody to "
        "talk to.</p><div class='table-wrap' tabindex='0' role='region' "
        "aria-label='Agreement of each two annotators'><table class='quality-table matrix'><thead><tr><td></td>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _interval(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f"{figure.low:.0%} to {figure.high:.0%}"


TITLES = {"position": "First card", "pattern": "Same pattern", "speed": "Speed", "random": "Guessing"}


def people_html(found: quality.Quality) -> str:
    """One row an annotator, those with a sign first."""
    if not found.annotators:
        return '<p class="empty">Nobody has ranked anything in this project yet. Invite annotators to its Rank tab.</p>'
    columns = ["Annotator", "Like the others", "Known answers", "Own again", "Reliability", *TITLES.values()]
    head = "".join(f"<th scope='col'>{title}</th>" for title in columns)
    body = "".join(_person(one) for one in found.annotators)
    signs = "".join(f"<dt>{TITLES[kind]}</dt><dd>{escape(text)}</dd>" for kind, text in quality.SIGNS.items())
    return (
        "<h2>Annotators</h2><p class='meta'>▲ look: more than chance explains. A reason to read some of their "
        "rankings, not a verdict. Reliability: the share of pairs they would order rightly, fitted from who agrees "
        "with whom; 50% is guessing.</p>"
        f"<div class='table-wrap'><table class='quality-table people'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><details class='signs'><summary>What the signs mean</summary>"
        f"<dl>{signs}</dl><p>Scores are near 0 for somebody who reads. First card and same pattern: 1 is always. "
        "Speed: robust standard deviations between people; 3 is far. Guessing: 1 is a guess.</p></details>"
    )


def _person(one: quality.Annotator) -> str:
    counted = f"{one.rankings:,} ranking{'' if one.rankings == 1 else 's'}"
    cells = [f"<th scope='row'>{escape(one.name)}<small>{counted}</small></th>"]
    for title, figure in (
        ("Like the others", one.others),
        ("Known answers", one.gold),
        ("Own again", one.retest),
        ("Reliability", one.reliability),
    ):
        value = "–" if figure.value is None else f"{figure.value:.0%}"
        rest = f"<small>{_interval(figure)} n&nbsp;{figure.n:,}</small>" if figure.n else ""
        cells.append(f"<td data-label='{title}'><span>{value}{rest}</span></td>")
    for kind, title in TITLES.items():
        found = one.suspicions[kind]
        sign, word = STATES[found.state]
        score = (
            f"<small>{number(found.score)} n&nbsp;{found.score.n:,}</small>" if found.score.value is not None else ""
        )
        cells.append(
            f"<td data-label='{title}'><span><b class='state-{found.state}'>{sign} {word}</b>{score}"
            f"<small class='seen'>{escape(found.seen)}</small></span></td>"
        )
    return f"<tr>{''.join(cells)}</tr>"


assert set(TITLES) == set(quality.SIGNS)
