"""What can be asked for a checkpoint, each a work of its own: the merged model, an evaluation, the hub, an import."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.records import InputError
from labeler import checkpoint_imports, checkpoint_work, checkpoints, evaluation, jobs, lineage, model_card, packages
from labeler.checkpoints import Checkpoint
from labeler.workspace import Workspace

FEWEST_PROMPTS, MOST_PROMPTS = 4, 500
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
TOKEN_MISSING = "set HF_TOKEN in the app's environment and start it again to push to the hub"


def of_base(workspace: Workspace, checkpoint_id: int) -> tuple[Checkpoint, Path]:
    """A checkpoint and its adapter's folder. Raises InputError for others and those of another base model."""
    checkpoint = checkpoints.get(workspace.store, checkpoint_id)
    folder = checkpoints.folder(workspace, checkpoint)
    if folder is None:
        raise InputError(f"{checkpoint.name} is a base model; this is for checkpoints that were trained")
    if checkpoint.base_model != workspace.base_model:
        raise InputError(f"{checkpoint.name} belongs to another base model; start the app with "
                         f"BASE_MODEL={checkpoint.base_model} for this")  # fmt: skip
    return checkpoint, folder


def merge(workspace: Workspace, checkpoint_id: int) -> None:
    """Begin to make the merged model's zip."""
    checkpoint, folder = of_base(workspace, checkpoint_id)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{checkpoint.name} is a whole model already; there is nothing to merge")
    config = {
        "checkpoint": str(folder),
        "card": model_card.card(checkpoint, lineage.origin(workspace.store, checkpoint), merged=True),
        "target": str(packages.merged_zip(workspace, checkpoint_id)),
        "name": packages.file_name(checkpoint, "merged"),
    }
    checkpoint_work.start(workspace, "merge", checkpoint_id, config)


def evaluate(
    workspace: Workspace,
    checkpoint_id: int,
    reward_id: int | None = None,
    num_prompts: int = 32,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    seed: int = 0,
) -> None:
    """Begin to measure a checkpoint: a reward model on held-out comparisons, a policy against its parent."""
    checkpoint, folder = of_base(workspace, checkpoint_id)
    job = jobs.get(workspace.store, checkpoint.run_id) if checkpoint.run_id else None
    settings: dict[str, Any] = {}
    config: dict[str, Any] = {"checkpoint": str(folder), "checkpoint_kind": checkpoint.kind, "run": {}}
    if job is not None:
        data = workspace.runs_folder / job.id / Path(str(job.config.get("data"))).name  # the workspace may have moved
        config["run"] = job.config | ({"data": str(data)} if data.is_file() else {})
        config["data_kind"] = jobs.SNAPSHOT_KINDS.get(job.method, "preferences")
    if checkpoint.kind == "reward":
        if job is None:
            raise InputError("it was not trained here, so no comparisons were held out for it")
        evaluation.check_held_out(config["run"])
    else:
        if not FEWEST_PROMPTS <= num_prompts <= MOST_PROMPTS:
            raise InputError(f"choose {FEWEST_PROMPTS} to {MOST_PROMPTS} prompts, not {num_prompts:g}")
        if reward_id is None:
            raise InputError("choose a reward model that scores the answers; train one first where there is none")
        parent = checkpoints.get(workspace.store, checkpoint.parent_id or workspace.base_checkpoint_id)
        parent_folder = checkpoints.folder(workspace, parent)
        settings = {"num_prompts": int(num_prompts), "max_new_tokens": int(max_new_tokens), "temperature": temperature,
                    "seed": seed, "parent": parent.name,
                    "reward_model": checkpoints.get(workspace.store, reward_id).name}  # fmt: skip
        config["parent"] = str(parent_folder) if parent_folder else None
        config["reward_model"] = str(checkpoints.usable(workspace, reward_id, "reward"))
    config |= {"settings": settings,
               "result": str(evaluation.folder(workspace, checkpoint_id) / "result.json")}  # fmt: skip
    checkpoint_work.start(workspace, "evaluate", checkpoint_id, config)


def can_push() -> bool:
    """Whether a token of the hub is set."""
    from huggingface_hub import get_token

    return get_token() is not None


def push(workspace: Workspace, checkpoint_id: int, repository: str, private: bool = True) -> None:
    """Begin to upload the adapter with its card to the hub."""
    if not can_push():
        raise InputError(TOKEN_MISSING)
    repository = repository.strip()
    if not REPOSITORY.fullmatch(repository):
        raise InputError("name the repository as owner/name, such as me/my-policy")
    packages.adapter_parts(workspace, checkpoints.get(workspace.store, checkpoint_id))
    config = {"checkpoint_id": checkpoint_id, "repository": repository, "private": private}
    checkpoint_work.start(workspace, "push", checkpoint_id, config)


def bring_in(workspace: Workspace, files: Sequence[Path], name: str) -> str:
    """Check the files and begin to load them; returns the work's key."""
    name = checkpoint_imports.free_name(workspace, name)
    staged, form = checkpoint_imports.stage(workspace, files)
    try:
        checkpoint_work.start(workspace, "import", staged.name, {"staged": str(staged), "form": form, "name": name})
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return staged.name
