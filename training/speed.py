"""How fast this machine is with a model, and how much memory it takes: python -m training.speed --config F --output G

A short measurement from which the time of any run can be worked out before it is started (`labeler/estimates.py`). The
time of a forward is taken as a sum over what it holds, with one price each: the forward itself, its tokens, the pairs
of tokens that look at each other, and the tokens whose probabilities are asked for. Four shapes are timed, twice each,
reading alone and with the backward pass, and the prices are fitted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from data.records import InputError, Prompt
from training import processes
from training.base import Base
from training.batches import encode_prompts
from training.chat_template import encode_response
from training.config import TrainingConfig
from training.decoding import start_decoding
from training.files import sync, write_json
from training.log_probs import TokenLogProbs
from training.models import load_base
from training.packs import Group, Pack, common_start, pack
from training.prices import features, prices
from training.rollout import choose

ADAPTER = "policy"
SHAPES = ((1, 40, 2, 60), (6, 40, 2, 60), (1, 200, 2, 380), (6, 40, 2, 60))
"""(groups, tokens of the prompt, responses, tokens of each) of the forwards that are timed; of the last one no
probabilities are asked for."""
ROUNDS = 2
ROWS = (2, 16)
"""Sequences that are decoded together."""
STEPS = 10


def measure(config: TrainingConfig, texts: dict[str, list[Any]]) -> dict[str, Any]:
    """The numbers that `main` writes; times in seconds, memory in bytes, prices in the order of `features`.

    texts: `prompts` (lists of messages) and `responses`, from which the tokens of a character are counted.
    """
    processes.set_threads(config.num_threads)
    base = load_base(config.base_model, config.dtype, config.device, fast=config.fast != "off")
    base.new_adapter(ADAPTER, config)
    base.set_trainable(ADAPTER)
    found: dict[str, Any] = {
        "start": time.time() - psutil.Process().create_time(),
        "parameters": base.model.num_parameters(),
        "layers": int(base.model.config.num_hidden_layers),
        "hidden": base.hidden_size,
        "device": base.device.type,
        "context": base.context_length,
    }
    found |= tokens_of(base, texts)
    compiling = 0.0
    packs = [_example(base, *shape) for shape in SHAPES]
    if config.fast == "compile":
        began = time.monotonic()
        base.compile(ADAPTER, lambda text: print(text, file=sys.stderr, flush=True))
        _times(base, packs[:1])  # each way of reading is compiled when it is first gone
        compiling = time.monotonic() - began
    parameters = base.adapter_parameters(ADAPTER)
    adam = torch.optim.AdamW(parameters)
    _learn(base, packs[0], True)
    adam.step()  # its state is made, as in a run
    found["step"] = _mean(adam.step)
    _reset_peak()
    _learn(base, packs[0], True)
    small = peak_memory(base.device)
    reads, learns = _times(base, packs)
    large = peak_memory(base.device)
    held = [features(_sizes(each), targets) for each, targets in zip(packs, _asked(), strict=True)]
    tokens = [row[1] for row in held]
    per_token = max(0.0, large - small) / max(max(tokens) - tokens[0], 1.0)
    found |= {
        "compile": compiling,
        "read": prices(held, reads),
        "learn": prices(held, learns),
        "decode": _decoding(base, packs[0].groups[0].prompt),
        "save": _saving(base, adam),
        "trainable": sum(parameter.numel() for parameter in parameters),
        "memory": small - per_token * tokens[0],
        "memory_per_token": per_token,
    }
    if base.device.type == "cuda":
        found["device_memory"] = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return found


def tokens_of(base: Base, texts: dict[str, list[Any]]) -> dict[str, float]:
    """Tokens of a character; tokens the template adds to a prompt, and to all of them alike at the beginning."""
    prompts = [Prompt(tuple(messages)) for messages in texts.get("prompts", [])]
    written = [text for text in texts.get("responses", []) if text.strip()]
    if not prompts:
        prompts = [Prompt(({"role": "user", "content": "What is a good name for a cat?"},))]
    encoded = [list(group.prompt) for group in encode_prompts(base, prompts, base.context_length)[0]]
    counted = sum(len(encode_response(base, text)) - 1 for text in written)
    characters = sum(map(len, written))
    if characters < 1000:  # too little to go by; English
        counted, characters = counted + 250, characters + 1000
    per_character = counted / characters
    words = [sum(len(message["content"]) for message in prompt.messages) * per_character for prompt in prompts]
    return {
        "tokens_per_character": per_character,
        "template": max(0.0, sum(map(len, encoded)) / len(encoded) - sum(words) / len(words)),
        "shared": float(common_start(encoded)),
    }


def peak_memory(device: torch.device) -> float:
    """The most memory that was taken, in bytes: of the GPU where it computes, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _reset_peak() -> None:
    """Loading takes more than what is kept; Linux can forget the peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _asked() -> list[bool]:
    return [number < len(SHAPES) - 1 for number in range(len(SHAPES))]


def _example(base: Base, groups: int, prompt: int, responses: int, length: int) -> Pack:
    """A forward of that shape, smaller where the model's context is."""
    fit = min(1.0, base.context_length / (prompt + length))
    words = np.random.default_rng(0).integers(3, max(4, base.model.config.vocab_size), size=10_000)
    ids = iter([int(word) for word in words] * 2)

    def take(count: int) -> list[int]:
        return [next(ids) for _ in range(max(1, int(count * fit)))]

    return pack([Group(take(prompt), [take(length) for _ in range(responses)]) for _ in range(groups)], base.device)


def _sizes(found: Pack) -> list[tuple[int, list[int]]]:
    return [(len(group.prompt), [len(response) for response in group.responses]) for group in found.groups]


def _read(base: Base, found: Pack, targets: bool) -> torch.Tensor:
    """A number that depends on all that a run would compute of the pack."""
    if not targets:
        return base.read(found)[found.last].float().sum()
    head = base.model.get_output_embeddings()
    hidden = base.read(found)[found.predictors]
    return TokenLogProbs.apply(hidden, head.weight, head.bias, found.targets, 1.0, False, 256)[0].sum()


def _learn(base: Base, found: Pack, targets: bool) -> None:
    with base.using(ADAPTER):
        base.backward(_read(base, found, targets))


def _read_only(base: Base, found: Pack, targets: bool) -> None:
    with torch.no_grad(), base.using(ADAPTER):
        float(_read(base, found, targets))


def _times(base: Base, packs: Sequence[Pack]) -> tuple[list[float], list[float]]:
    """(seconds to read, seconds to learn from) each pack."""
    reads, learns = [], []
    for found, targets in zip(packs, _asked(), strict=False):
        reads.append(_mean(partial(_read_only, base, found, targets)))
        learns.append(_mean(partial(_learn, base, found, targets)))
    return reads, learns


def _mean(act: Callable[[], Any]) -> float:
    """Seconds, of all ROUNDS: a run's forwards are new ones too, and its machine is not always at its best."""
    began = time.perf_counter()
    for _ in range(ROUNDS):
        act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / ROUNDS


@torch.no_grad()
def _decoding(base: Base, prompt: Sequence[int]) -> list[float]:
    """[seconds of a step, seconds more for each sequence]."""
    took = []
    for rows in ROWS:
        with base.using(ADAPTER):
            decoding = start_decoding(base, [prompt], rows, STEPS)
            uniform = torch.full((rows,), 0.5, dtype=torch.float64 if base.device.type != "mps" else torch.float32)
            began = time.perf_counter()
            for _ in range(STEPS):
                decoding.step(choose(decoding.logits, uniform.to(base.device), 1.0, 1.0))
            took.append((time.perf_counter() - began) / STEPS)
    each = max(0.0, (took[1] - took[0]) / (ROWS[1] - ROWS[0]))
    return [max(took[0] - each * ROWS[0], 0.0), each]


def _saving(base: Base, adam: torch.optim.Optimizer) -> float:
    """Seconds to write a checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        base.save_adapter(ADAPTER, Path(name))
        torch.save(adam.state_dict(), Path(name) / "state")
        for path in Path(name).iterdir():
            sync(path)
        return time.perf_counter() - began


def _busy() -> float:
    """Seconds that the cores have worked for others than this process, ever."""
    cores, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return float(cores.user + getattr(cores, "nice", 0.0) + cores.system - own.user - own.system)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the output file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="JSON with base_model, dtype, device, num_threads, fast")
    parser.add_argument("--texts", help="JSON with prompts and responses")
    parser.add_argument("--output", required=True)
    options = parser.parse_args(arguments)
    try:
        config = TrainingConfig(**json.loads(Path(options.config).read_text(encoding="utf-8")))
        texts = json.loads(Path(options.texts).read_text(encoding="utf-8")) if options.texts else {}
        began, busy = time.time(), _busy()
        found = measure(config, texts)
        found["busy"] = (_busy() - busy) / (time.time() - began)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(Path(options.output), found | {"began": began, "ended": time.time()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
