"""Conversations to token ids by the model's own chat template, the same way wherever a model reads one.

The template alone decides what stands around the words: it writes the beginning-of-sequence token where it wants one,
and the token after an assistant's words is the one that ends an answer (Gemma's <end_of_turn>, Llama's <|eot_id|>),
which need not be the tokenizer's end-of-sequence token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from data.records import InputError, Message

if TYPE_CHECKING:
    from training.base import Base

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""A line's end before the answer, never a blank: most tokenizers join a blank to the word that follows."""


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A template for a model that has none; begins as the model's texts do."""
    begins = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE


class AnswerForm(NamedTuple):
    """How a template writes an assistant's answer: the token that ends it, and whether its outer blanks are cut."""

    end_id: int
    stripped: bool


def answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    """Read off an answer that the template renders; the tokenizer's end token where it ends answers with none.

    Raises InputError where there is no end token at all.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "\t\ue000\t"}]
    try:
        after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("\ue000")[2]
    except (TemplateError, TypeError, ValueError):
        after = "\t"
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    ids = _ids(tokenizer, after)
    end = next((i for i in ids if i in special), tokenizer.eos_token_id)
    if end is None:
        raise InputError("the tokenizer has no end token, so no answer could ever end; set its eos_token")
    return AnswerForm(int(end), not after.startswith("\t"))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The spellings of all tokens that steer the model, the unnamed ones of its vocabulary included."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return frozenset([*added, *tokenizer.all_special_tokens])


class Text(NamedTuple):
    """Something to tokenise. In what people wrote, a control token that is spelled out is text."""

    text: str
    written: bool


def prompt_texts(base: Base, messages: Sequence[Message]) -> list[Text]:
    """A conversation up to where the assistant's answer begins, as texts that are tokenised one by one.

    Raises InputError where the template refuses.
    """
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    hostile = any(token in turn["content"] for turn in turns for token in base.control_tokens)
    # the words give way to a mark, and their outer blanks stay, so that the template may cut them
    words = [turn["content"].strip() for turn in turns]
    if hostile:
        shown = [
            turn | {"content": turn["content"].replace(word, mark, 1) if word else mark}
            for turn, word, mark in zip(turns, words, (f"\ue000{n}\ue001" for n in range(len(turns))), strict=True)
        ]
    try:
        text = str(
            base.tokenizer.apply_chat_template(shown if hostile else turns, add_generation_prompt=True, tokenize=False)
        )
    except (TemplateError, TypeError, ValueError) as error:  # the template's own complaint, or what it stumbles over
        raise InputError(f"the model's chat template refuses this conversation: {error}") from None
    if not hostile:
        return [Text(text, written=False)]
    parts = re.split("\ue000(\\d+)\ue001", text)  # in the template's order, which may drop turns
    return [
        Text(words[int(part)], written=True) if place % 2 else Text(part, written=False)
        for place, part in enumerate(parts)
    ]


def response_text(base: Base, text: str) -> Text:
    """An assistant's answer as it is tokenised, without the token that ends it."""
    return Text(text.strip() if base.answer_form.stripped else text, written=True)


def encode_prompt(base: Base, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    What people wrote is text even where it spells a control token. Raises InputError where the template refuses.
    """
    return [token for text in prompt_texts(base, messages) for token in _encode(base, text)]


def encode_response(base: Base, text: str, ended: bool = True) -> list[int]:
    """Token ids of an assistant's answer, with the token that ends it where the answer had come to its end."""
    ids = _encode(base, response_text(base, text))
    return [*ids, base.answer_form.end_id] if ended else ids


def encode_texts(base: Base, texts: Sequence[Text]) -> list[list[int]]:
    """Token ids of each text: all at once, for which a fast tokenizer uses every core."""
    ids = {
        written: iter(_ids(base.tokenizer, [text.text for text in texts if text.written == written], written))
        for written in {text.written for text in texts}
    }
    return [next(ids[text.written]) for text in texts]


def decode(base: Base, ids: Sequence[int]) -> str:
    """The text of a response, without its end token."""
    return base.tokenizer.decode(list(ids), skip_special_tokens=True)  # type: ignore[return-value]


def _encode(base: Base, text: Text) -> list[int]:
    return list(_ids(base.tokenizer, text.text, text.written))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str | list[str], written: bool = False) -> Any:
    """Token ids of a text, or a list of them for each of several."""
    how = {"split_special_tokens": True} if written else {}
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, **how)["input_ids"]
