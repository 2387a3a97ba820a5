"""What one row of a file means, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.formats import parse_completion, parse_ended, parse_prompt, parse_prompt_row, parse_ranking
from data.records import InputError, Prompt, shown
from labeler.events import MAX_COMMENT, Rank, check_ranks
from labeler.prompts import stored_form


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt; with `texts` also completions to rank, with `ranks` somebody's ranking of them.

    `answer` is a demonstration. `messages` is the conversation as it is stored, `content_hash` its hash.
    """

    messages: str
    content_hash: str
    category: str
    external_id: str | None
    annotator: str = ""
    texts: tuple[str, ...] = ()
    ranks: tuple[Rank, ...] | None = None
    weight: float = 1.0
    margin: float = 0.0
    comment: str = ""
    infos: tuple[dict[str, Any], ...] = ()
    model: str = ""
    answer: str | None = None

    @property
    def size(self) -> int:
        """Characters of text."""
        return len(self.messages) + sum(map(len, self.texts)) + len(self.answer or "")


def parse_item(row: dict[str, Any]) -> Item:
    """Raises InputError where the row is nothing that can be stored."""
    if row.get("ranks") is not None or ("chosen" in row and "rejected" in row):
        ranking = parse_ranking(row)
        _check_count(len(ranking.completions))
        check_ranks(ranking.ranks, len(ranking.completions), all_bad=False)
        return Item(
            *_common(row, ranking.prompt),
            texts=ranking.completions,
            ranks=ranking.ranks,
            weight=ranking.weight,
            margin=ranking.margin,
            comment=_comment(row),
            infos=_infos(row, ranking.ended),
            model=_text(row, "model"),
        )
    if "completions" in row:
        if not isinstance(row["completions"], list):
            raise InputError('"completions" must be a list')
        texts = tuple(parse_completion(text, "completions") for text in row["completions"])
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise InputError(f"completion {number} is empty")
        _check_count(len(texts))
        ended = parse_ended(row) or (True,) * len(texts)
        if len(ended) != len(texts):
            raise InputError(f"{len(texts)} completions but {len(ended)} finish reasons; give one each")
        common = _common(row, parse_prompt(row.get("prompt")))
        return Item(*common, texts=texts, infos=_infos(row, ended), model=_text(row, "model"))
    prompt, answer = parse_prompt_row(row), None
    if "completion" in row:
        answer = parse_completion(row["completion"])
    elif "messages" in row and row["messages"][-1]["role"] == "assistant":
        answer = row["messages"][-1]["content"]
    if answer is not None and not answer.strip():
        raise InputError("the demonstration's assistant message is empty")
    return Item(*_common(row, prompt), answer=answer)


def _common(row: dict[str, Any], prompt: Prompt) -> tuple[str, str, str, str | None, str]:
    annotator = row.get("annotator")
    if annotator is not None and (isinstance(annotator, bool) or not isinstance(annotator, str | int)):
        raise InputError(f'"annotator" must be a name, not {shown(annotator)}')
    name = str(annotator or "").strip()
    if len(name) > 100:
        raise InputError("the annotator's name is longer than 100 characters; give a shorter one")
    return *stored_form(prompt), _text(row, "category"), _text(row, "id") or None, name


def _check_count(count: int) -> None:
    if not 2 <= count <= 9:
        raise InputError(f"a task needs 2 to 9 completions, not {count}")


def _comment(row: dict[str, Any]) -> str:
    comment = _text(row, "comment")
    if len(comment) > MAX_COMMENT:
        raise InputError(f"the comment is too long; keep it under {MAX_COMMENT:,} characters")
    return comment


def _infos(row: dict[str, Any], ended: tuple[bool, ...]) -> tuple[dict[str, Any], ...]:
    """How each completion was made: sampling settings, num_tokens, finish_reason; {} where nothing is said."""
    given = row.get("completion_info")
    if not isinstance(given, list) or len(given) != len(ended):
        given = [{}] * len(ended)
    infos = [dict(info) if isinstance(info, dict) else {} for info in given]
    for info, whole in zip(infos, ended, strict=True):
        if not whole:
            info["finish_reason"] = "length"
    return tuple(infos)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value.strip() if isinstance(value, str) else ""
