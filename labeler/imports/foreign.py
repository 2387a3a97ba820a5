"""Exports of other tools, and chat logs, in our words: one record of theirs is one or several rows of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data.records import InputError, Row, shown
from labeler.imports.columns import TIES, ranks_of

SPEAKERS = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "system": "system",
}  # fmt: skip
PROMPTS = (
    *("prompt", "instruction", "question", "query", "input", "context"),
    *("user", "messages", "conversation", "chat", "dialogue"),
)
NUMBERED = re.compile(r"(?:[\s_.-]*\d+|[\s_.-]+[A-Za-z]|(?<=[a-z])[A-Z])$")
"""How names of one kind end: response-1, answer_b, textA."""


def recognise(row: Row) -> str:
    """Which tool wrote this record: a key of CONVERTERS, or "" for rows with columns."""
    if isinstance(row.get("fields"), dict) and ("responses" in row or "suggestions" in row):
        return "argilla"
    if any(re.fullmatch(r".+\.(responses|suggestion)(\.\w+)?", key) for key in row):
        return "argilla"
    if any(f"{key}-suggestion" in row or _answers(value) for key, value in row.items()):
        return "argilla"  # version 1, as a dataset
    if isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row):
        return "label-studio"
    if any(isinstance(row.get(key), list) for key in ("conversations", "conversation")):
        return "chat"
    turns = row.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
        return "chat"
    return ""


# ---------------------------------------------------------------- chat logs


def chat_rows(row: Row) -> Iterator[Row]:
    """ShareGPT and its like: conversations with "from" and "value"; with "chosen" and "rejected", a preference."""
    turns = next((row[key] for key in ("conversations", "conversation", "messages") if key in row), None)
    messages = [_message(turn) for turn in turns] if isinstance(turns, list) else []
    if not messages:
        raise InputError("the conversation has no messages")
    more: Row = {key: row[key] for key in ("id", "category", "annotator", "comment") if key in row}
    if isinstance(row.get("system"), str) and row["system"].strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    if "chosen" in row and "rejected" in row:
        answers = {
            key: [_message(row[key])] if isinstance(row[key], dict) else row[key] for key in ("chosen", "rejected")
        }
        yield {"prompt": messages, **answers, **more}
    else:
        yield {"messages": messages, **more}


def _message(turn: Any) -> Row:
    if not isinstance(turn, dict):
        raise InputError(f"a message must be an object, not {shown(turn)}")
    who, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = SPEAKERS.get(who.strip().lower()) if isinstance(who, str) else None
    if role is None:
        raise InputError(f"nobody knows the speaker {shown(who)}; use one of {', '.join(SPEAKERS)}")
    return {"role": role, "content": text}


def _siblings(names: Iterable[str], one: str | None = None) -> list[str]:
    """The names that differ in their number alone: those of `one`, or the most there are. [] where that tells nothing.

    Exports hold other texts beside the answers (metadata, a source), and do not say which are which.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        if NUMBERED.search(name):
            kinds.setdefault(NUMBERED.sub("", name).lower(), []).append(name)
    found = [kind for kind in kinds.values() if len(kind) >= 2 and (one is None or one in kind)]
    found.sort(key=len, reverse=True)
    return [] if not found or (len(found) > 1 and len(found[0]) == len(found[1])) else found[0]


# ---------------------------------------------------------------- Argilla


def argilla_rows(record: Row) -> Iterator[Row]:
    """One row for each annotator who ranked or chose; without any, the completions as a task.

    Rankings and choices must name fields of the record ("response-1"); suggestions are a model's and are left out.
    """
    record = record if isinstance(record.get("fields"), dict) else _nested(record)
    fields = {name: value for name, value in record["fields"].items() if value not in (None, "", [])}
    if not fields:
        raise InputError("the record has no fields")
    asked = next((name for word in PROMPTS for name in fields if name.lower() == word), next(iter(fields)))
    prompt = fields.pop(asked)
    prompt = [_message(turn) for turn in prompt] if isinstance(prompt, list) else prompt
    more = {"id": str(record["id"])} if isinstance(record.get("id"), str | int) else {}
    found = False
    for annotator, answers in _by_annotator(record.get("responses")).items():
        comment = next(
            (a for q, a in answers.items() if re.search("comment|reason|expla", q) and isinstance(a, str)), ""
        )
        for answer in answers.values():
            ranks = _argilla_ranks(answer, list(fields))
            if ranks is not None:
                found = True
                row = {"prompt": prompt, "completions": [fields[name] for name in ranks], "ranks": list(ranks.values())}
                yield {**more, **row, "annotator": annotator, "comment": comment}
    if not found:
        names = _siblings(fields) or fields
        texts = [fields[name] for name in names if isinstance(fields[name], str)]
        yield {**more, "prompt": prompt} | ({"completions": texts} if len(texts) >= 2 else {})


def _nested(row: Row) -> Row:
    """A record as the `datasets` export flattens it: "ranking.responses", "ranking.responses.users".

    Fields, metadata and vectors are one there; `_siblings` finds the answers among them.
    """
    skipped = ("id", "status", "_server_id", "inserted_at", "updated_at", "score")
    plain = {key: value for key, value in row.items() if "." not in key and key not in skipped}
    responses: dict[str, list[Row]] = {}
    for key, values in row.items():
        if key.endswith(".responses") and isinstance(values, list):
            name = key.removesuffix(".responses")
            users = row.get(f"{key}.users") or [None] * len(values)
            states = row.get(f"{key}.status") or [None] * len(values)
            responses[name] = [
                {"value": value, "user_id": user, "status": state}
                for value, user, state in zip(values, users, states, strict=False)
            ]
            plain.pop(name, None)
        elif f"{key}-suggestion" in row or _answers(values):  # version 1
            responses[key] = _answers(values)
            for name in (key, f"{key}-suggestion", f"{key}-suggestion-metadata", "external_id", "metadata"):
                plain.pop(name, None)
    return {"id": row.get("id") or row.get("external_id"), "fields": plain, "responses": responses}


def _answers(column: Any) -> list[Row]:
    """A question's answers in a dataset of version 1, one object each or one object of lists; [] where it is none."""
    keys = {"user_id", "value", "status"}
    if isinstance(column, dict) and column.keys() == keys and all(isinstance(item, list) for item in column.values()):
        column = [dict(zip(column, items, strict=False)) for items in zip(*column.values(), strict=False)]
    if isinstance(column, list) and column and all(isinstance(item, dict) and keys <= item.keys() for item in column):
        return column
    return []


def _by_annotator(responses: Any) -> dict[str, dict[str, Any]]:
    """annotator -> question -> value, of what was submitted."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(responses, dict):  # version 2: by question
        for question, answers in responses.items():
            for answer in answers or []:
                if answer.get("status") in (None, "submitted"):
                    found.setdefault(str(answer.get("user_id") or "argilla"), {})[question] = answer.get("value")
    for answer in responses if isinstance(responses, list) else []:  # version 1: by annotator
        if answer.get("status") in (None, "submitted"):
            values = {q: v.get("value") if isinstance(v, dict) else v for q, v in (answer.get("values") or {}).items()}
            found.setdefault(str(answer.get("user_id") or "argilla"), {}).update(values)
    return found


def _argilla_ranks(value: Any, names: list[str]) -> dict[str, int] | None:
    """Field name -> rank; None where the answer is about something else."""
    keys = {_key(name): name for name in names}
    if isinstance(value, str):
        if _key(value) in keys:
            chosen = keys[_key(value)]
            return {name: 1 if name == chosen else 2 for name in _siblings(names, chosen) or names}
        return dict.fromkeys(_siblings(names) or names, 1) if value.strip().lower() in TIES else None
    if isinstance(value, dict) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        value = [{"rank": rank, "value": name} for rank, name in zip(value["rank"], value["value"], strict=False)]
    if not isinstance(value, list) or len(value) < 2:
        return None
    if all(isinstance(item, str) for item in value):
        pairs = [(item, place) for place, item in enumerate(value, 1)]
    elif all(isinstance(item, dict) and "rank" in item for item in value):
        pairs = [(str(item.get("value")), item["rank"]) for item in value]
    else:
        return None
    ranks = {keys[_key(name)]: rank for name, rank in pairs if _key(name) in keys}
    if not ranks:
        return None
    if len(ranks) < len(pairs):
        raise InputError(f"the ranking names {shown([name for name, _ in pairs])}, the fields are {shown(names)}")
    return {name: ranks[name] for name in names if name in ranks}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# ---------------------------------------------------------------- Label Studio


def label_studio_rows(task: Row) -> Iterator[Row]:
    """One row for each annotation with a Pairwise, Ranker or Choices result; without any, the answers as a task."""
    data: dict[str, Any] = task["data"]
    asked = next((key for word in PROMPTS for key in data if key.lower() == word), None)
    if asked is None:
        raise InputError(f"no prompt among {shown(list(data))}; name it prompt, question or instruction")
    items = next(
        (v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], dict) and "id" in v[0]), []
    )
    texts = {key: value for key, value in data.items() if key != asked and isinstance(value, str) and value.strip()}
    if items:
        texts = {str(item["id"]): _item_text(item) for item in items}
    prompt = data[asked]
    prompt = [_message(turn) for turn in prompt] if isinstance(prompt, list) else prompt
    found = False
    for annotation in task.get("annotations") or []:
        if annotation.get("was_cancelled"):
            continue
        results = [result for result in annotation.get("result") or [] if isinstance(result.get("value"), dict)]
        said = [text for result in results for text in _as_list(result["value"].get("text")) if isinstance(text, str)]
        for result in results:
            ranks = _studio_ranks(result, texts)
            if ranks is not None:
                found = True
                row = {"prompt": prompt, "completions": [texts[name] for name in ranks], "ranks": list(ranks.values())}
                yield {**row, "annotator": _who(annotation), "comment": "\n".join(said)}
    if not found:
        answers = [texts[name] for name in _siblings(texts) or texts]
        yield {"prompt": prompt} | ({"completions": answers} if 2 <= len(answers) <= 9 else {})


def _item_text(item: Row) -> str:
    return next((item[key] for key in ("body", "text", "html", "title") if isinstance(item.get(key), str)), "")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _who(annotation: Row) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    return f"label-studio-{who}" if isinstance(who, int) else str(who or "label-studio")


def _studio_ranks(result: Row, texts: dict[str, str]) -> dict[str, int | None] | None:
    """Name of the text -> rank; None where the result is about something else."""
    value = result["value"]
    ranker = value.get("ranker")
    if isinstance(ranker, list):  # before 1.8; later the list stands under the tag's name
        ranker = {"": ranker}
    if isinstance(ranker, dict):
        buckets = {name: ids for name, ids in ranker.items() if name != "_" and isinstance(ids, list)}
        if len(buckets) != 1:
            raise InputError(f"the ranker has the groups {shown(list(buckets))}; only one list in order is a ranking")
        order = [str(name) for name in next(iter(buckets.values()))]
        if not set(order) <= set(texts):
            raise InputError(f"the ranker names {shown(order)}, the items are {shown(list(texts))}")
        return {name: order.index(name) + 1 if name in order else None for name in texts}
    if "selected" not in value and not isinstance(value.get("choices"), list):
        return None
    named = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    pair = named if len(named) == 2 and set(named) <= set(texts) else _siblings(texts) or list(texts)
    word = value.get("selected") or "".join(map(str, value.get("choices") or []))
    if len(pair) != 2:
        if "selected" not in value:
            return None
        raise InputError(f"which two of {shown(list(texts))} were compared is not said; name the texts as in toName")
    try:
        first, second = ranks_of(word, pair, pair)
    except InputError:
        if "selected" in value:
            raise
        return None  # a choice about something else
    return {pair[0]: first, pair[1]: second}


CONVERTERS: dict[str, tuple[str, Callable[[Row], Iterator[Row]]]] = {
    "argilla": ("an Argilla export", argilla_rows),
    "label-studio": ("a Label Studio export", label_studio_rows),
    "chat": ("a chat log", chat_rows),
}
