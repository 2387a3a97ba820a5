"""A learning curve's process: python -m labeler.curve_run --output WORKSPACE/runs/0009-curve"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from labeler import jobs
from labeler.local_run import Status, follow, main


def run(folder: Path, status: Status) -> dict[str, Any]:
    """What `python -m training curve` says of the snapshot."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return follow(
        [*jobs.PROGRAM, "curve", "--base-model", config["base_model"], "--data", config["data"],
         "--most", str(config["most"])],
        status,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(jobs.CURVE, __doc__, run))
