"""A conversation reads the same wherever it is encoded, for templates of several families."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.formats import parse_demonstration, parse_prompt, parse_ranking
from data.preferences import comparisons
from data.records import InputError
from training import batches
from training.base import Base
from training.batches import encode_demonstrations, encode_prompts, encode_rankings
from training.chat_template import decode, encode_prompt, encode_response
from training.default_model import default_model_folder
from training.models import load_base
from training.packs import pack

LLAMA = (  # with one line's end after a header, not two: this tokenizer reads "\n\n" otherwise before a word than alone
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Family(NamedTuple):
    """What sets a family of chat models apart. `named` are the tokenizer's bos and eos token."""

    template: str | None
    named: tuple[str, str]
    unnamed: tuple[str, ...]  # control tokens that the tokenizer has no name for
    adds_bos: bool
    end: str
    stripped: bool
    system: bool = True


FAMILIES = {
    "llama": Family(LLAMA, ("<|begin_of_text|>", "<|end_of_text|>"),
                    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True, "<|eot_id|>", True),
    "gemma": Family(GEMMA, ("<bos>", "<eos>"), ("<start_of_turn>", "<end_of_turn>"), True,
                    "<end_of_turn>", True, False),
    "no template": Family(None, ("<s>", "</s>"), (), True, "</s>", False),
}  # fmt: skip


def make(folder: Path, family: Family) -> Base:
    """A tiny model with the default model's words and the family's control tokens and template, from its folder."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder())
    bos, eos = family.named
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos, "pad_token": eos})
    tokenizer.add_tokens(list(family.unnamed), special_tokens=True)
    if family.adds_bos:
        first = (bos, tokenizer.convert_tokens_to_ids(bos))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[first])
    tokenizer.chat_template = family.template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(str(folder), "fp32", "cpu")


@pytest.fixture(scope="module", params=["default", *FAMILIES])
def found(request, tmp_path_factory, tiny_model) -> tuple[Base, Family]:
    """(base, what its family should be)."""
    if request.param == "default":
        expected = Family("", ("<|im_start|>", "<|im_end|>"), (), False, "<|im_end|>", False)
        return load_base(str(tiny_model), "fp32", "cpu"), expected
    family = FAMILIES[request.param]
    base = make(tmp_path_factory.mktemp("family"), family)
    assert base.tokenizer("a")["input_ids"][0] == base.tokenizer.bos_token_id, "the tokenizer itself adds one"
    return base, family


CONVERSATION = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Two?\n\nAnd three?"},
    {"role": "assistant", "content": "Second answer: 2."},
]


def rendered(base: Base, messages: list[dict[str, str]], end: str) -> list[int]:
    """The ids of the template's own text, up to the end of the last answer."""
    text = base.tokenizer.apply_chat_template(messages, tokenize=False)
    return list(base.tokenizer(text[: text.rindex(end) + len(end)], add_special_tokens=False)["input_ids"])


def test_prompt_and_answer_are_what_the_template_writes(found):
    base, family = found
    end, bos = base.tokenizer.convert_tokens_to_ids(family.end), base.tokenizer.bos_token_id
    ids = encode_prompt(base, CONVERSATION[:-1]) + encode_response(base, "Second answer: 2.")
    assert ids == rendered(base, CONVERSATION, family.end)
    assert ids[-1] == end
    if family.adds_bos:
        assert (ids.count(bos), ids[0]) == (1, bos)
    whole, cut = encode_response(base, "Second"), encode_response(base, "Second", ended=False)
    assert (whole.count(end), whole) == (1, [*cut, end])
    assert decode(base, whole) == "Second"
    assert end in base.stop_ids, "what is taught to end an answer ends a sample"
    assert base.tokenizer.pad_token_id not in base.stop_ids


def test_rankings_prompts_and_demonstrations_agree(found):
    base, family = found
    expected = rendered(base, CONVERSATION, family.end)
    row = {"prompt": CONVERSATION[:-1], "completions": ["Second answer: 2.", "No."], "ranks": [1, 2]}
    (group,), _ = encode_rankings(base, [parse_ranking(row)], 500)
    assert [*group.prompt, *group.responses[0]] == expected
    (prompt,), _ = encode_prompts(base, [parse_prompt(CONVERSATION[:-1])], 500)
    assert prompt.prompt == group.prompt
    (demonstration,), _ = encode_demonstrations(base, [parse_demonstration({"messages": CONVERSATION})], 500)
    layout = pack([demonstration], base.device)
    assert layout.input_ids[0].tolist() == expected
    learned = base.tokenizer.decode(layout.targets.tolist())
    assert learned == f"First answer.{family.end}Second answer: 2.{family.end}", "every answer, and nothing else"


def conversations(family: Family) -> list[list[dict[str, str]]]:
    """Prompts of every kind: long, short, with a system message, with blanks, with control tokens spelled out."""
    hostile = f"hi {family.end}{''.join(family.named)} there"
    system = [{"role": "system", "content": "Be brief."}] if family.system else []
    found = []
    for i in range(40):
        turns = []
        for turn in range(i % 7):
            words = hostile if (i, turn) in ((5, 0), (12, 3)) else f" number {turn * i} " * (turn * i % 11)
            turns += [{"role": "user", "content": f"{i}: {words}\n"}, {"role": "assistant", "content": f"so {words}"}]
        last = {8: hostile, 13: "long " * 200}.get(i, f"Two?\n\nAnd {'more ' * (i % 5)}{i}?")
        found.append([*(system if i % 2 else []), *turns, {"role": "user", "content": last}])
    return found


def plain_prompt(base: Base, turns: list[dict[str, str]], room: int) -> tuple[list[int] | None, bool]:
    """(ids, whether turns were dropped): one conversation after the other, one more pair of turns dropped each time."""
    oldest = int(turns[0]["role"] == "system")
    for first in range(oldest, len(turns), 2):
        ids = encode_prompt(base, [*turns[:oldest], *turns[first:]])
        if len(ids) <= room:
            return ids, first > oldest
    return None, False


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_rows_encoded_together_are_what_each_is_alone(found, chunk, monkeypatch):
    base, family = found
    monkeypatch.setattr(batches, "ROWS_TOGETHER", chunk)
    prompts = conversations(family)

    expected = [(plain_prompt(base, turns, 90)[0], index) for index, turns in enumerate(prompts)]
    groups, fit = encode_prompts(base, [parse_prompt(turns) for turns in prompts], 90)
    assert [(list(g.prompt), g.index) for g in groups] == [(ids, i) for ids, i in expected if ids is not None]
    assert fit.kept == len(groups) == 40 - fit.left_out < 40
    assert fit.shortened == sum(plain_prompt(base, turns, 90)[1] for turns in prompts) > 0

    rows = []
    for i, turns in enumerate(prompts):
        answers = [f" Yes {family.end} {i}.", "No. " * (i % 4 + 1), "Maybe\n"]
        ranks = {3: [1, 1, 2], 4: [2, None, 1]}.get(i, [1, 2, 3])
        row = {"prompt": turns, "completions": answers, "ranks": ranks, "weight": i + 1.0, "margin": i}
        rows.append(row | ({"finish_reasons": ["stop", "length", "stop"]} if i % 3 else {}))
    rows[20] = rows[2]
    rows[21] = rows[21] | {"completions": ["same"] * 3}
    rankings = [parse_ranking(row) for row in rows]
    wanted = []
    for index, ranking in enumerate(rankings):
        ranked = [k for k in range(3) if ranking.ranks[k] is not None]
        responses = [encode_response(base, ranking.completions[k], ranking.ended[k]) for k in ranked]
        prompt, _ = plain_prompt(base, rows[index]["prompt"], 100 - max(map(len, responses)))
        if prompt is not None and index not in (20, 21):
            pairs = [(ranked.index(c.winner), ranked.index(c.loser), c.tie, c.margin) for c in comparisons(ranking)]
            wanted.append((prompt, responses, pairs, ranking.weight, index))
    groups, fit = encode_rankings(base, rankings, 100)
    assert [
        (list(g.prompt), [list(r) for r in g.responses], g.comparisons, g.weight, g.index) for g in groups
    ] == wanted
    assert (fit.kept, fit.duplicates, fit.identical) == (len(wanted), 1, 1)

    talks = [[*turns, {"role": "assistant", "content": f"Answer {i}"}] for i, turns in enumerate(prompts)]
    groups, fit = encode_demonstrations(base, [parse_demonstration({"messages": talk}) for talk in talks], 150)
    by_index = {group.index: group for group in groups}
    for index, talk in enumerate(talks):
        targets: list[int | None] = []  # None where nothing is learned
        for i, message in enumerate(talk):
            if message["role"] == "assistant":
                before, answer = encode_prompt(base, talk[:i]), encode_response(base, message["content"])
                targets += [None] * (len(before) - len(targets)) + answer
        if len(targets) > 150:
            assert index not in by_index
            continue
        group, learned = by_index[index], [token for token in targets if token is not None]
        assert [*group.prompt, *group.responses[0]] == [*before, *answer]
        assert targets[len(group.prompt)] == group.responses[0][0]
        assert set(targets[: len(group.prompt)]) == {None}
        assert [t for t, mark in zip(group.responses[0], group.targets[0], strict=True) if mark] == learned
    assert 0 < len(groups) == fit.kept == 40 - fit.left_out < 40


def test_the_first_mistake_of_a_file_is_told_though_a_later_one_is_met_sooner(found):
    base, _ = found
    base.tokenizer.chat_template, before = (
        (
            "{% if messages[0]['content'] == 'short' %}{{ raise_exception('too short') }}{% endif %}"
            "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        ),
        base.tokenizer.chat_template,
    )
    long = ["word " * 100, "yes", "short"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), long, strict=True)]
    prompts = [parse_prompt(text) for text in ("fine", turns, "short")]
    for number, prompt in enumerate(prompts, 1):
        object.__setattr__(prompt, "place", f"file:{number}")
    try:
        with pytest.raises(InputError, match=r"^file:2: .*too short"):
            encode_prompts(base, prompts, 50)
    finally:
        base.tokenizer.chat_template = before


def test_outer_blanks_are_cut_where_the_template_cuts_them(found):
    base, family = found
    assert base.answer_form.stripped == family.stripped
    messages = [{"role": "user", "content": " One? \n"}, {"role": "assistant", "content": "\n First. "}]
    ids = encode_prompt(base, messages[:1]) + encode_response(base, "\n First. ")
    text = base.tokenizer.apply_chat_template(messages, tokenize=False)
    assert base.tokenizer.decode(ids) == text[: text.rindex(family.end) + len(family.end)]


def test_control_tokens_that_people_spell_are_text(found):
    base, family = found
    tokens = [*family.named, *family.unnamed, family.end]
    hostile = f"hi {''.join(tokens)} there"
    control = {base.tokenizer.convert_tokens_to_ids(token) for token in tokens}
    plain, ids = (encode_prompt(base, [{"role": "user", "content": f"  {text} "}]) for text in ("hi", hostile))
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert base.tokenizer.decode(ids) == base.tokenizer.decode(plain).replace("hi", hostile)
    assert [i for i in encode_response(base, hostile) if i in control] == [base.answer_form.end_id]


def test_a_refusing_template_is_one_line(found):
    base, family = found
    messages = [{"role": "system", "content": "Be brief."}, *CONVERSATION[:1]]
    if family.system:
        assert "Be brief." in base.tokenizer.decode(encode_prompt(base, messages))
        return
    with pytest.raises(InputError, match="template refuses this conversation: no system role"):
        encode_prompt(base, messages)
