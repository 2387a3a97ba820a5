"""Metrics for TensorBoard, Weights & Biases or trackio, beside metrics.jsonl, through transformers' own callbacks.

So their environment variables hold here too (WANDB_PROJECT, TENSORBOARD_LOGGING_DIR, ...). A tracker may fail, and a
run goes on without it; only a package that is missing, or a tracker that cannot be begun, is said before the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from data.records import InputError


class Arguments:
    """What the callbacks ask of TrainingArguments; those themselves would set up devices and list other knobs."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.output_dir, self.run_name, self.project = str(folder), folder.resolve().name, "preference-loop"
        self.trackio_static_space_id = False  # publishes nothing
        self.settings = dict(settings)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def to_dict(self) -> dict[str, Any]:
        """The run's own knobs."""
        return self.settings

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.settings, indent=2)


class Tracker:
    """One tracker of one run. Raises InputError where it is not to be had."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.state, self.control = TrainerState(), TrainerControl()
        self.arguments = Arguments(folder, settings)
        self.callback: Any = None
        try:
            self.callback = get_reporting_integration_callbacks(name)[0]()
        except (RuntimeError, ImportError):
            raise InputError(
                f"report_to {name} needs a package that is not installed: pip install {name}, or set report_to to none"
            ) from None
        if name == "tensorboard" and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            self.callback.logging_dir = str(folder / "tensorboard")
        try:
            self.callback.on_train_begin(self.arguments, self.state, self.control)
        except Exception as error:  # a login that is missing, a server that does not answer: theirs to name
            raise InputError(
                f"report_to {name} cannot begin ({_first_line(error)}); set it up, or set report_to to none"
            ) from None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's metrics; after a failure, which is said once, nothing more is sent."""
        # transformers writes eval_loss as eval/loss, and puts train/ before everything else
        named = {name.replace("eval/", "eval_", 1): value for name, value in metrics.items()}
        self.state.global_step = step
        self._do(lambda: self.callback.on_log(self.arguments, self.state, self.control, logs=named))

    def close(self) -> None:
        """The run has ended."""
        self._do(lambda: self.callback.on_train_end(self.arguments, self.state, self.control))

    def _do(self, act: Callable[[], None]) -> None:
        if self.callback is None:
            return
        try:
            act()
        except Exception as error:
            self.callback = None
            self.say(f"{self.name} failed ({_first_line(error)}); the run goes on without it")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
