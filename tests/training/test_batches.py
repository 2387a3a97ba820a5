"""The packed layout computes what separate sequences compute; nothing is masked, cut or trained by accident."""

import pytest
import torch

from data.formats import parse_demonstration, parse_prompt, parse_ranking
from training.batches import (
    Group,
    batch_of_step,
    encode_demonstrations,
    encode_prompts,
    encode_rankings,
    encode_response,
    pack,
    packs,
)
from training.loop import token_log_probs
from training.rollout import encode_prompt

GROUPS = [
    Group([5, 6, 7, 8], [[20, 21, 22], [30], [40, 41, 42, 43, 2]]),
    Group([9, 10], [[50, 51]]),
    Group([11, 12, 13], [[60, 61, 2], [62, 2]]),
]


def test_layout_of_a_known_pack():
    found = pack(GROUPS[:2], torch.device("cpu"))
    assert found.input_ids.tolist() == [[5, 6, 7, 8, 20, 21, 22, 30, 40, 41, 42, 43, 2, 9, 10, 50, 51]]
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 4, 5, 6, 7, 8, 0, 1, 2, 3]]
    assert found.predictors.tolist() == [3, 4, 5, 3, 3, 8, 9, 10, 11, 14, 15]
    assert found.targets.tolist() == [20, 21, 22, 30, 40, 41, 42, 43, 2, 50, 51]
    assert found.last.tolist() == [6, 7, 12, 16]
    assert found.members == [(0, 0), (0, 1), (0, 2), (1, 0)]
    looks = found.attention_mask[0, 0]
    assert looks[7].nonzero().flatten().tolist() == [0, 1, 2, 3, 7]  # a response sees its prompt and itself
    assert looks[16].nonzero().flatten().tolist() == [13, 14, 15, 16]


def separate(base, group, k):
    """Log-probabilities and last hidden state of one response on its own, unpadded."""
    ids = torch.tensor([group.prompt + group.responses[k]])
    out = base.model(ids, output_hidden_states=True)
    log_probs = torch.log_softmax(out.logits[0, :-1].float(), -1).gather(1, ids[0, 1:, None]).squeeze(1)
    return log_probs[len(group.prompt) - 1 :].sum(), out.hidden_states[-1][0, -1]


@pytest.mark.parametrize("adapter", [None, "policy"])
def test_packed_equals_separate(base, adapter):
    from training.config import SFTConfig

    base.new_adapter("policy", SFTConfig(lora_rank=4))
    torch.manual_seed(0)
    for parameter in base.adapter_parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad(), base.using(adapter):
        for tokens in (12, 1000):
            for forward in packs(GROUPS, tokens, base.device):
                hidden = base.hidden(**forward.inputs())[0]
                sums = forward.sum_per_response(token_log_probs(base, hidden[forward.predictors], forward.targets)[0])
                for row, (number, k) in enumerate(forward.members):
                    log_prob, last = separate(base, forward.groups[number], k)
                    torch.testing.assert_close(sums[row], log_prob, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(hidden[forward.last[row]], last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 9, 20, 10_000])
def test_every_group_is_packed_once(tokens):
    found = list(packs(GROUPS, tokens, torch.device("cpu")))
    assert sorted(id(g) for p in found for g in p.groups) == sorted(map(id, GROUPS))
    assert all(p.input_ids.shape[1] <= tokens or len(p.groups) == 1 for p in found)


def test_response_ends_at_the_end_token_unless_it_was_cut(base):
    end = base.tokenizer.eos_token_id
    row = {"prompt": "Hi", "completions": ["Hello.", "Hel"], "ranks": [1, 2], "finish_reasons": ["stop", "length"]}
    groups, _ = encode_rankings(base, [parse_ranking(row)], 200)
    whole, cut = groups[0].responses
    assert whole == [*base.tokenizer("Hello.")["input_ids"], end]
    assert cut == base.tokenizer("Hel")["input_ids"]
    assert whole.count(end) == 1
    assert base.tokenizer.pad_token_id != end


def test_prompt_and_response_meet_where_the_template_puts_them(base):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
    ids = encode_prompt(base, messages[:1]) + encode_response(base, "Hello there.")
    text = base.tokenizer.apply_chat_template(messages, tokenize=False)
    assert base.tokenizer.decode(ids) == text.rstrip("\n")
    assert ids == base.tokenizer(text, add_special_tokens=False)["input_ids"][: len(ids)]


def test_only_the_assistants_words_are_learned(base):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First answer."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second answer."},
    ]
    groups, _ = encode_demonstrations(base, [parse_demonstration({"messages": conversation})], 500)
    found = pack(groups, base.device)
    assert base.tokenizer.decode(found.targets.tolist()) == "First answer.<|im_end|>Second answer.<|im_end|>"
    text = base.tokenizer.apply_chat_template(conversation, tokenize=False).rstrip("\n")
    assert found.input_ids[0].tolist() == base.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_prompts_lose_their_oldest_turns_and_that_is_counted(base):
    turns = [{"role": "system", "content": "Be brief."}]
    for i in range(6):
        turns += [{"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": "word " * 30}]
    turns.append({"role": "user", "content": "And the last?"})
    prompts = [parse_prompt(turns), parse_prompt("short"), parse_prompt("long " * 300)]
    groups, fit = encode_prompts(base, prompts, 120)
    assert [len(g.prompt) <= 120 for g in groups] == [True, True]
    text = base.tokenizer.decode(groups[0].prompt)
    assert "Be brief." in text
    assert "And the last?" in text
    assert "Question 0" not in text
    assert (fit.kept, fit.shortened, fit.left_out) == (2, 1, 1)
    assert "1 left out" in fit.describe("prompts", 120)


def test_epochs_visit_everything_once_and_repeat_with_the_seed():
    seen = [i for step in range(1, 6) for i in batch_of_step(10, 4, step, seed=3)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen == [i for step in range(1, 6) for i in batch_of_step(10, 4, step, seed=3)]
    assert seen != [i for step in range(1, 6) for i in batch_of_step(10, 4, step, seed=4)]
