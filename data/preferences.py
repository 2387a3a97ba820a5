"""From rankings to comparisons; splits by prompt; the hash that says which data a run learned from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

from data.records import Demonstration, InputError, Message, Prompt, Ranking
from data.stored import Stored

Record = TypeVar("Record", Prompt, Ranking, Demonstration)


class Comparison(NamedTuple):
    """Completion `winner` was preferred to completion `loser` (indices into one ranking), or they tie."""

    winner: int
    loser: int
    tie: bool
    margin: float


def comparisons(ranking: Ranking) -> list[Comparison]:
    """All pairs of ranked completions that differ.

    The margin of a pair is the ranking's margin times the ranks between them. Two completions that read the same have
    the same score whatever the model is: their pair can teach nothing, and is none.
    """
    read = list(zip(ranking.completions, ranking.ended, strict=True))
    pairs = []
    for i, j in combinations(range(len(ranking.ranks)), 2):
        first, second = ranking.ranks[i], ranking.ranks[j]
        if first is None or second is None or read[i] == read[j]:
            continue
        winner, loser = (i, j) if first <= second else (j, i)
        pairs.append(Comparison(winner, loser, first == second, ranking.margin * abs(first - second)))
    return pairs


def count_comparisons(rankings: Sequence[Ranking]) -> int:
    """How many comparisons the rankings hold, ties included."""
    return sum(len(comparisons(ranking)) for ranking in rankings)


def fingerprint(record: Prompt | Ranking | Demonstration) -> bytes:
    """Equal for records that say the same, annotator included; where they were read does not matter."""
    return hashlib.blake2b(repr(record).encode(), digest_size=16).digest()


def opening(record: Prompt | Ranking | Demonstration) -> tuple[Message, ...]:
    """The conversation up to its first user turn: what must not be in training and validation at once.

    Later turns are left out, because data sets hold the same conversation at several lengths.
    """
    messages = record.prompt.messages if isinstance(record, Ranking) else record.messages
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    return messages[: first + 1]


def split_by_prompt(
    records: Sequence[Record], fraction: float, seed: int = 0, fold: int | None = None
) -> tuple[Sequence[Record], Sequence[Record]]:
    """Split into (train, held out) so that no prompt, and no conversation that opens alike, stands on both sides.

    `fraction` of the distinct openings (at least one, where there are two) is held out, chosen by a keyed hash of the
    prompt's text: adding rows moves few prompts between the sides. With `fold`, the fold-th of round(1/fraction) folds.
    """
    if fraction <= 0:
        return records, []
    keys = [_prompt_key(record, seed) for record in records]
    order = sorted(set(keys))
    if len(order) < 2:
        return records, []
    size = min(max(1, round(len(order) * fraction)), len(order) - 1)
    held = set(order[:size]) if fold is None else set(order[fold :: round(1 / fraction)])
    stored = records if isinstance(records, Stored) else Stored(records)
    sides: tuple[list[int], list[int]] = [], []
    for number, key in enumerate(keys):
        sides[key in held].append(number)
    return stored.pick(sides[False]), stored.pick(sides[True])


def _prompt_key(record: Prompt | Ranking | Demonstration, seed: int) -> bytes:
    text = json.dumps([seed, [dict(m) for m in opening(record)]], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises InputError where it may not be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
