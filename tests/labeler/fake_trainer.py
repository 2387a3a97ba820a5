"""Keeps to the run folder's contract and learns nothing: METHOD --config F --output RUN [--resume].

What it does otherwise is told by FAKE_TRAINER: steps (default 3), "slow" (a step takes until it is stopped or killed),
"crash" (an exception after the first step), "bad" (a clear error at once), "deaf" (SIGTERM is ignored).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from training.files import write_json


def main() -> int:
    method, folder = sys.argv[1], Path(sys.argv[sys.argv.index("--output") + 1])
    behaviour = os.environ.get("FAKE_TRAINER", "")
    config = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    assert Path(config["data"]).is_file()
    if behaviour == "bad":
        print("error: the data is not to my taste", file=sys.stderr)
        return 2
    stopped = []
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    step = 0
    if "--resume" in sys.argv:
        step = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
        print(f"resuming after step {step}", file=sys.stderr)

    def status(state: str, message: str = "", result: dict | None = None) -> None:
        write_json(
            folder / "status.json",
            {"state": state, "method": method, "step": step, "total_steps": 3, "updated_at": time.time(),
             "started_at": time.time(), "eta_seconds": 1.0, "pid": os.getpid(), "message": message, "result": result},
        )  # fmt: skip

    status("running", "loading")
    while step < 3 and not stopped:
        step += 1
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss": 0.7 - 0.1 * step}) + "\n")
        print(f"step {step}/3", file=sys.stderr, flush=True)
        save(folder, method, step)
        status("running")
        if behaviour == "crash":
            raise RuntimeError("<b>out of coffee</b>")
        while behaviour in ("slow", "deaf") and not stopped:
            time.sleep(0.02)
    status("stopped" if stopped else "finished", result={"steps": step, "accuracy": 0.75})
    return 0


def save(folder: Path, method: str, step: int) -> None:
    partial = folder / "checkpoints" / f".partial-{step}"
    partial.mkdir(parents=True)
    kind = "reward" if method == "reward" else "policy"
    write_json(partial / "manifest.json", {"kind": kind, "method": method, "step": step})
    partial.rename(folder / "checkpoints" / f"step-{step:06d}")


if __name__ == "__main__":
    sys.exit(main())
