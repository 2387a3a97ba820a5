"""Which column of a foreign table is the prompt, the chosen answer, ...: guessed from its name, changed by the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from data.records import InputError, shown

Columns = Mapping[str, str | list[str]]
"""Our word for a column, and the name it has in the file; `completions` may be several columns."""

FIELDS = {
    "prompt": "what was asked (a text or chat messages)",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "completions": "the answers to rank: one column with a list, or a column each",
    "ranks": "one rank for each completion, 1 is best",
    "winner": "which of the completions won: a/b, 1/2, left/right, the column's name, or tie",
    "completion": "an answer worth imitating",
    "annotator": "who said so",
    "comment": "why",
    "category": "what kind of prompt it is",
    "id": "the prompt's own id",
    "weight": "how much the ranking counts",
    "margin": "how much better, in units of the score",
}
SYNONYMS = {
    "prompt": "instruction question query input task context post user_prompt user_input request",
    "chosen": "chosen_response preferred preferred_response better better_response accepted positive good",
    "rejected": "rejected_response dispreferred worse worse_response unpreferred negative bad",
    "winner": "preference choice winning_side label preferred_option verdict",
    "completion": "response answer output reply target ideal",
    "completions": "responses answers outputs candidates generations",
    "ranks": "rank ranking rankings order",
    "annotator": "annotator_id labeler labeller rater rater_id worker worker_id judge user_id annotated_by",
    "comment": "comments rationale explanation note notes feedback",
    "category": "topic domain task_type",
    "id": "prompt_id question_id",
}
NUMBERED = re.compile(
    r"(?:responses?|completions?|answers?|outputs?|repl(?:y|ies)|generations?|candidates?)[ _-]?(\d|[a-i])"
)
TIES = ("tie", "ties", "equal", "same", "both", "draw", "tie (bothbad)", "tie (both good)", "neither", "both_bad")


def guess(names: Iterable[str]) -> dict[str, str | list[str]]:
    """The mapping that the column names suggest. Our own words stand for themselves."""
    columns = list(names)
    found: dict[str, str | list[str]] = {name: name for name in FIELDS if name in columns}
    plain = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(columns)}
    numbered = sorted((match[1], name) for name in columns if (match := NUMBERED.fullmatch(name.strip().lower())))
    if len(numbered) >= 2 and not {"completions", "chosen"} & set(found):
        found["completions"] = [name for _, name in numbered]
    for field, words in SYNONYMS.items():
        if field in found or (field == "prompt" and "messages" in columns) or _spoken_for(field, found):
            continue
        name = next((plain[word] for word in words.split() if word in plain), None)
        if name is not None and name not in found.values():
            found[field] = name
    return found


def _spoken_for(field: str, found: Columns) -> bool:
    """Whether the row says already what `field` would say."""
    if field == "winner":
        return "completions" not in found or "ranks" in found
    if field == "ranks":
        return "completions" not in found
    if field == "completion":
        return bool({"chosen", "completions"} & set(found))
    return field == "completions" and "chosen" in found


def check(columns: Columns, names: Iterable[str]) -> None:
    """Raises InputError where the mapping names a field or a column that there is not."""
    known = set(names)
    for field, chosen in columns.items():
        if field not in FIELDS:
            raise InputError(f"unknown field {shown(field)}; use {', '.join(FIELDS)}")
        if isinstance(chosen, list) and field != "completions":
            raise InputError(f"{field} is one column, not several")
        for name in [chosen] if isinstance(chosen, str) else chosen:
            if name not in known:
                raise InputError(f"there is no column {shown(name)}; the file has {', '.join(sorted(known))}")


def apply(columns: Columns, row: dict[str, Any]) -> dict[str, Any]:
    """The row in our words; columns that are not mapped and mean something to us stay as they are."""
    taken = {name for chosen in columns.values() for name in ([chosen] if isinstance(chosen, str) else chosen)}
    renamed = {key: value for key, value in row.items() if key not in taken and key not in FIELDS}
    for field, chosen in columns.items():
        if isinstance(chosen, str):
            if chosen in row:
                renamed[field] = row[chosen]
        else:
            renamed[field] = [row[name] for name in chosen if name in row]
    winner = renamed.pop("winner", None)
    if winner is not None and renamed.get("ranks") is None:
        names = columns.get("completions")
        renamed["ranks"] = ranks_of(winner, renamed.get("completions"), names if isinstance(names, list) else [])
    return renamed


def ranks_of(winner: Any, completions: Any, names: list[str]) -> list[int]:
    """The ranks that "B won" means. Raises InputError where it names none of the completions."""
    count = len(completions) if isinstance(completions, list) else 0
    word = str(int(winner) if isinstance(winner, float) and winner.is_integer() else winner).strip().lower()
    if word in TIES:
        return [1] * count
    short = re.sub(r"^(model|response|completion|answer|output)[ _-]?", "", word)
    places: dict[str, int] = {name.strip().lower(): place for place, name in enumerate(names)}
    for place in range(count):
        places |= {chr(ord("a") + place): place, str(place + 1): place}
    places |= {"left": 0, "right": 1, "first": 0, "second": 1}
    place = places.get(word, places.get(short, count))
    if place >= count:
        raise InputError(f'winner {shown(winner)} names no completion; use a/b, 1/2, left/right, a column or "tie"')
    return [1 if number == place else 2 for number in range(count)]
