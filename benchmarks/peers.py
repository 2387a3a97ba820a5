"""The peer, TRL, installed apart from this environment, and measurements in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.records import InputError
from training.default_model import cache_folder

TRL = "1.16.0"
TRL_PPO = "1.12.0"
"""The last TRL that had PPO."""
ROOT = Path(__file__).resolve().parent.parent
PEERS = cache_folder().parent / "peers"
"""Where peers are installed unless --peer-folder says otherwise."""


def peer_environment(peers: Path, version: str) -> dict[str, str]:
    """The environment of a process that imports this version of TRL, which is installed into `peers` on first use."""
    target = peers.resolve() / f"trl-{version}"
    if not (target / "trl").is_dir():
        print(f"installing trl {version} into {target}", file=sys.stderr)
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        if subprocess.run([*words, f"trl=={version}"]).returncode:
            raise InputError(f"trl {version} could not be installed into {target}; is the package index reachable?")
    inherited = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}  # ours: set by `import training`
    return inherited | {"PYTHONPATH": str(target), "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}


def measure(module: str, arguments: Sequence[object], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON line that ends the output of `python -m module`; raises InputError where it fails."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(words[1:])} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
