"""What a run would learn from, before it is started: whose labels, how far they agree, the split, and what is wrong.

The rows are those that the run's snapshot would hold, so what is said here is what the trainer meets. Totals are of
everything; what needs the texts is of the first `LIMIT` rows, which nearly always is everything too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from data.formats import parse_demonstration, parse_prompt_row, parse_ranking
from data.preferences import comparisons, count_comparisons, opening, split_by_prompt
from data.records import Demonstration, Prompt, Ranking
from labeler import agreement, opinions, reliability, snapshots
from labeler.agreement import Figure
from labeler.store import rows, scalar
from labeler.workspace import Workspace

LIMIT = 5_000
"""Rows whose texts are read: enough for every figure here, and a page waits no longer than a second."""
KEPT = 8
"""Kinds and filters whose records are kept."""
FEW_COMPARISONS = 50
FEW_HELD_OUT = 30
"""Held-out comparisons below which an accuracy says little: its 95% interval is wider than ± 18 points."""
BIASED = 0.55
"""Share of preferred answers that are the longer (or shorter) ones, from which on length is worth a warning."""
DISAGREED = 0.6
"""Share of votes that are the same, below which a reward model has little to learn."""

Record = Prompt | Ranking | Demonstration
PARSERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "preferences": parse_ranking,
    "demonstrations": parse_demonstration,
    "prompts": parse_prompt_row,
}


@dataclass(frozen=True)
class Material:
    """The records of a kind that pass the filters: the first `LIMIT` of `total`."""

    kind: str
    records: Sequence[Any]
    total: int

    @property
    def cut(self) -> bool:
        """Whether there are more."""
        return self.total > len(self.records)


@dataclass(frozen=True)
class Source:
    """One annotator's part in one project. `weight` is what each of their rankings is multiplied by."""

    project: str
    annotator: str
    rankings: int
    comparisons: int
    weight: float = 1.0

    @property
    def learned(self) -> bool:
        """Whether anything is learned from it."""
        return self.weight >= snapshots.LEAST_WEIGHT


@dataclass(frozen=True)
class Split:
    """Training and held-out sides: records (comparisons where they are preferences) and distinct openings."""

    train: int
    train_prompts: int
    held: int
    held_prompts: int


@dataclass(frozen=True)
class Concern:
    """What is wrong with the data, and what to do about it."""

    wrong: str
    remedy: str


UNKNOWN = Figure(None)


@dataclass(frozen=True)
class Before:
    """What a run would learn from. `agreement` is the share of votes that are the same; `longer` the share of preferred
    answers that are the longer ones (in characters); n counts pairs of votes, and comparisons."""

    kind: str
    count: int
    prompts: int
    sources: list[Source] = field(default_factory=list)
    agreement: Figure = UNKNOWN
    shared_tasks: int = 0
    split: Split | None = None
    longer: Figure = UNKNOWN
    concerns: list[Concern] = field(default_factory=list)
    cut: bool = False


_known: dict[tuple[str, str, str], tuple[tuple[int, ...], Material]] = {}
_reading = threading.Lock()


def material(workspace: Workspace, kind: str, filters: Mapping[str, Any] | None = None) -> Material:
    """The records a run would be given now. Kept until somebody says or imports something more."""
    db = workspace.store.db
    tables = ("events", "prompts", "completions", "erasures")
    marks = tuple(int(scalar(db, f"SELECT coalesce(max(id), 0) FROM {table}")) for table in tables)
    marks += (int(scalar(db, "SELECT count(*) FROM in_force")), int(scalar(db, "SELECT count(*) FROM prompts")))
    key = (str(workspace.folder), kind, json.dumps(filters or {}, sort_keys=True))
    with _reading:
        known = _known.get(key)
        if known is None or known[0] != marks:
            with snapshots.reading(workspace.store, filters) as (now, chosen):
                made = {"preferences": snapshots.rankings, "demonstrations": snapshots.demonstrations}.get(
                    kind, snapshots.prompts
                )
                found = list(islice(made(now, chosen), LIMIT + 1))
            parse = PARSERS[kind]
            total = len(found)
            if total > LIMIT:
                name = "rankings" if kind == "preferences" else kind
                total = snapshots.count(workspace.store, filters, [kind])[name]
            known = marks, Material(kind, [parse(row) for row in found[:LIMIT]], total)
            _known.pop(key, None)
            _known[key] = known
            for oldest in list(_known)[:-KEPT]:
                del _known[oldest]
    return known[1]


def look(
    workspace: Workspace, kind: str, filters: Mapping[str, Any] | None, fraction: float, seed: int, fold: int | None
) -> Before:
    """What a run on that kind of data would learn from, split as the trainer will split it."""
    found = material(workspace, kind, filters)
    split = split_of(found, fraction, seed, fold)
    prompts = _openings(found.records)
    if kind != "preferences":
        count = found.total
        concerns = (
            _about_prompts(count) if kind == "prompts" else _about_validation(count, prompts, fraction, split, kind)
        )
        return Before(kind, count, prompts, split=split, concerns=concerns, cut=found.cut)
    db = workspace.store.db
    weights = bool((filters or {}).get("weight_by_reliability"))
    sources = [_source(row, weights, workspace) for row in snapshots.by_source(db)]
    comparisons_learned = sum(source.comparisons for source in sources if source.learned)
    agreed = _agreement(workspace)
    longer = longer_wins(found.records)
    concerns = [
        *_about_amount(comparisons_learned),
        *_about_validation(comparisons_learned, prompts, fraction, split, kind),
        *_about_length(longer),
        *_about_base(workspace),
        *_about_agreement(agreed.percent),
    ]
    return Before(
        kind, comparisons_learned, prompts, sources, agreed.percent, agreed.tasks, split, longer, concerns, found.cut
    )


def split_of(found: Material, fraction: float, seed: int, fold: int | None) -> Split | None:
    """The two sides as the trainer makes them; None where nothing is held out."""
    if fold is not None and fraction > 0 and fold >= round(1 / fraction):
        return None  # the trainer refuses it
    train, held = split_by_prompt(found.records, fraction, seed, fold)
    if not held:
        return None
    size = count_comparisons if found.kind == "preferences" else len
    return Split(size(train), _openings(train), size(held), _openings(held))


def _openings(records: Sequence[Any]) -> int:
    return len({repr(opening(record)) for record in records})


def longer_wins(rankings: Sequence[Ranking]) -> Figure:
    """How often the preferred answer of a decided comparison is the longer one; the interval is a bootstrap by prompt,
    since the comparisons of one prompt hang together."""
    sums: dict[Any, list[int]] = {}
    for ranking in rankings:
        lengths = [len(text) for text in ranking.completions]
        of_prompt = sums.setdefault(ranking.prompt.messages[-1]["content"], [0, 0])
        for pair in comparisons(ranking):
            if not pair.tie and lengths[pair.winner] != lengths[pair.loser]:
                of_prompt[0] += lengths[pair.winner] > lengths[pair.loser]
                of_prompt[1] += 1
    table = np.array(list(sums.values()), dtype=float).reshape(-1, 2)
    return agreement.resampled(table, lambda s: s[..., 0] / s[..., 1], int(table[:, 1].sum()))


def other_bases(workspace: Workspace) -> tuple[int, int, list[str]]:
    """(completions of another base model, completions whose model is known, those models' names) in the newest
    `LIMIT` rankings."""
    found = rows(
        workspace.store.db,
        """SELECT coalesce(k.base_model, json_extract(c.sampling, '$.model')) AS model, count(DISTINCT c.id) AS n
            FROM (SELECT task_id FROM in_force WHERE pairs > 0 ORDER BY event_id DESC LIMIT ?) AS f
                JOIN task_completions AS tc ON tc.task_id = f.task_id JOIN completions AS c ON c.id = tc.completion_id
                LEFT JOIN checkpoints AS k ON k.id = c.checkpoint_id
            WHERE coalesce(k.base_model, json_extract(c.sampling, '$.model')) IS NOT NULL
            GROUP BY model ORDER BY n DESC, model""",
        [LIMIT],
    )
    others = [row for row in found if row["model"] != workspace.base_model]
    return sum(row["n"] for row in others), sum(row["n"] for row in found), [str(row["model"]) for row in others]


def _source(row: dict[str, Any], weighed: bool, workspace: Workspace) -> Source:
    weight = 1.0
    if weighed and not row["adjudicated"] and row["project_id"] is not None:
        weight = _weights(workspace, row["project_id"]).get(row["user_id"], 1.0)
    name = f"{row['annotator']} (last word)" if row["adjudicated"] else row["annotator"]
    return Source(row["project"] or "Chat and Compare", name, row["rankings"], row["comparisons"], weight)


_fitted: dict[tuple[str, int], tuple[int, dict[int, float]]] = {}


def _weights(workspace: Workspace, project_id: int) -> dict[int, float]:
    """`reliability.weights`, fitted again only when something was said since."""
    key = (str(workspace.folder), project_id)
    mark = int(scalar(workspace.store.db, "SELECT coalesce(max(id), 0) FROM events"))
    if key not in _fitted or _fitted[key][0] != mark:
        _fitted[key] = mark, reliability.weights(workspace.store.db, project_id)
    return _fitted[key][1]


def _agreement(workspace: Workspace) -> agreement.Agreement:
    """Of all projects together, from each one's newest `LIMIT` rankings."""
    db = workspace.store.db
    tasks: dict[int, dict[int, opinions.Ranks]] = {}
    for row in rows(db, "SELECT id FROM projects"):
        tasks |= opinions.by_task(opinions.read(db, row["id"], limit=LIMIT))
    return agreement.agreement(tasks)


# -- what is wrong with it ---------------------------------------------------------------------------------------------


def _about_amount(count: int) -> list[Concern]:
    if not count:
        return [Concern("There is nothing to learn from yet.", "Rank some answers in the Rank tab first.")]
    if count >= FEW_COMPARISONS:
        return []
    return [
        Concern(
            "Enough to try it out, too few to learn a taste from.",
            f"Aim for {FEW_COMPARISONS * 2} comparisons or more; one ranking of four answers gives up to six.",
        )
    ]


def _about_prompts(count: int) -> list[Concern]:
    return [] if count else [Concern("There are no prompts yet.", "Import some in the Data tab.")]


def _about_validation(count: int, prompts: int, fraction: float, split: Split | None, kind: str) -> list[Concern]:
    if not count:
        if kind == "demonstrations":
            wrong = "There is nothing to imitate yet."
            return [Concern(wrong, "In the Rank tab, put one answer alone at the top.")]
        return []
    if not fraction:
        return [
            Concern(
                "Nothing is held out, so nobody can tell learning from memorising.",
                "Set Validation fraction to 0.1 or more.",
            )
        ]
    if split is None and prompts < 2:
        return [Concern("All of it is about one prompt, so nothing can be held out.", "Rank answers to other prompts.")]
    if kind == "preferences" and split is not None and split.held < FEW_HELD_OUT and count >= FEW_COMPARISONS:
        spread = 0.98 / max(split.held, 1) ** 0.5
        return [
            Concern(
                f"Only {split.held} comparison{'' if split.held == 1 else 's'} held out: an accuracy measured on them "
                f"may be off by {min(spread, 0.5):.0%} either way.",
                "Raise Validation fraction, or rank more prompts.",
            )
        ]
    return []


def _about_length(longer: Figure) -> list[Concern]:
    if longer.value is None or longer.low is None or longer.high is None:
        return []
    if longer.low <= BIASED and longer.high >= 1 - BIASED:
        return []
    word = "longer" if longer.value > 0.5 else "shorter"
    share, ends = (longer.value, (longer.low, longer.high))
    if word == "shorter":
        share, ends = 1 - share, (1 - longer.high, 1 - longer.low)
    return [
        Concern(
            f"The {word} answer is preferred in {share:.0%} of {longer.n:,} comparisons ({ends[0]:.0%} to "
            f"{ends[1]:.0%}): a model may learn length instead of quality.",
            "Rank answers of like length too, turn on Length normalised for DPO, and look at Agreement by length in "
            "the run.",
        )
    ]


def _about_base(workspace: Workspace) -> list[Concern]:
    others, known, names = other_bases(workspace)
    if others * 10 < known or not others:
        return []
    shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
    return [
        Concern(
            f"{others:,} of {known:,} answers were written by another base model ({shown}): they are not what "
            "this model says.",
            "A reward model can learn from them; before DPO or PPO let this model answer the prompts and rank those "
            "answers too.",
        )
    ]


def _about_agreement(percent: Figure) -> list[Concern]:
    if percent.value is None or percent.high is None or percent.high >= DISAGREED:
        return []
    return [
        Concern(
            f"People agree on {percent.value:.0%} of their common comparisons (at most {percent.high:.0%}): no model "
            "learns more than they agree on.",
            "Look at Disagreements in the Quality tab, sharpen the guidelines, or weight by reliability.",
        )
    ]
