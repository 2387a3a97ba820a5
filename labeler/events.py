"""What may be said of a task: an event, the rules for what it holds, and the same as the annotator saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.records import InputError

Rank = int | None
MAX_RANK = 9
MAX_RATING = 5
MAX_COMMENT = 10_000
MAX_REWRITE = 50_000


@dataclass(frozen=True)
class Event:
    """One thing an annotator did. `ranks` stand in the order in which the completions were shown.

    kind: submit, skip, flag, retract or adjudicate. `tags` and `ratings` (1 to 5, higher is better) are said of each
    completion, in the order of `ranks`; with ratings alone the ranks follow from them. `rewrite` is a better answer,
    `strength` (1 to 4) by how much the better of two is better, `reason` why it was skipped or flagged. `seconds` is
    the time spent on the task; `client_time` the browser's clock in unix seconds. `more` is kept in the payload as it
    is (weight, margin).
    """

    uuid: str
    assignment_id: int
    kind: str
    ranks: Sequence[Rank] = ()
    all_bad: bool = False
    comment: str = ""
    tags: Sequence[Sequence[str]] = ()
    ratings: Sequence[int | None] = ()
    rewrite: str = ""
    strength: int | None = None
    reason: str = ""
    seconds: float | None = None
    client_time: float | None = None
    source: str = "task"
    more: dict[str, Any] = field(default_factory=dict)


def check_opinion(event: Event, count: int) -> dict[str, Any]:
    """What is stored of a submit, in the order of `event.ranks`. Raises InputError where it cannot be meant."""
    ratings = check_ratings(event.ratings, count)
    ranks = event.ranks
    if any(rating is not None for rating in ratings) and not any(rank is not None for rank in ranks):
        ranks = [None if rating is None else MAX_RATING + 1 - rating for rating in ratings]
    found = check_ranks(ranks, count, event.all_bad)
    said: dict[str, Any] = {"ranks": found, "all_bad": bool(event.all_bad)}
    if any(rating is not None for rating in ratings):
        said["ratings"] = ratings
    tags = check_tags(event.tags, count)
    if any(tags):
        said["tags"] = tags
    if event.rewrite.strip():
        if len(event.rewrite) > MAX_REWRITE:
            raise InputError(f"the rewritten answer is too long; keep it under {MAX_REWRITE:,} characters")
        said["rewrite"] = event.rewrite.strip()
    if event.strength is not None:
        if count != 2 or None in found or found[0] == found[1]:
            raise InputError("a strength of preference is for two completions of which one is better")
        if isinstance(event.strength, bool) or event.strength not in (1, 2, 3, 4):
            raise InputError(f"strength {event.strength!r} is not a whole number from 1 to 4")
        said["strength"] = event.strength
    return said


def check_ratings(ratings: Sequence[Any], count: int) -> list[int | None]:
    """One rating each, whole numbers from 1 to 5 or None."""
    if not ratings:
        return [None] * count
    for rating in ratings:
        if rating is not None and (isinstance(rating, bool) or rating not in range(1, MAX_RATING + 1)):
            raise InputError(f"rating {rating!r} is not a whole number from 1 to {MAX_RATING}")
    if len(ratings) != count:
        raise InputError(f"{count} completions but {len(ratings)} ratings; reload the page")
    return list(ratings)


def check_tags(tags: Sequence[Any], count: int) -> list[list[str]]:
    """A list of tags each. Any words are taken: which are offered is the project's to say, and may change."""
    if not tags:
        return [[] for _ in range(count)]
    if len(tags) != count:
        raise InputError(f"{count} completions but tags for {len(tags)}; reload the page")
    for words in tags:
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) and len(w) <= 60 for w in words):
            raise InputError("tags are lists of words of at most 60 characters")
        if len(words) > 30:
            raise InputError("at most 30 tags for a completion")
    return [list(dict.fromkeys(words)) for words in tags]


def check_ranks(ranks: Sequence[Any], count: int, all_bad: bool) -> list[Rank]:
    """The ranks, if they are usable: one each, whole numbers from 1, two of them set unless everything is bad."""
    if all_bad and not ranks:
        ranks = [None] * count
    if len(ranks) != count:
        raise InputError(f"{count} completions but {len(ranks)} ranks; reload the page")
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK):
            raise InputError(f"rank {rank!r} is not a whole number from 1 to {MAX_RANK}")
    if not all_bad and sum(rank is not None for rank in ranks) < 2:
        raise InputError("Rank at least two completions, or mark all of them as bad.")
    return list(ranks)


def as_shown(payload: dict[str, Any]) -> dict[str, Any]:
    """What an event said, as the draft of it: in the order in which the completions were shown."""
    stored = payload.get("completion_ids", [])
    places = [stored.index(completion) for completion in payload.get("display_order", stored)]
    said = {
        name: [payload[name][place] for place in places] for name in ("ranks", "tags", "ratings") if name in payload
    }
    return said | {name: payload[name] for name in ("all_bad", "comment", "rewrite", "strength") if name in payload}
