"""Loading a base model: by hub name, folder or GGUF file; its precision, device and pad token; what is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.records import InputError
from training import attention, processes
from training.base import Base, stop_ids
from training.chat_template import answer_form, plain_template
from training.config import DEFAULT_MODEL
from training.default_model import cache_folder, default_model_folder, unpack_gguf
from training.packs import Group, pack


def load_base(name: str = DEFAULT_MODEL, dtype: str = "auto", device: str = "auto", fast: bool = True) -> Base:
    """Load a frozen base by hub name, folder or .gguf file; `fast` lets our own attention and decoding work.

    Raises InputError where it is not to be had, or where the packed layout or a plain linear head over its last hidden
    states does not compute its logits (convolutions, soft-capped or scaled logits).
    """
    folder = _resolve(name)
    where = _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(dtype, where), attn_implementation="sdpa")
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"base model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    try:
        model = model.to(where).eval()  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_template(tokenizer)
    _declare_pad(tokenizer, model)
    base = Base(name, folder, model, tokenizer)
    base.fast = fast
    if not _packs(base, packed_attention=False):
        raise InputError(
            f"base model {name!r} cannot be used: its attention or output layer is of a kind that packed sequences do "
            "not work with"
        )
    if fast and where.type == "cpu":
        attention.register()
        model.set_attn_implementation(attention.NAME)
        base.attends_packed = _packs(base, packed_attention=True)
    return base


def load_classifier(name: str, dtype: str = "auto", device: str = "auto") -> Base:
    """Load a sequence classifier with ONE label and its tokenizer by hub name or folder, as a base without adapters.

    Raises InputError where it is not to be had, has another number of labels, no trained head, or no end token.
    """
    what = f"reward model {name!r}"
    if (Path(name) / "adapter_config.json").exists():
        raise InputError(f"{what} is an adapter without a manifest.json; merge it into a full model first")
    folder, where = _folder(name, what), _device(device)
    try:
        labels = AutoConfig.from_pretrained(folder).num_labels
        if labels != 1:
            raise InputError(f"{what} has {labels} labels; a reward model is a sequence classifier with one")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=_dtype(dtype, where), output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} cannot be loaded: {str(error).splitlines()[0]}") from None
    if loading["missing_keys"]:
        raise InputError(f"{what} has no trained head (it lacks {', '.join(sorted(loading['missing_keys'])[:3])})")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{what}: its tokenizer has no end token, at which the score would be read")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_template(tokenizer)
    _declare_pad(tokenizer, model)
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):  # in bf16 a score around 2 would come in steps of 0.016
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return Base(name, folder, model.to(where).eval(), tokenizer)


@torch.no_grad()
def _packs(base: Base, packed_attention: bool) -> bool:
    """Whether reading two responses after one prompt computes what separate forwards do, on this kind of model."""
    base.attends_packed = packed_attention
    try:
        packed = base.logits(base.read(pack([Group([1, 2, 3], [[4], [5]])], base.device)))
        for last, row in ((4, 3), (5, 4)):
            plain = base.model(torch.tensor([[1, 2, 3, last]], device=base.device)).logits[0, -1]
            if (packed[row] - plain).float().norm() > 0.05 * plain.float().norm():
                return False
    except (TypeError, RuntimeError, AttributeError) as error:
        if packed_attention:
            return False
        raise InputError(f"base model {base.name!r} is of an unsupported kind ({error})") from None
    return True


def _resolve(name: str) -> str:
    if name == DEFAULT_MODEL and not Path(name).exists():
        return str(default_model_folder())
    if name.endswith(".gguf"):
        source = Path(name)
        if not source.is_file():
            raise InputError(f"{name}: no such file")
        folder = cache_folder() / f"{source.stem}-{source.stat().st_size}"
        if not folder.exists():
            unpack_gguf(source, folder)
        return str(folder)
    return _folder(name, f"base model {name!r}")


def _folder(name: str, what: str) -> str:
    """A model's folder; of a hub model its snapshot, so that its weights can be hashed."""
    if Path(name).is_dir():
        return name
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{what}: no such folder, and not a hub name (owner/model)")
    texts = ["*.json", "*.jinja", "*.txt", "*.model"]
    try:
        folder = snapshot_download(name, allow_patterns=[*texts, "*.safetensors"])
        if not list(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(name, allow_patterns=[*texts, "*.bin"])
    except Exception as error:  # whatever a network or a hub can do wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} cannot be had from the hub: {reason}") from None
    return folder


def _device(name: str) -> torch.device:
    if name == "auto":
        return processes.state().device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None
    if processes.count() > 1 and device.type != processes.state().device.type:
        raise InputError(
            f"device {name!r} does not go with processes that were launched for {processes.state().device.type}; leave "
            "device at auto"
        )
    return processes.state().device if processes.count() > 1 else device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # AVX-512 alone multiplies bf16 at half of the speed of fp32 (docs/performance.md).
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def chat_dtype() -> str:
    """The precision to chat in, as `load_base` takes it: one sequence is as fast as the weights are read, so half of
    the bytes count for more than how fast they are multiplied."""
    return "bf16" if torch.cpu._is_avx512_bf16_supported() and not torch.cuda.is_available() else "auto"


def _declare_pad(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """A pad token that is not an end token: a mask derived from `!= pad` would drop the true end otherwise."""
    ends = stop_ids(tokenizer, model) | {answer_form(tokenizer).end_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        candidates = [tokenizer.unk_token, *tokenizer.all_special_tokens]
        chosen = next((t for t in candidates if t is not None and tokenizer.convert_tokens_to_ids(t) not in ends), None)
        if chosen is None:
            raise InputError("the tokenizer has no special token that could serve as padding; set its pad_token")
        tokenizer.pad_token = chosen
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None):  # which classifiers lack
        model.generation_config.pad_token_id = tokenizer.pad_token_id
