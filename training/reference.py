"""log π_ref(y|x) of every response that DPO meets: computed once, kept for a resume, and on disk for later runs."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from training import processes
from training.base import Base
from training.default_model import cache_folder
from training.files import write_json
from training.packs import Pack


def response_key(prompt: Sequence[int], response: Sequence[int]) -> str:
    """What a log-probability is remembered under: a hash of the token ids, which hold the template and the data."""
    digest = hashlib.blake2b(array("q", [len(prompt), *prompt, *response]).tobytes(), digest_size=16)
    return digest.hexdigest()


def cache_file(base: Base, checkpoint: Path | str | None) -> Path:
    """Where the log-probabilities of this reference lie: named after its base, its adapter and its precision."""
    digest = hashlib.sha256(f"{base.sha256()} {base.model.dtype}".encode())
    for name in ("adapter_config.json", "adapter_model.safetensors") if checkpoint else ():
        digest.update(hashlib.sha256((Path(str(checkpoint)) / name).read_bytes()).digest())
    return cache_folder().parent / "reference" / f"{digest.hexdigest()[:32]}.json"


class ReferenceLogProbs:
    """Sums over the tokens of responses, in nats, under the reference.

    First computed in the very layout in which the policy reads them, so that a run starts with a difference of exactly
    0; what comes from the disk was computed in another, and differs by rounding.
    """

    def __init__(self, file: Path | None = None, say: Callable[[str], None] = print) -> None:
        self.file, self.say = file, say
        self.known = _read(file, say)

    def of(self, pack: Pack, compute: Callable[[Pack], Tensor]) -> Tensor:
        """log π_ref(y|x) (M,) of the pack's responses; `compute` finds them where one is not known yet."""
        groups = ((pack.groups[number], k) for number, k in pack.members)
        keys = [response_key(group.prompt, group.responses[k]) for group, k in groups]
        if not all(key in self.known for key in keys):
            for key, value in zip(keys, compute(pack).tolist(), strict=True):
                self.known.setdefault(key, value)
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float32, device=pack.input_ids.device)

    def everybodys(self) -> dict[str, float]:
        """What this and the other processes know; where two know the same response, the first one's number."""
        together: dict[str, float] = {}
        for known in processes.gather([self.known]):
            together = known | together
        return together

    def save(self) -> None:
        """Add what was found to the file, where there is one; all processes call it, the main one writes."""
        together = self.everybodys()
        if self.file is None or not processes.is_main():
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, _read(self.file) | together)  # another run may have written meanwhile
        except OSError as error:
            self.say(f"{self.file}: the reference's log-probabilities could not be kept ({error.strerror or error})")


def _read(file: Path | None, say: Callable[[str], None] | None = None) -> dict[str, float]:
    """The file's contents; {} where there is none, or where it is damaged, which is said."""
    if file is None or not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(value, float) and math.isfinite(value) for value in found.values()):
            raise ValueError("it holds something else than numbers")
        return dict(found)
    except (OSError, ValueError, AttributeError) as error:
        if say:
            say(f"{file}: is damaged and will be written anew ({error})")
        return {}
