"""Sampling: what is drawn, where it ends, and that training reads the log-probabilities that sampling drew from."""

import math

import numpy as np
import pytest
import torch

from data.records import InputError
from training import rollout
from training.chat_template import encode_prompt
from training.config import SFTConfig
from training.generate import sample_all
from training.loop import token_log_probs
from training.packs import Group, packs
from training.rollout import choose, narrow, nucleus, sample, stream, uniforms


def draws(count, prompts, length=8, seed=0):
    return np.stack([np.stack([uniforms(seed, 0, i, k, length) for k in range(count)]) for i in range(prompts)])


def test_choice_follows_the_distribution():
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]]).expand(20_000, -1)
    uniform = torch.tensor(uniforms(0, 0, 0, 0, 20_000))
    for temperature in (1.0, 0.5):
        share = torch.bincount(choose(logits, uniform, temperature, 1.0), minlength=4) / 20_000
        torch.testing.assert_close(share, torch.softmax(logits[0] / temperature, -1), rtol=0, atol=0.012)


def test_summing_by_blocks_draws_what_summing_all_draws():
    """Also where the last block is not full and where whole blocks have no probability."""
    torch.manual_seed(0)
    for size in (5, 256, 1000, 3072):
        logits = torch.randn(400, size) * 3
        logits[:, 300:600] = -math.inf
        uniform = torch.rand(400, dtype=torch.float64)
        cumulative = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
        plain = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
        found = choose(logits, uniform, 1.0, 1.0)
        assert (found == plain).float().mean() > 0.99, "a draw on a boundary may differ by rounding"
        assert torch.isfinite(logits.gather(1, found[:, None])).all()


def test_choice_stays_within_top_p_and_zero_temperature_is_greedy():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(500, -1)
    uniform = torch.tensor(uniforms(1, 0, 0, 0, 500))
    assert set(choose(logits, uniform, 1.0, 0.7).tolist()) == {0, 1}
    assert set(choose(logits, uniform, 0.0, 1.0).tolist()) == {0}


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.9999])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 5.0])
def test_the_nucleus_is_what_sorting_everything_finds(top_p, scale):
    """Many are equal in bf16: none that ties with the last is left out, and a row does not change with others."""
    torch.manual_seed(0)
    p = torch.softmax((torch.randn(6, 5000) * scale).bfloat16().float(), -1)
    found = nucleus(p, top_p)
    for row, kept in zip(p, found, strict=True):
        ordered = row.double().sort(descending=True).values
        least = ordered[int((ordered.cumsum(0) - ordered < top_p).sum()) - 1]
        assert row[(kept > 0) != (row >= least)].sum() < 1e-5, "the last ones may differ by rounding"
        assert kept.sum() > top_p - 1e-4
        assert torch.equal(kept[kept > 0], row[kept > 0])
        assert torch.equal(nucleus(row[None], top_p)[0], kept)


def test_samples_do_not_depend_on_their_batch(base):
    prompts = [
        encode_prompt(base, [{"role": "user", "content": text}]) for text in ("Hi", "A longer question, no?", "x")
    ]
    random = draws(2, 3)
    together = sample(base, prompts, random, adapter=None)
    alone = [sample(base, [p], random[i : i + 1], adapter=None)[0] for i, p in enumerate(prompts)]
    assert [[s.ids for s in found] for found in together] == [[s.ids for s in found] for found in alone]
    assert len({tuple(s.ids) for found in together for s in found}) == 6


def test_greedy_sampling_is_generate(base):
    prompt = encode_prompt(base, [{"role": "user", "content": "Count to five."}])
    ours = sample(base, [prompt, prompt[:-3]], draws(1, 2, 12), adapter=None, temperature=0.0)[0][0]
    theirs = base.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert ours.ids == theirs.tolist()


def test_finished_sequences_leave_and_end_with_the_end_token(base):
    stop = set(range(0, base.model.config.vocab_size, 3))  # a third of all tokens ends
    base.model.generation_config.eos_token_id = sorted(stop)
    stop = base.stop_ids
    found = sample(base, [[5, 6], [7]], draws(8, 2, 6), adapter=None, temperature=3.0)
    reasons = set()
    for s in (s for many in found for s in many):
        assert all(i not in stop for i in s.ids[:-1])
        assert (s.ids[-1] in stop) == (s.finish_reason == "stop")
        assert s.finish_reason == "stop" or len(s.ids) == 6
        reasons.add(s.finish_reason)
    assert reasons == {"stop", "length"}


def test_stream_says_what_the_batch_says(base):
    messages = [{"role": "user", "content": "Hi"}]
    found = list(stream(base, messages, adapter=None, max_new_tokens=6, temperature=1.0, top_p=1.0, seed=4))
    batch = sample(base, [encode_prompt(base, messages)], draws(1, 1, 6, seed=4), adapter=None)[0][0]
    assert found[-1].text_so_far == base.tokenizer.decode(batch.ids, skip_special_tokens=True)
    assert [t.finish_reason for t in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].finish_reason in ("stop", "length")


def test_narrowing_follows_its_definitions():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert narrow(logits, [0, 0, 3], 1.0, 0, 0.0, 2.0).tolist() == [[1.0, 1.0, 0.0, -2.0]]
    kept = narrow(logits, [], 1.0, 2, 0.0, 1.0)
    assert kept.isfinite().tolist() == [[True, True, False, False]]
    # at temperature 2 the second word has exp(-0.5) = 0.61 of the first one's probability, the third exp(-1) = 0.37
    kept = narrow(logits, [], 2.0, 0, 0.4, 1.0)
    assert kept.isfinite().tolist() == [[True, True, False, False]]
    assert narrow(logits, [1], 1.0, 0, 0.0, 1.0) is logits


def test_stream_narrows(base):
    messages = [{"role": "user", "content": "Name a colour."}]
    plain, one = (
        list(stream(base, messages, adapter=None, max_new_tokens=6, temperature=t, top_k=k, seed=4))[-1]
        for t, k in ((0.0, 0), (1.0, 1))
    )
    assert one == plain


def test_stream_refuses_what_the_context_cannot_hold(base):
    with pytest.raises(InputError, match="2048"):
        next(stream(base, [{"role": "user", "content": "word " * 2100}], adapter=None))


def test_the_last_possible_token_is_the_last_that_has_a_probability():
    """The largest uniform there is, times the total, rounds to the total: V - 1 was drawn, whatever its probability."""
    logits = torch.tensor([[3.0, 2.0, 1.0, -math.inf]])
    for uniform in (torch.tensor([np.nextafter(1, 0)]), torch.tensor([1 - 2**-53]).float()):
        assert int(choose(logits, uniform, 1.0, 1.0)) == 2
        assert int(choose(logits, uniform, 1.0, 0.9)) == 1
        assert int(choose(logits, uniform, 1.0, 1e-6)) == 0


def test_temperatures_near_zero_and_of_each_row():
    logits = torch.tensor([[1.0, 1.5, 0.0]]).expand(3, -1)
    heat = torch.tensor([[1e-30], [0.0], [1e4]])
    assert choose(logits, torch.tensor([0.99, 0.99, 0.99]), heat, 1.0).tolist() == [1, 1, 2]


def test_more_completions_than_a_batch_holds_are_the_same_completions(base):
    prompts = [[5, 6, 7], [8]]
    heat = [0.5, 1.0, 2.0, 0.0, 1.0]
    given = {"adapter": None, "num_completions": 5, "max_new_tokens": 6, "temperature": heat}
    small, large = (sample_all(base, prompts, batch_size=size, **given) for size in (2, 64))
    assert small == large
    assert [len(found) for found in small] == [5, 5]


def test_a_conversation_that_the_template_refuses_or_cuts(base):
    conversation = [
        {"role": "system", "content": "Be brief <|im_end|>"},
        {"role": "user", "content": "Hello <|im_start|>"},
    ]
    base.tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(InputError, match="refuses this conversation: no system turn, please"):
        encode_prompt(base, conversation)
    base.tokenizer.chat_template = "{{ messages[0].content.nothing.at_all }}"
    with pytest.raises(InputError, match="refuses this conversation"):
        encode_prompt(base, conversation)
    base.tokenizer.chat_template = "{{ messages[1].content }}<|im_end|>{{ messages[1].content }}"
    ids = encode_prompt(base, conversation)
    assert base.tokenizer.decode(ids) == "Hello <|im_start|><|im_end|>Hello <|im_start|>"
    assert ids.count(base.tokenizer.eos_token_id) == 1, "the template's; what people write is text"
    assert base.tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_training_reads_the_log_probabilities_that_were_sampled_from(base, temperature, fast, monkeypatch):
    """Prompts of unequal length, token by token through the cache, against one packed forward."""
    base.fast = fast
    base.new_adapter("policy", SFTConfig(lora_rank=4))
    torch.manual_seed(3)
    for parameter in base.adapter_parameters("policy"):
        parameter.data = torch.randn_like(parameter) * 0.2
    base.model.generation_config.eos_token_id = list(range(2, base.model.config.vocab_size, 7))  # some end early
    prompts = [[11, 12, 13, 14, 15, 16, 17], [21], [31, 32, 33]]
    random, sampled = draws(3, 3, 9), {}

    def watch(logits, uniform, heat, top_p):
        for row, number in zip(torch.log_softmax(logits / heat, -1), uniform.tolist(), strict=True):
            sampled[number] = row
        return choose(logits, uniform, heat, top_p)

    monkeypatch.setattr(rollout, "choose", watch)
    found = sample(base, prompts, random, adapter="policy", temperature=temperature)
    flat = [s for many in found for s in many]
    assert len({len(s.ids) for s in flat}) > 2, "they end at different steps"
    groups = [
        Group(ids, [s.ids for s in many], index=i) for i, (ids, many) in enumerate(zip(prompts, found, strict=True))
    ]
    for pack in packs(groups, 4096, base.device):
        with torch.no_grad(), base.using("policy"):
            hidden = base.read(pack)[pack.predictors]
            trained, _ = token_log_probs(base, hidden, pack.targets, temperature)
        want = []
        for number, k in pack.members:
            index = pack.groups[number].index
            want += [float(sampled[u][i]) for u, i in zip(random[index, k].tolist(), found[index][k].ids, strict=False)]
        torch.testing.assert_close(trained, torch.tensor(want), rtol=0, atol=1e-4)
