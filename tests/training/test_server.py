"""Sampling through a real HTTP server that speaks vLLM's protocol: what comes back, and what can go wrong."""

import json
import math
import socket

import numpy as np
import pytest
import torch

from data.records import InputError
from tests.tiny import make_tiny_model, make_toy_model
from tests.training.fake_vllm import FakeVLLM
from training import server as module
from training.__main__ import main
from training.chat_template import decode, encode_prompt
from training.config import PPOConfig, SFTConfig, server_address
from training.rollout import sample, uniforms
from training.run_folder import checkpoints, read_metrics
from training.server import Server, request_seed, sample_policy


@pytest.fixture
def fake(tiny_model):
    with FakeVLLM(tiny_model) as running:
        yield running


@pytest.fixture
def policy(base):
    """The base with an adapter that says other things than it does."""
    base.new_adapter("policy", SFTConfig(lora_rank=4))
    torch.manual_seed(1)
    for parameter in base.adapter_parameters("policy"):
        parameter.data = torch.randn_like(parameter) * 0.3
    return base


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which are not waited for."""
    found = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def ask(server, base, model="base", temperature=(0.0,), length=12, prompts=3):
    ids = [encode_prompt(base, [{"role": "user", "content": f"Count {'up ' * i}to {i}."}]) for i in range(prompts)]
    keys = [(5, 1, i) for i in range(prompts)]
    found = server.complete(model, ids, keys, max_new_tokens=length, temperature=temperature, top_p=1.0,
                            stop_ids=base.stop_ids)  # fmt: skip
    return ids, found


def test_greedy_is_what_the_model_here_says(fake, policy, tmp_path):
    policy.save_adapter("policy", tmp_path)
    with Server(fake.url) as server:
        for adapter, context in ((None, None), ("policy", server.adapter(tmp_path))):
            if context:
                with context as name:
                    ids, found = ask(server, policy, name)
            else:
                ids, plain = ask(server, policy)
                found = plain
            here = sample(policy, ids, np.zeros((3, 1, 12)), adapter=adapter, temperature=0)
            assert [[c.ids for c in row] for row in found] == [[s.ids for s in row] for row in here]
            assert [[c.text for c in row] for row in found] == [[decode(policy, s.ids) for s in row] for row in here]
        assert [row[0].ids for row in plain] != [row[0].ids for row in found], "the adapter was applied"
    assert not fake.adapters, "nothing is left on the server"


def test_each_sample_has_its_own_seed_and_is_what_the_model_here_samples(fake, base):
    with Server(fake.url) as server:
        ids, found = ask(server, base, temperature=(1.0, 1.0))
        again = ask(server, base, temperature=(1.0, 1.0))[1]
    assert found == again
    random = [[uniforms(request_seed(5, 1, p, k), 0, 0, 0, 12) for k in range(2)] for p in range(3)]
    here = sample(base, ids, np.array(random), adapter=None, temperature=1.0)
    assert [[c.ids for c in row] for row in found] == [[s.ids for s in row] for row in here]
    assert len({tuple(c.ids) for row in found for c in row}) == 6


def test_an_answer_ends_at_the_end_token_and_says_so(tmp_path):
    with FakeVLLM(make_toy_model(tmp_path / "toy")) as fake, Server(fake.url) as server:
        found = [c for row in ask(server, fake.base, temperature=(1.0,) * 8)[1] for c in row]
    stopped = [c for c in found if c.finish_reason == "stop"]
    assert 0 < len(stopped) < len(found), "one token in eleven is the end"
    assert all(c.ids[-1] == 1 and 1 not in c.ids[:-1] for c in stopped)
    assert all(len(c.ids) == 12 for c in found if c.finish_reason == "length")


def test_busy_and_broken_servers_are_asked_again(fake, base, pauses):
    fake.failures.extend([429, 503])
    with Server(fake.url) as server:
        _, found = ask(server, base, prompts=1)
    assert found[0][0].ids
    assert pauses == [3.0, 1.0], "as long as the server asks for, else 0.5 seconds doubled"


def test_a_server_that_stays_broken_is_named(fake, base, pauses):
    fake.failures.extend([500] * module.TRIES)
    with Server(fake.url) as server, pytest.raises(InputError, match="status 500: try again later"):
        ask(server, base, prompts=1)
    assert len(pauses) == module.TRIES - 1


def test_no_server(base, pauses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Server(url) as server, pytest.raises(InputError, match=f"{url}: cannot be reached .*start the server"):
            ask(server, base, prompts=1)
    assert len(pauses) == module.TRIES - 1


def test_a_model_that_is_not_there(fake, base):
    with Server(fake.url) as server, pytest.raises(InputError, match=r"no model 'other'.*it serves base"):
        ask(server, base, "other", prompts=1)


def test_the_key_comes_from_the_environment(tiny_model, base, monkeypatch):
    with FakeVLLM(tiny_model, key="open sesame") as fake:
        with Server(fake.url) as server, pytest.raises(InputError, match=r"Unauthorized.*SERVER_API_KEY"):
            server.models()
        monkeypatch.setenv("SERVER_API_KEY", "open sesame")
        with Server(fake.url) as server:
            assert server.only_model() == "base"


def test_adapters_that_are_not_loaded(tiny_model, policy, tmp_path):
    policy.save_adapter("policy", tmp_path)
    with FakeVLLM(tiny_model, lora=False) as fake, Server(fake.url) as server:
        with pytest.raises(InputError, match=r"did not load .*Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            server.adapter(tmp_path).__enter__()
        with pytest.raises(InputError, match="is no adapter"):
            server.adapter(tmp_path / "nothing").__enter__()


def roll(server, base, folder):
    prompt = encode_prompt(base, [{"role": "user", "content": "Hello"}])
    return sample_policy(server, base, "policy", folder, [prompt], [(0, 1, 0)], samples_per_prompt=2,
                         max_new_tokens=12, temperature=1.0)  # fmt: skip


def test_a_rollout_needs_token_ids_of_this_very_policy(tiny_model, policy, tmp_path):
    other = make_tiny_model(tmp_path / "other", seed=1)
    for fake, folder, words in [
        (FakeVLLM(tiny_model, token_ids=False), "a", r"token ids.*vLLM 0\.10\.2"),
        (FakeVLLM(other), "b", "nats a token: it serves another model"),
    ]:
        with fake, Server(fake.url) as server, pytest.raises(InputError, match=words):
            roll(server, policy, tmp_path / folder)
    with FakeVLLM(tiny_model) as fake, Server(fake.url) as server:
        ((first, second),) = roll(server, policy, tmp_path / "c")
    assert first.ids != second.ids
    assert not fake.adapters
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://gpu:8000", "http://gpu:8000"),
        (" https://gpu:8000/v1/ ", "https://gpu:8000"),
        ("https://host/behind/v1", "https://host/behind"),
        ("gpu:8000", None),
        ("http://", None),
        ("http://gpu:port", None),
        ("http://me:secret@gpu:8000", None),
        ("http://gpu:8000?model=x", None),
    ],
)
def test_addresses(given, address):
    if address:
        assert PPOConfig(sampler_url=given).sampler_url == server_address(given) == address
    else:
        with pytest.raises(InputError) as refused:
            PPOConfig(sampler_url=given)
        assert "secret" not in str(refused.value)


def test_ppo_samples_from_the_server(fake, command, tiny_model, rankings_file, tmp_path):
    (tmp_path / "my_reward.py").write_text("def letters(p, c):\n    return [t.count('e') / (len(t) + 1) for t in c]\n")
    greedy = []
    load = fake._load

    def watch(name, path):
        answer = load(name, path)
        adapters = [None, fake.adapters[name]]
        greedy.append(
            [sample(fake.base, [[1, 5, 9]], np.zeros((1, 1, 16)), adapter=a, temperature=0) for a in adapters]
        )
        return answer

    fake._load = watch
    command("ppo", "--base-model", tiny_model, "--dtype", "fp32", "--data", rankings_file, "--output", "run",
            "--reward-function", "my_reward:letters", "--max-new-tokens", 8, "--batch-size", 4, "--max-steps", 2,
            "--samples-per-prompt", 2, "--learning-rate", 0.1, "--lora-rank", 4, "--sampler-url", fake.url)  # fmt: skip
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 2
    assert all(math.isfinite(v) for row in rows for v in row.values())
    assert rows[0]["objective/kl"] == 0
    loaded = [body["lora_name"] for path, body in fake.requests if path == "/v1/load_lora_adapter"]
    asked = [body["model"] for path, body in fake.requests if path == "/v1/completions"]
    assert [name.rpartition("-")[0] for name in loaded] == ["policy-1", "policy-2"]
    assert asked == [loaded[0]] * 4 + [loaded[1]] * 4
    assert len({body["seed"] for path, body in fake.requests if path == "/v1/completions"}) == 8
    (base_1, policy_1), (base_2, policy_2) = greedy
    assert base_1 == policy_1, "an adapter starts as no change"
    assert base_2 != policy_2, "and the server sampled from what it had become"
    assert not list((tmp_path / "run" / "sampler").iterdir())
    assert checkpoints(tmp_path / "run")


def generate(output, *arguments):
    """Run the command here; returns the rows that it writes."""
    common = ("--num-completions", 2, "--max-new-tokens", 6, "--temperature", 0, "--dtype", "fp32", "--output", output)
    assert main(["generate", *map(str, [*arguments, *common])]) == 0
    return [json.loads(line) for line in output.open()]


def test_bulk_generation_from_a_server(fake, tiny_model, tmp_path, rankings_file):
    given = ("--base-model", tiny_model, "--prompts", rankings_file)
    here = generate(tmp_path / "here.jsonl", *given)
    assert {row.pop("model") for row in here} == {str(tiny_model)}
    for fake.token_ids in (True, False):
        there = generate(tmp_path / "there.jsonl", *given, "--server-url", f"{fake.url}/v1")
        assert {row.pop("model") for row in there} == {"base"}
        assert there == here, "texts, numbers of tokens, finish reasons"


def test_generating_from_a_checkpoint_on_the_server(fake, policy, tiny_model, tmp_path, rankings_file, capsys):
    policy.save_adapter("policy", tmp_path)
    manifest = {"kind": "policy", "base_model": {"name": str(tiny_model)}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    given = ("--checkpoint", tmp_path, "--prompts", rankings_file)
    here = generate(tmp_path / "here.jsonl", *given)
    there = generate(tmp_path / "there.jsonl", *given, "--server-url", fake.url)
    assert [row["completions"] for row in there] == [row["completions"] for row in here]
    asked = {body["model"] for path, body in fake.requests if path == "/v1/completions"}
    assert len(asked) == 1
    assert "base" not in asked
    capsys.readouterr()
    assert main(["generate", *map(str, given), "--output", "o", "--server-url", fake.url, "--server-model", "x"]) == 2
    assert capsys.readouterr().err == "error: --server-model goes with --server-url, and without --checkpoint\n"
