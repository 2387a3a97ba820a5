"""Adapters on one base, sampling, and checkpoints that plain libraries load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.records import InputError
from training.config import DPOConfig
from training.models import chat_dtype, load_base

IDS = torch.tensor([[5, 900, 77, 12, 4]])


def add(base, name, seed=0, **knobs):
    base.new_adapter(name, DPOConfig(lora_rank=4, **knobs))
    torch.manual_seed(seed)
    for parameter in base.adapter_parameters(name):
        torch.nn.init.normal_(parameter, std=0.1)


def test_our_lora_forward_is_pefts(base):
    add(base, "policy")
    with torch.no_grad(), base.using("policy"):
        ours = base.hidden(IDS)
    for module in base.model.modules():
        module.__dict__.pop("forward", None)  # PEFT's own again
    base.peft.set_adapter("policy")
    with torch.no_grad():
        theirs = base.hidden(IDS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_adapters_do_not_touch_each_other_or_the_base(base):
    with torch.no_grad():
        plain = base.hidden(IDS)
        add(base, "one", 1)
        add(base, "two", 2, lora_targets="q_proj")
        found = {}
        for name in ("one", "two", None):
            with base.using(name):
                found[name] = base.hidden(IDS)
    torch.testing.assert_close(found[None], plain, rtol=0, atol=0)
    assert not torch.allclose(found["one"], plain)
    assert not torch.allclose(found["one"], found["two"])


def test_adapters_on_the_last_layers_only(base, tiny_model, tmp_path):
    add(base, "policy", lora_layers=1)
    names = {name for name, _ in base.model.named_parameters() if ".policy." in name}
    assert names
    assert all(".layers.1." in name for name in names)
    base.save_adapter("policy", tmp_path)
    other = load_base(str(tiny_model), "fp32", "cpu")
    with torch.no_grad(), base.using("policy"), other.using(other.attach(tmp_path)):
        torch.testing.assert_close(other.hidden(IDS), base.hidden(IDS), rtol=0, atol=0)


def test_gradients_flow_to_the_named_adapter_only(base):
    add(base, "one")
    add(base, "two")
    base.set_trainable("one")
    with base.using("one"):
        base.hidden(IDS).sum().backward()
    with_gradient = {name for name, p in base.model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in base.model.named_parameters() if ".one." in name}


def test_adapter_masters_are_fp32_on_a_bf16_base(tiny_model):
    base = load_base(str(tiny_model), "bf16", "cpu")
    add(base, "policy")
    assert {p.dtype for p in base.adapter_parameters("policy")} == {torch.float32}
    with torch.no_grad(), base.using("policy"):
        assert base.hidden(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("instructions", [True, False])
def test_the_automatic_precision_follows_the_processor(tiny_model, monkeypatch, amx, instructions):
    """Training multiplies: bf16 pays with AMX. A chat reads weights: bf16 pays with any instructions for it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions or amx)
    assert load_base(str(tiny_model), device="cpu").model.dtype == (torch.bfloat16 if amx else torch.float32)
    chat = load_base(str(tiny_model), chat_dtype(), "cpu").model.dtype
    assert chat == (torch.bfloat16 if amx or instructions or torch.cuda.is_available() else torch.float32)


def test_saved_adapter_comes_back_and_remembers_nothing_else(base, tiny_model, tmp_path):
    add(base, "policy")
    base.save_adapter("policy", tmp_path)
    other = load_base(str(tiny_model), "fp32", "cpu")
    name = other.attach(tmp_path)
    assert other.attach(tmp_path) == name
    with torch.no_grad(), base.using("policy"), other.using(name):
        torch.testing.assert_close(other.hidden(IDS), base.hidden(IDS), rtol=0, atol=0)


def test_clear_words_for_what_is_no_model_or_checkpoint(base, tmp_path):
    for call, words in [
        (lambda: load_base(str(tmp_path / "absent")), "no such folder"),
        (lambda: load_base(str(tmp_path)), "cannot be loaded"),
        (lambda: load_base("x.gguf"), "no such file"),
        (lambda: base.attach(tmp_path), "is no adapter"),
        (lambda: base.new_adapter("x", DPOConfig(lora_targets="nothing_of_the_kind")), "lora_targets"),
    ]:
        with pytest.raises(InputError, match=words):
            call()


def test_failed_attach_leaves_room_for_the_next(base, tiny_model, tmp_path):
    add(base, "policy")
    (tmp_path / "good").mkdir()
    base.save_adapter("policy", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    state = load_file(tmp_path / "bad" / "adapter_model.safetensors")
    save_file(
        {name: w[:, :3].contiguous() for name, w in state.items()}, tmp_path / "bad" / "adapter_model.safetensors"
    )
    other = load_base(str(tiny_model), "fp32", "cpu")
    with pytest.raises(InputError, match="does not fit"):
        other.attach(tmp_path / "bad")
    name = other.attach(tmp_path / "good")
    with torch.no_grad(), base.using("policy"), other.using(name):
        torch.testing.assert_close(other.hidden(IDS), base.hidden(IDS), rtol=0, atol=0)


def test_checkpoint_of_another_base_is_refused(base, tmp_path):
    add(base, "policy")
    base.save_adapter("policy", tmp_path)
    (tmp_path / "manifest.json").write_text('{"base_model": {"name": "another", "sha256": "0"}}')
    with pytest.raises(InputError, match="trained on the base model another"):
        base.attach(tmp_path)


def test_several_end_tokens(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, 0]}))
    base = load_base(str(folder), "fp32", "cpu")
    assert base.stop_ids == {0, 2}
    assert base.tokenizer.pad_token_id not in base.stop_ids


def test_model_that_packing_does_not_suit_is_refused(tmp_path, tiny_model):
    from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    config = Lfm2Config(vocab_size=64, initializer_range=0.5, **shape, **layers)
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="packed sequences do not work with"):
        load_base(str(tmp_path), "fp32", "cpu")


def test_recomputing_layers_changes_no_gradient_and_keeps_fewer_activations(tiny_model):
    """Two adapters in one graph: each layer is computed again under the adapter of the first time."""
    ids, gradients, kept, calls = torch.arange(3, 40)[None], [], [], []
    for recompute in (False, True):
        base = load_base(str(tiny_model), "fp32", "cpu")
        torch.manual_seed(0)
        for name in ("policy", "critic"):
            add(base, name)
            for parameter in base.adapter_parameters(name):
                parameter.data.normal_(std=0.1)
        base.set_trainable("policy", "critic")
        if recompute:
            base.checkpoint_gradients()
        first = base.model.get_decoder().layers[0].mlp
        forward, count = first.forward, []
        first.forward = lambda x, forward=forward, count=count: (count.append(1), forward(x))[1]
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: (saved.append(t.numel()), t)[1], lambda t: t
        ):
            with base.using("policy"):
                policy = base.hidden(ids)
            with base.using("critic"):
                critic = base.hidden(ids)
        (policy.square().sum() + critic.pow(4).sum()).backward()
        with torch.no_grad():
            base.hidden(ids)
        gradients.append([p.grad for name in ("policy", "critic") for p in base.adapter_parameters(name)])
        kept.append(sum(saved))
        calls.append(len(count))
    assert calls == [3, 5], "twice forward and once without gradients; twice more in the backward pass"
    assert kept[1] < 0.3 * kept[0]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "count"), [("q_proj,v_proj", 8), ("self_attn.q_proj", 4), (r".*layers\.1\..*[qv]_proj", 4)]
)
def test_lora_targets_are_names_their_ends_or_an_expression(base, targets, count, tmp_path):
    add(base, "policy", lora_targets=targets)
    assert len(base.adapter_parameters("policy")) == count
    base.save_adapter("policy", tmp_path)
    base.load_adapter("again", tmp_path)
    assert len(base.adapter_parameters("again")) == count


@pytest.mark.parametrize("targets", ["q_proj,v_prj", "(bad", ".*nothing", "embed_tokens", " , "])
def test_lora_targets_that_name_nothing_are_refused(base, targets):
    with pytest.raises(InputError, match="lora_targets"):
        add(base, "policy", lora_targets=targets)


def test_rank_stabilised_lora_divides_by_the_root_of_the_rank(base):
    """rsLoRA, arXiv:2312.03732: alpha / √r; here 32 / √4 instead of 32 / 4."""
    add(base, "policy", use_rslora=True)
    assert base.model.get_decoder().layers[0].self_attn.q_proj.scaling["policy"] == 16
