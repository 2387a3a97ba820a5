"""One frozen base in memory; policy, reward and value are LoRA adapters and scalar heads on it.

The base is never modified, so the reference is the base with adapters off, every reward model keeps its meaning, and
many checkpoints chat on one base. Checkpoints are plain PEFT folders.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import InputError
from training import cores
from training.adapters import ActiveAdapter, recompute_in_backward, take_over
from training.chat_template import AnswerForm, answer_form, control_tokens
from training.compiled import compile_layers
from training.config import TrainingConfig
from training.packs import Group, Pack, pack
from training.run_folder import read_manifest
from training.trunk import layers_below, reading


class Base:
    """A frozen causal language model with named adapters.

    `lock` guards the active adapter where several threads share the base; take it around every forward.
    """

    def __init__(self, name: str, folder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.folder = name, folder
        self.model, self.tokenizer = model, tokenizer
        self.lock = threading.RLock()
        self.peft: PeftModel | None = None
        self._active = ActiveAdapter()
        self._attached: dict[tuple[Path, int], str] = {}
        self._below: dict[str, int] = {}
        self._sha256 = ""
        self.attends_packed = False
        self.before_backward: Callable[[], None] | None = None
        self.model.requires_grad_(False)

    @property
    def fast(self) -> bool:
        """Whether fast paths are taken where there are any."""
        return self._active.fast

    @fast.setter
    def fast(self, on: bool) -> None:
        self._active.fast = on

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """d, the width of the last hidden state."""
        return int(self.model.get_output_embeddings().weight.shape[1])

    @property
    def context_length(self) -> int:
        """The most tokens the model can read."""
        window = getattr(self.model.config, "sliding_window", None)  # beyond it the packed layout sees too much
        return min(int(getattr(self.model.config, "max_position_embeddings", 0) or 2**20), int(window or 2**20))

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer."""
        return stop_ids(self.tokenizer, self.model) | {self.answer_form.end_id}

    @cached_property
    def answer_form(self) -> AnswerForm:
        """How the chat template writes an answer."""
        return answer_form(self.tokenizer)

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The spellings of the tokens that steer the model; what people wrote must not become one."""
        return control_tokens(self.tokenizer)

    def sha256(self) -> str:
        """Hash of the weights: of every safetensors or bin file's bytes, in order of name."""
        if not self._sha256:
            digest = hashlib.sha256()
            folder = Path(self.folder)
            for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            self._sha256 = digest.hexdigest()
        return self._sha256

    # -- computing --------------------------------------------------------------------------------------------------

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Apply an adapter (None: the plain base) inside the block."""
        with self.lock, self._active.using(adapter):
            yield

    @property
    def active_adapter(self) -> str | None:
        """The adapter that is applied now."""
        return self._active.name

    def hidden(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Last hidden states (batch, length, d), after the final norm; `inputs` as the decoder takes them."""
        return self.model.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state

    def read(self, pack: Pack) -> torch.Tensor:
        """Last hidden states (T, d) of a pack, after the final norm."""
        cores.heed()
        mask = pack.layout.handle() if self.attends_packed else pack.attention_mask
        with reading(self.model.get_decoder(), pack, self._layers_below() if self.fast else 0):
            return self.hidden(pack.input_ids, position_ids=pack.position_ids, attention_mask=mask)[0]

    def _layers_below(self) -> int:
        """How many layers the active adapter leaves alone; without one, as many as every adapter does."""
        if self._active.name in self._below:
            return self._below[self._active.name]
        return min(self._below.values(), default=0)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss of hidden states."""
        cores.heed()
        if self.before_backward:
            self.before_backward()
        loss.backward()

    def compile(self, adapter: str, say: Callable[[str], None]) -> None:
        """Compile the decoder's layers for reading packs, and say how long it took or why it was not to be."""

        def try_out() -> None:
            sample = pack([Group([1, 2, 3], [[4, 5], [6]]), Group([1, 2], [[3], [4]])], self.device)
            with self.using(adapter):
                self.read(sample).float().sum().backward()
            for parameter in self.adapter_parameters(adapter):
                parameter.grad = None

        self.set_trainable(adapter)
        seconds, failure = compile_layers(self.model.get_decoder(), try_out)
        say(f"not compiled, the run is slower: {failure}" if failure else f"compiled in {seconds:.0f} s")

    def checkpoint_gradients(self) -> None:
        """Save memory in training: compute each layer again in the backward pass. Call once."""
        if not recompute_in_backward(self.model.get_decoder(), self._active):
            raise InputError(f"{self.name} has no layers that gradient_checkpointing knows; leave it off")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) of hidden states (..., d)."""
        return self.model.get_output_embeddings()(hidden)

    # -- adapters ---------------------------------------------------------------------------------------------------

    def add_adapter(self, name: str, config: LoraConfig) -> None:
        """A new adapter; it starts as no change (B = 0)."""
        if self.peft is None:
            self.peft = get_peft_model(self.model, config, adapter_name=name)
        else:
            self.peft.add_adapter(name, config)
        take_over(self.peft, self._active)
        self._below[name] = layers_below(self.model.get_decoder(), name)
        self.set_trainable()
        self.peft.eval()

    def new_adapter(self, name: str, config: TrainingConfig) -> None:
        """A new adapter as the training config describes it."""
        depth = int(self.model.config.num_hidden_layers)
        layers = list(range(depth - config.lora_layers, depth)) if 0 < config.lora_layers < depth else None
        targets = self._targets(config.lora_targets)
        try:
            self.add_adapter(
                name,
                LoraConfig(
                    task_type="CAUSAL_LM",
                    r=config.lora_rank,
                    lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
                    lora_dropout=config.lora_dropout,
                    use_rslora=config.use_rslora,
                    target_modules=targets,
                    layers_to_transform=layers,
                ),
            )
        except ValueError as error:
            raise InputError(f"lora_targets {config.lora_targets!r} does not fit {self.name}: {error}") from None

    def _targets(self, words: str) -> list[str] | str:
        """What PEFT takes: names, or one regular expression. Every one of them must name a linear layer."""
        linear = self._linear_names()
        ends = sorted({name.rpartition(".")[2] for name in linear})
        if words.strip() == "all-linear":
            return ends
        if re.search(r"[\\*+?()\[\]|^$]", words):
            try:
                found = [name for name in linear if re.fullmatch(words, name)]
            except re.error as error:
                raise InputError(f"lora_targets {words!r} is no regular expression: {error}") from None
            if not found:
                raise InputError(f"lora_targets {words!r} matches no linear layer; such names are {linear[0]}")
            return words
        names = [word.strip() for word in words.split(",") if word.strip()]
        for name in names:
            if not any(f".{each}".endswith(f".{name}") for each in linear):
                raise InputError(
                    f"lora_targets: no linear layer of {self.name} is called {name!r}; {', '.join(ends)} are"
                )
        if not names:
            raise InputError(f"lora_targets is empty; name layers ({', '.join(ends)}) or all-linear")
        return names

    def _linear_names(self) -> list[str]:
        """Names of the decoder's linear layers in the model (the output layer is not one of them)."""
        inside = {id(module) for module in self.model.get_decoder().modules()}
        return [
            name.removesuffix(".base_layer")
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside and ".lora_" not in name
        ]

    def load_adapter(self, name: str, checkpoint: Path | str) -> None:
        """Load a checkpoint's LoRA weights under a name of this base. A reward model's head is left to `load_head`."""
        folder = Path(checkpoint)
        if not (folder / "adapter_config.json").exists():
            raise InputError(f"{folder}: is no adapter (it holds no adapter_config.json)")
        if (folder / "manifest.json").exists():
            trained_on = read_manifest(folder)["base_model"]
            if trained_on.get("sha256", self.sha256()) != self.sha256():
                raise InputError(
                    f"{folder}: was trained on the base model {trained_on['name']}, not on this {self.name}"
                )
        config = LoraConfig.from_pretrained(str(folder))
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
        state = load_file(folder / "adapter_model.safetensors")
        state = {key: value for key, value in state.items() if ".lora_" in key}
        self.add_adapter(name, config)
        try:
            missing: Any = set_peft_model_state_dict(self.peft, state, adapter_name=name)
            if missing.unexpected_keys:
                raise InputError(f"{folder}: was trained on another kind of model than {self.name}")
        except (RuntimeError, KeyError, InputError) as error:
            assert self.peft is not None
            self.peft.delete_adapter(name)
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder}: does not fit the base model {self.name} ({error})") from None

    def attach(self, checkpoint: Path | str) -> str:
        """The adapter name of a checkpoint on this base, loaded on first use. Raises InputError where there is none."""
        path = Path(checkpoint).resolve()
        file = path / "adapter_model.safetensors"
        if not file.exists():
            raise InputError(f"{checkpoint}: is no adapter (it holds no {file.name}); it may have been pruned")
        key = path, file.stat().st_mtime_ns  # a resumed run may write the same folder again
        with self.lock:
            if key not in self._attached:
                name = f"checkpoint{len(self._attached)}"
                self.load_adapter(name, path)
                self._attached[key] = name
            return self._attached[key]

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [parameter for key, parameter in self.model.named_parameters() if f".{name}." in key]

    def set_trainable(self, *names: str) -> None:
        """Let gradients flow to these adapters and to nothing else."""
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(f".{name}." in key for name in names))

    def set_dropout(self, name: str, on: bool) -> None:
        """Switch the adapter's dropout, and nothing else's: the base and the reference stay exact."""
        for key, module in self.model.named_modules():
            if key.endswith(f".lora_dropout.{name}"):
                module.train(on)

    def save_adapter(self, name: str, folder: Path, head: nn.Linear | None = None) -> None:
        """Write a plain PEFT folder with the tokenizer; with `head`, for AutoModelForSequenceClassification."""
        assert self.peft is not None
        state = {k: v.detach().to("cpu").contiguous() for k, v in self._state(name).items()}
        saved = LoraConfig(**{**self.peft.peft_config[name].to_dict(), "task_type": "CAUSAL_LM"})
        saved.base_model_name_or_path = self.name
        saved.inference_mode = True
        if not isinstance(saved.target_modules, str):
            saved.target_modules = sorted(saved.target_modules or [])
        if head is not None:
            state["base_model.model.score.weight"] = head.weight.detach().to("cpu", torch.float32).contiguous()
            saved.task_type, saved.modules_to_save = "SEQ_CLS", ["score"]
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        saved.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def _state(self, name: str) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """The tokenizer's end token and those of the generation config, which may be one or a list."""
    generation = getattr(model, "generation_config", None)  # which classifiers lack
    configured = generation.eos_token_id if generation else None
    listed = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None}
