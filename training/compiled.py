"""Decoder layers compiled by torch, for runs that are long enough to pay for it.

One compilation serves all layers and all lengths: only the number of tokens varies, and it is left open. The compiled
code rounds wherever the plain one does, so that the policy, its old self and the reference agree to the last bit with
each other; from the plain layers they differ by rounding (other orders of sums). What is compiled is kept on disk.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training import attention, lora
from training.default_model import cache_folder
from training.trunk import layers_of


def compile_layers(decoder: nn.Module, try_out: Callable[[], None]) -> tuple[float, str]:
    """Compile the decoder's layers; `try_out` runs them once, forward and backward.

    Returns (seconds it took, why it could not be done or ""). Where it could not the layers are as they were.
    """
    import torch._dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    _keep_on_disk()
    inductor.emulate_precision_casts = True
    functorch.aggressive_recomputation = True  # element-wise results are computed again, not kept: a sixth less memory
    functorch.is_non_builtin_to_include = True  # attention is not
    inductor.cpp.dynamic_threads = True  # a run may be asked for fewer threads on its way
    torch._dynamo.config.recompile_limit = 64  # adapters, with and without gradients
    layers = layers_of(decoder)
    plain = [layer.forward for layer in layers]
    started = time.monotonic()
    for layer in layers:
        layer.forward = _compiled(layer.forward)
    attention.compile_pieces()
    try:
        try_out()
    except Exception as error:  # no compiler, a kind of layer it cannot trace, a full disk
        for layer, forward in zip(layers, plain, strict=True):
            layer.forward = forward
        attention.compile_pieces(False)
        return time.monotonic() - started, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return time.monotonic() - started, "" if layers else "its layers are of an unknown kind"


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Read packs compiled; decode with a cache as before."""
    compiled = torch.compile(forward, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if kwargs.get("past_key_values") is None else forward)(*args, **kwargs)

    return call


def _keep_on_disk() -> None:
    """Keep what is compiled in our cache, where nobody named another place: torch's own is a temporary folder.

    Each version of our operators has a folder of its own, because torch does not see when they change.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"  # set by torch itself when it is imported
    if os.environ.get(name, default_cache_dir()) == default_cache_dir():
        operators = "".join(inspect.getsource(module) for module in (attention, lora))
        version = hashlib.sha256(operators.encode()).hexdigest()[:12]
        os.environ[name] = str(cache_folder().parent / "compiled" / version)
