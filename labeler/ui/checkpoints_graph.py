"""The lineage as a drawing one can click: SVG made on the server, coloured by the style sheet, names escaped.

Every lane is one run: its checkpoints in the order of their steps. A line leads down from the checkpoint that a run
started from, a dashed one from the reward model that it learned by. Each checkpoint is a button.
"""

from __future__ import annotations

from html import escape

from labeler import checkpoints
from labeler.checkpoints import Checkpoint
from labeler.lineage import Lane, lanes
from labeler.workspace import Workspace

ROW, INDENT, STEP, TOP, LEFT = 56, 28, 76, 26, 20
RADIUS = 9
LONGEST = 32
"""Characters of a name in the drawing; the page below it shows the whole."""
LABEL = 9 * LONGEST - STEP
"""Room for a name behind the last checkpoint, in pixels."""

# One listener on the whole drawing: it is drawn anew at every change, and the focus must come back to its place.
PICK = """
let focused = null;
const pick = (node) => { focused = node.dataset.checkpoint; trigger('select', {checkpoint: Number(focused)}); };
element.addEventListener('click', (event) => {
  const node = event.target.closest('[data-checkpoint]');
  if (node) pick(node);
});
element.addEventListener('keydown', (event) => {
  const node = event.target.closest('g[data-checkpoint]');
  if (!node) return;
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(node); }
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (step) {
    event.preventDefault();
    const all = [...element.querySelectorAll('g[data-checkpoint]')];
    const next = all[all.indexOf(node) + step];
    if (next) next.focus();
  }
});
watch('value', () => {
  if (focused === null) return;
  const found = element.querySelector(`[data-checkpoint="${Number(focused)}"]`);
  const node = found && (found.querySelector('button') || found);
  if (node && document.activeElement === document.body) node.focus({preventScroll: true});
  focused = null;
});
"""


def text(value: str) -> str:
    """Escaped for HTML, and for the template that Gradio evaluates a widget's HTML as."""
    return neutral(escape(value))


def neutral(html: str) -> str:
    """HTML of ours that may quote people, kept from being evaluated as a template."""
    return html.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def graph(workspace: Workspace, chosen: int | None, hidden: bool = False) -> str:
    """The whole drawing; HTML."""
    found = lanes(workspace, hidden)
    places = {c.id: _place(lane, row, k) for row, lane in enumerate(found) for k, c in enumerate(lane.checkpoints)}
    edges = "".join(_edges(lane, row, places) for row, lane in enumerate(found))
    nodes = "".join(_lane(workspace, lane, row, chosen) for row, lane in enumerate(found))
    width = max((_place(lane, row, len(lane.checkpoints))[0] for row, lane in enumerate(found)), default=0) + LABEL
    height = TOP + ROW * len(found)
    return (
        f'<div class="table-wrap lineage"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="group" aria-label="Lineage: {len(places)} checkpoints, each below the one it started from">'
        f"{edges}{nodes}</svg></div>"
        '<p class="meta"><span class="legend">──</span> started from · <span class="legend dashed">╌╌</span> learned '
        "from the scores of · ● policy · ■ reward model · ◆ base model. Click a checkpoint, or Tab to one, move by the "
        "arrow keys and press Enter.</p>"
    )


def _place(lane: Lane, row: int, number: int) -> tuple[int, int]:
    return LEFT + lane.depth * INDENT + number * STEP, TOP + ROW * row + 14


def _edges(lane: Lane, row: int, places: dict[int, tuple[int, int]]) -> str:
    x, y = _place(lane, row, 0)
    parts = []
    if lane.parent_id in places:
        from_x, from_y = places[lane.parent_id]
        middle = y - ROW // 2 + 4
        parts.append(f'<path class="edge" d="M{from_x},{from_y} V{middle} H{x} V{y}"/>')
    if lane.reward_id in places:
        from_x, from_y = places[lane.reward_id]
        bend = max(from_x, x) + STEP // 2
        parts.append(f'<path class="edge dashed" d="M{from_x},{from_y} Q{bend},{(from_y + y) // 2} {x + 4},{y}"/>')
    last = _place(lane, row, len(lane.checkpoints) - 1)[0]
    return "".join(parts) + (f'<path class="edge thin" d="M{x},{y} H{last}"/>' if last > x else "")


def _lane(workspace: Workspace, lane: Lane, row: int, chosen: int | None) -> str:
    x, y = _place(lane, row, len(lane.checkpoints) - 1)
    first = _place(lane, row, 0)[0]
    nodes = "".join(_node(workspace, c, first + k * STEP, y, c.id == chosen) for k, c in enumerate(lane.checkpoints))
    named = lane.checkpoints[0].run_id is not None
    label = f'<text class="lane" x="{x + 22}" y="{y + 5}">{text(_short(lane.label))}</text>' if named else ""
    return nodes + label


def _node(workspace: Workspace, c: Checkpoint, x: int, y: int, chosen: bool) -> str:
    state = state_of(workspace, c)
    if c.kind == "base":
        shape = f'<path class="node" d="M{x},{y - RADIUS - 2} l{RADIUS + 2},{RADIUS + 2} l-{RADIUS + 2},{RADIUS + 2} ' \
            f'l-{RADIUS + 2},-{RADIUS + 2} Z"/>'  # fmt: skip
    elif c.kind == "reward":
        size = 2 * RADIUS - 1
        shape = f'<rect class="node" x="{x - RADIUS}" y="{y - RADIUS}" width="{size}" height="{size}" rx="2"/>'
    else:
        shape = f'<circle class="node" cx="{x}" cy="{y}" r="{RADIUS}"/>'
    own = c.name != f"{checkpoints.run_label(c.run_id or '')} step {c.step}"
    below = _short(c.name, 11) if own and c.run_id else f"step {c.step}"
    caption = f'<text class="step" x="{x}" y="{y + 24}" text-anchor="middle">{text(below)}</text>'
    if c.run_id is None:
        caption = f'<text class="lane" x="{x + 20}" y="{y + 5}">{text(_short(c.name))}</text>'
    said = f"{c.name}, {KINDS[c.kind]}{f', {state}' if state else ''}"
    return (
        f'<g class="checkpoint {"chosen" if chosen else ""} {state}" role="button" tabindex="0" '
        f'aria-pressed="{str(chosen).lower()}" aria-label="{text(said)}" data-checkpoint="{c.id}">'
        f"<title>{text(said)}</title>"
        f'<rect class="hit" x="{x - 18}" y="{y - 18}" width="{min(STEP, 44)}" height="46"/>{shape}{caption}</g>'
    )


KINDS = {"base": "base model", "policy": "policy", "reward": "reward model"}


def state_of(workspace: Workspace, checkpoint: Checkpoint) -> str:
    """deleted, pruned, archived, or nothing worth a word."""
    if checkpoint.deleted_at is not None:
        return "deleted"
    if not checkpoints.present(workspace, checkpoint):
        return "pruned"
    return "archived" if checkpoint.archived_at is not None else ""


def _short(name: str, longest: int = LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
