"""Every fast path against the plain one: log-probabilities to 1e-4 and gradients to 1e-3, in fp32."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.base import Base
from training.config import DPOConfig
from training.loop import token_log_probs
from training.lora import lora_linear
from training.models import load_base
from training.packs import Group, Pack, common_start, pack
from training.trunk import layers_of

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler: what is compiled is NOT tested"
)
LIKELY, UNLIKELY = 1e-4, 1e-3


def groups(seed: int = 0) -> list[Group]:
    """Groups of several shapes: no response but one token, one long response, four responses, a long prompt."""
    chance = random.Random(seed)
    words = lambda count: [chance.randrange(3, 40_000) for _ in range(count)]  # noqa: E731
    shapes = [(1, [1]), (7, [31]), (12, [5, 9, 2, 14]), (60, [3, 1])]
    return [Group(words(p), [words(k) for k in sizes]) for p, sizes in shapes]


def with_adapter(base: Base, seed: int = 1, name: str = "policy", lora_layers: int = 0) -> Base:
    """With a trainable adapter that changes something."""
    base.new_adapter(name, DPOConfig(seed=seed, lora_layers=lora_layers))
    torch.manual_seed(seed)
    for parameter in base.adapter_parameters(name):
        parameter.data.normal_(std=0.1)
    base.set_trainable(name)
    return base


def log_probs_and_gradients(base: Base) -> tuple[Tensor, list[Tensor]]:
    """log p of every response token, and the adapter's gradients of a weighted sum of them."""
    found = pack(groups(), base.device)
    with base.using("policy"):
        log_probs, entropies = token_log_probs(base, base.read(found)[found.predictors], found.targets, 0.7, True)
        weights = torch.linspace(-1, 1, len(log_probs))
        ((log_probs + 0.1 * entropies) * weights).sum().backward()
    gradients = [p.grad.clone() for p in base.adapter_parameters("policy")]  # type: ignore[union-attr]
    return log_probs.detach(), gradients


def assert_alike(found: tuple[Tensor, list[Tensor]], plain: tuple[Tensor, list[Tensor]]) -> None:
    assert (found[0] - plain[0]).abs().max() < LIKELY
    for ours, theirs in zip(found[1], plain[1], strict=True):
        assert theirs.abs().max() > 0
        assert (ours - theirs).norm() < UNLIKELY * theirs.norm()


@pytest.fixture
def plain(tiny_model: Path) -> tuple[Tensor, list[Tensor]]:
    """What the model's own layers and attention make of it."""
    base = with_adapter(load_base(str(tiny_model), "fp32", "cpu", fast=False))
    assert not base.attends_packed
    return log_probs_and_gradients(base)


def test_blocks_say_what_may_look_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into prompts and responses or not: the same mask, which is that of the definition."""
    masks = []
    for cost in (0, 10**9):
        monkeypatch.setattr("training.packs.BLOCK_COST", cost)
        masks.append(pack(groups(), torch.device("cpu")).attention_mask[0, 0])
    assert torch.equal(*masks)
    place = [(g, k) for g, group in enumerate(groups()) for k, part in enumerate([group.prompt, *group.responses])
             for _ in part]  # fmt: skip
    for i, (group, part) in enumerate(place):
        for j, (other, seen) in enumerate(place):
            assert bool(masks[0][i, j]) == (j <= i and group == other and seen in (0, part))


@pytest.mark.parametrize("cost", [0, 200, 10**9])
@pytest.mark.parametrize("size", [70, 10**9])
def test_packed_attention(
    base: Base, plain: tuple[Tensor, list[Tensor]], cost: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups whole and apart, blocks of one square and of several filled up, and cut."""
    monkeypatch.setattr("training.packs.BLOCK_COST", cost)
    monkeypatch.setattr("training.packs.BLOCK_SIZE", size)
    assert base.attends_packed
    assert_alike(log_probs_and_gradients(with_adapter(base)), plain)


@pytest.mark.parametrize("cost", [0, 200, 10**9])
def test_what_prompts_begin_with_is_read_once(
    base: Base, tiny_model: Path, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together or each group by itself, in the model's own layers: the same log-probabilities and gradients."""
    monkeypatch.setattr("training.packs.BLOCK_COST", cost)
    start = [7, 8, 9, 10, 11]
    alike = [Group([*start, *group.prompt], group.responses) for group in groups()]
    found = pack(alike, base.device)
    assert found.shared == len(start)
    assert found.input_ids.shape[1] == sum(group.length for group in alike) - len(start) * (len(alike) - 1)
    alone = with_adapter(load_base(str(tiny_model), "fp32", "cpu", fast=False))
    for model, packed in ((with_adapter(base), [found]), (alone, [pack([group], base.device) for group in alike])):
        log_probs = []
        with model.using("policy"):
            for part in packed:
                log_probs.append(token_log_probs(model, model.read(part)[part.predictors], part.targets, 1.0)[0])
            torch.cat(log_probs).square().sum().backward()
        found_here = torch.cat(log_probs).detach(), [p.grad.clone() for p in model.adapter_parameters("policy")]
        if model is base:
            together = found_here
    assert_alike(together, found_here)


def test_a_prompt_keeps_a_token_of_its_own(base: Base) -> None:
    """Prompts that are the same, or the start of one another, still have a last token that predicts."""
    same = [Group([5, 6, 7], [[8]]), Group([5, 6, 7], [[9, 4]]), Group([5, 6], [[3]])]
    found = pack(same, base.device)
    assert found.shared == 1
    assert found.input_ids[0].tolist() == [5, 6, 7, 8, 6, 7, 9, 4, 6, 3]
    assert found.position_ids[0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert found.predictors.tolist() == [2, 5, 6, 8]
    assert common_start([[], [5, 6]]) == 0


@pytest.mark.parametrize("length", [1, 7, 600])
@pytest.mark.parametrize("bias", [False, True])
def test_lora_in_one_operation(length: int, bias: bool) -> None:
    """Against autograd's own way through the same formula; 600 rows are computed in two parts in bf16."""
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        torch.manual_seed(length)
        draw = lambda *shape: torch.randn(*shape).to(dtype)  # noqa: E731, B023
        x, w, a, b = draw(length, 96), draw(288, 96), draw(4, 96), draw(288, 4)
        offset, dy = draw(288) if bias else None, draw(length, 288)
        learned = [tensor.requires_grad_() for tensor in (x, a, b)]
        y, _ = lora_linear(x, w, offset, a, b, 2.0)
        found = [y, *torch.autograd.grad(y, learned, dy)]
        plain = torch.nn.functional.linear(x.float(), w.float(), None if offset is None else offset.float())
        plain = plain + 2.0 * x.float() @ a.float().t() @ b.float().t()
        wanted = [plain, *torch.autograd.grad(plain, learned, dy.float())]
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours.float() - theirs.float()).norm() < allowed * theirs.float().norm()


@pytest.mark.parametrize("recomputed", [False, True])
def test_layers_below_the_adapter_are_read_once(tiny_model: Path, recomputed: bool) -> None:
    """By policy and reference, with and without gradients, to the same bits as a pack that nobody has read."""
    base = load_base(str(tiny_model), "fp32", "cpu")
    with_adapter(base, lora_layers=1)
    if recomputed:
        base.checkpoint_gradients()
    reads: list[int] = []
    for number, layer in enumerate(layers_of(base.model.get_decoder())):
        layer.self_attn.register_forward_hook(lambda *_, number=number: reads.append(number))  # type: ignore[union-attr]

    def read(name: str | None, found: Pack) -> list[Tensor]:
        with base.using(name):
            hidden = base.read(found)
        if not hidden.requires_grad:
            return [hidden]
        return [hidden, *torch.autograd.grad(hidden.square().sum(), base.adapter_parameters(name or "policy"))]

    def alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    fresh = [read(name, pack(groups(), base.device)) for name in ("policy", None)]
    assert len(fresh[0]) > 1
    once = reads.count(0)
    found = pack(groups(), base.device)
    with torch.no_grad():
        assert alike(read("policy", found), fresh[0][:1])
    assert reads.count(0) == once + 1
    for _ in range(2):
        assert alike(read("policy", found), fresh[0])
        assert alike(read(None, found), fresh[1])
    assert reads.count(0) == once + 1
    with_adapter(base, name="other")  # changes the lowest layer too
    assert alike(read("other", found)[:1], read("other", pack(groups(), base.device))[:1])
    once = reads.count(0)
    base.fast = False
    read(None, found)
    assert reads.count(0) == once + 1


@needs_compiler
def test_compiled_layers(base: Base, plain: tuple[Tensor, list[Tensor]]) -> None:
    said: list[str] = []
    with_adapter(base).compile("policy", said.append)
    assert said[-1].startswith("compiled in")
    assert all(parameter.grad is None for parameter in base.adapter_parameters("policy"))
    assert_alike(log_probs_and_gradients(base), plain)


@needs_compiler
def test_compiled_readings_agree_to_the_last_bit(tiny_model: Path) -> None:
    """With and without gradients, and of the reference where the adapter changes nothing yet: loss ln 2, ratio 1."""
    base = load_base(str(tiny_model), "bf16", "cpu")
    base.new_adapter("policy", DPOConfig())
    base.compile("policy", print)
    found = pack(groups(), base.device)
    with base.using("policy"):
        learning = base.read(found)
        assert learning.requires_grad
        with torch.no_grad():
            assert torch.equal(base.read(found), learning)
    with base.using(None), torch.no_grad():
        assert torch.equal(base.read(found), learning)


def test_without_a_compiler_the_run_goes_on_plainly(
    base: Base, plain: tuple[Tensor, list[Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/c++",))
    torch._dynamo.reset()
    said: list[str] = []
    with_adapter(base).compile("policy", said.append)
    assert said[-1].startswith("not compiled, the run is slower:")
    assert_alike(log_probs_and_gradients(base), plain)


def test_a_layout_is_of_its_own_pack(base: Base) -> None:
    """Packs of one length after one another must not be read with each other's masks."""
    first = pack([Group([5, 6, 7], [[8, 9], [10]])], base.device)
    second = pack([Group([5], [[6, 7], [8, 9, 10]])], base.device)
    with torch.no_grad():
        alone = base.read(second)
        base.read(first)
        assert torch.equal(base.read(second), alone)
        assert not torch.allclose(base.read(first), alone)
