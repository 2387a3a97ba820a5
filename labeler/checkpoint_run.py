"""A checkpoint's work as a process: python -m labeler.checkpoint_run --folder WORKSPACE/work/merge-3

Has `python -m training` do what needs the model, and says in status.json how far it is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.formats import ranking_row, read_rows, write_rows
from data.records import InputError
from labeler import checkpoint_imports, checkpoints, evaluation, jobs, packages
from labeler.store import Store, rows
from labeler.workspace import DATABASE_NAME, open_workspace
from training.files import write_json

PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+) of (?P<total>\d+), (?P<left>\d+) s left")
REPORT_SECONDS = 0.3
PROBE = {"prompt": "Hello", "completion": "Hi."}
Config = dict[str, Any]


class Status:
    """The folder's status.json, and the `python -m training` that reports into it."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.started = folder, config, time.time()
        self.last = 0.0

    def write(self, state: str, message: str, **more: Any) -> None:
        known = {"state": state, "message": message, "started_at": self.started}
        write_json(self.folder / "status.json", known | more)

    def count(self, message: str, done: int, total: int) -> None:
        """Progress, a few times a second at most."""
        if done == total or time.monotonic() - self.last > REPORT_SECONDS:
            self.last = time.monotonic()
            self.write("running", message, done=done, total=total)

    def training(self, message: str, command: str, **flags: Any) -> None:
        """Run `python -m training COMMAND`; None leaves a flag out, True gives it without a value.

        Raises InputError with the command's own reason where it fails.
        """
        self.write("running", message)
        words = [*jobs.PROGRAM, command, "--num-threads", str(self.config["num_threads"])]
        for name, value in flags.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        last = failure = ""
        with subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as child:
            assert child.stderr is not None
            for line in child.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
                if line.startswith("error: "):  # its reason may go on for several lines
                    failure = line.removeprefix("error: ").partition(" (Error(s) in loading")[0].strip()
                if found := PROGRESS.fullmatch(line.strip()):
                    self.count(message, int(found["done"]), int(found["total"]))
        if child.returncode:
            raise InputError(failure or last or f"it ended with exit status {child.returncode}")


def main() -> int:
    """Carry out what the folder's config.json asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m labeler.checkpoint_run", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder.resolve()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    status = Status(folder, config)
    try:
        result = WORKS[config["kind"]](folder, config, status)
    except (InputError, OSError) as error:
        said = str(error) if isinstance(error, InputError) else f"a file could not be used: {error}"
        status.write("failed", said)
        print(f"error: {said}", file=sys.stderr)
        return 2
    except BaseException as error:  # said where people look, and in the log in full
        status.write("failed", f"it went wrong ({type(error).__name__}); the log in {folder} says more")
        raise
    status.write("finished", "", result=result)
    return 0


def merge(folder: Path, config: Config, status: Status) -> Config:
    """The merged model with its card as exports/ID-merged.zip."""
    model = folder / "model"
    status.training("merging base and adapter", "merge", checkpoint=config["checkpoint"], output=model,
                    base_model=config["base_model"])  # fmt: skip
    (model / "README.md").write_text(config["card"], encoding="utf-8")
    parts: dict[str, Path | bytes] = {path.name: path for path in sorted(model.iterdir())}
    target = Path(config["target"])
    target.parent.mkdir(exist_ok=True)
    packages.write_zip(target, parts, config["name"], lambda done, all: status.count("writing the zip", done, all))
    shutil.rmtree(model)
    return {"bytes": target.stat().st_size}


def evaluate(folder: Path, config: Config, status: Status) -> Config:
    """Measure a reward model on what its run held out, or a policy against its parent; the result is kept."""
    status.write("running", "reading what was held out")
    scratch = folder / "scratch"
    scratch.mkdir()
    measure = _reward if config["checkpoint_kind"] == "reward" else _policy
    try:
        found = measure(scratch, config, status) | {"settings": config["settings"], "made_at": time.time()}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # what people said stays in the store alone
    kept = Path(config["result"])
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, found)
    return {}


def _reward(scratch: Path, config: Config, status: Status) -> Config:
    rankings = evaluation.held_out(config["run"], "preferences")
    write_rows(scratch / "held-out.jsonl", (ranking_row(r, number=i) for i, r in enumerate(rankings)))
    status.training("scoring held-out comparisons", "score", checkpoint=config["checkpoint"],
                    data=scratch / "held-out.jsonl", output=scratch / "scored.jsonl", skip_errors=True,
                    base_model=config["base_model"])  # fmt: skip
    scored = [row for _, row in read_rows(scratch / "scored.jsonl") if "scores" in row]
    pairs = evaluation.pairs_of([rankings[row["number"]] for row in scored], [row["scores"] for row in scored])
    return evaluation.reward_report(pairs) | {"left_out": len(rankings) - len(scored)}


def _policy(scratch: Path, config: Config, status: Status) -> Config:
    prompts, held = _prompts(config)
    write_rows(scratch / "prompts.jsonl", ({"prompt": prompt} for prompt in prompts))
    settings = config["settings"]
    sides: list[list[Config]] = []
    for who, path in (("this checkpoint", config["checkpoint"]), ("its parent", config["parent"])):
        output = scratch / f"answers-{len(sides)}.jsonl"
        status.training(f"sampling from {who}", "generate", checkpoint=path, prompts=scratch / "prompts.jsonl",
                        output=output, num_completions=1, max_new_tokens=settings["max_new_tokens"],
                        temperature=settings["temperature"], seed=settings["seed"],
                        base_model=config["base_model"])  # fmt: skip
        sides.append([row for _, row in read_rows(output)])
    pairs = [
        {
            "prompt": ours["prompt"],
            "completions": [side["completions"][0] for side in (ours, theirs)],
            "finish_reasons": [side["completion_info"][0]["finish_reason"] for side in (ours, theirs)],
            "tokens": [side["completion_info"][0]["num_tokens"] for side in (ours, theirs)],
        }
        for ours, theirs in zip(*sides, strict=True)
    ]
    write_rows(scratch / "pairs.jsonl", pairs)
    status.training("scoring both", "score", checkpoint=config["reward_model"], data=scratch / "pairs.jsonl",
                    output=scratch / "scored.jsonl", skip_errors=True, base_model=config["base_model"])  # fmt: skip
    answers = [
        evaluation.Answers(row["prompt"], row["completions"][0], row["completions"][1], row["scores"], row["tokens"])
        for _, row in read_rows(scratch / "scored.jsonl")
        if "scores" in row
    ]
    if not answers:
        raise InputError("no answer could be scored; the log says why")
    return evaluation.policy_report(answers) | {"left_out": len(pairs) - len(answers), "held_out": held}


def _prompts(config: Config) -> tuple[list[Any], bool]:
    """Up to so many prompts as asked for, each once, and whether the run was not trained on them."""
    most = config["settings"]["num_prompts"]
    try:
        if not config["run"]:
            raise InputError("it was not trained here")
        found, held = [evaluation.prompt_of(r) for r in evaluation.held_out(config["run"], config["data_kind"])], True
    except InputError:
        db = Store(Path(config["workspace"]) / DATABASE_NAME).db
        sql = """SELECT messages FROM prompts WHERE source NOT IN ('chat', 'compare') ORDER BY content_hash LIMIT ?"""
        found, held = [json.loads(row["messages"]) for row in rows(db, sql, [most])], False
    unique = list({json.dumps(prompt): prompt for prompt in found}.values())[:most]
    if not unique:
        raise InputError("there is no prompt to answer; import some in the Data tab")
    return unique, held


def bring_in(folder: Path, config: Config, status: Status) -> Config:
    """Load what was staged, as training and chat will, and register it where that works."""
    staged, kind = Path(config["staged"]), config["form"]
    probe = folder / "probe.jsonl"
    write_rows(probe, [PROBE])
    try:
        flags: Config = {"base_model": staged if kind == "base" else config["base_model"]}
        if kind == "reward-model" or kind == "reward-adapter":
            status.training("loading it and scoring an answer", "score", checkpoint=staged, data=probe,
                            output=folder / "probed.jsonl", **flags)  # fmt: skip
        else:
            status.training("loading it and sampling a word", "generate", prompts=probe, num_completions=1,
                            checkpoint=None if kind == "base" else staged, max_new_tokens=1,
                            output=folder / "probed.jsonl", **flags)  # fmt: skip
        workspace = open_workspace(config["workspace"], config["base_model"], seed_file=None)
        made = checkpoint_imports.register(workspace, staged, kind, config["name"])
    except InputError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise InputError(str(error).replace(str(staged), "what was chosen")) from None
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return {"checkpoint_id": made}


def push(folder: Path, config: Config, status: Status) -> Config:
    """Upload an adapter's folder to the hub, under the token of the environment."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    status.write("running", "uploading to the hub")
    workspace = open_workspace(config["workspace"], config["base_model"], seed_file=None)
    checkpoint = checkpoints.get(workspace.store, config["checkpoint_id"])
    upload = folder / "upload"
    upload.mkdir()
    for name, part in packages.adapter_parts(workspace, checkpoint).items():
        if isinstance(part, bytes):
            (upload / name).write_bytes(part)
        else:
            shutil.copyfile(part, upload / name)
    try:
        api = HfApi()
        url = api.create_repo(config["repository"], private=config["private"], exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=upload, commit_message=f"Add {checkpoint.name}")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"the hub refused: {str(error).splitlines()[0][:300]}") from None
    shutil.rmtree(upload)
    return {"url": str(url)}


WORKS: dict[str, Callable[[Path, Config, Status], Config]] = {
    "merge": merge, "evaluate": evaluate, "import": bring_in, "push": push,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
