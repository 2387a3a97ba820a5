"""The store without the pages: python -m labeler {init,user,import,export,select,backup}."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sqlite3
import sys
from pathlib import Path

from data.records import InputError
from labeler import checkpoints, jobs, selection, snapshots, users
from labeler.imports import import_file
from labeler.projects import all_projects
from labeler.store import explain
from labeler.workspace import Workspace, open_workspace
from training.config import DEFAULT_MODEL


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        workspace = open_workspace(options.workspace, options.base_model)
        print(COMMANDS[options.command](workspace, options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (sqlite3.Error, OSError) as error:
        print(f"error: {explain(error) if isinstance(error, sqlite3.Error) else error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labeler", description=__doc__)
    parser.add_argument("--workspace", default=os.environ.get("WORKSPACE") or "workspace", help="default: workspace")
    parser.add_argument("--base-model", default=os.environ.get("BASE_MODEL") or DEFAULT_MODEL, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="make the workspace, with the seed prompts, and stop")

    user = commands.add_parser("user", help="people who may log in").add_subparsers(dest="user_command", required=True)
    add = user.add_parser("add", help="make a user, or give one a new role and password")
    add.add_argument("name")
    add.add_argument("--role", choices=users.ROLES, default="annotator")
    add.add_argument("--generate", action="store_true", help="make up a password and print it, instead of asking")
    user.add_parser("list", help="everybody, with their role and number of rankings")

    load = commands.add_parser("import", help="prompts, preferences or demonstrations from a file")
    load.add_argument("file", type=Path)
    export = commands.add_parser("export", help="training data into a .jsonl or .jsonl.gz file")
    export.add_argument("file", type=Path)
    export.add_argument("--kind", choices=snapshots.KINDS, default="preferences")
    select = commands.add_parser(
        "select", help="order a project's open tasks: first where a reward model is least sure"
    )
    select.add_argument("--project", required=True, help="its name")
    select.add_argument("--checkpoint", type=int, help="a reward model's id (default: the newest)")
    select.add_argument("--heads", type=int, default=selection.HEADS, help="of the committee (default %(default)s)")
    select.add_argument("--seed", type=int, default=0, help="of the heads (default 0)")
    select.add_argument(
        "--second-opinions", action="store_true",
        help="give out ranked tasks once more where the model confidently disagrees with a person",
    )  # fmt: skip
    backup = commands.add_parser("backup", help="copy the database, also while the app runs")
    backup.add_argument("file", type=Path)
    return parser


def _init(workspace: Workspace, options: argparse.Namespace) -> str:
    counts = snapshots.count(workspace.store)
    return f"{workspace.folder}: {counts['prompts']:,} prompts, {counts['rankings']:,} rankings"


def _user(workspace: Workspace, options: argparse.Namespace) -> str:
    if options.user_command == "list":
        everybody = users.list_users(workspace.store)
        lines = [
            f"{user['name']}\t{user['role']}\t{'can log in' if user['can_log_in'] else 'no password'}"
            f"\t{user['rankings']} rankings"
            for user in everybody
        ]
        return "\n".join(lines) or "nobody yet"
    generated = options.generate or not sys.stdin.isatty()
    password = secrets.token_urlsafe(12) if generated else getpass.getpass(f"Password for {options.name}: ")
    if not generated and getpass.getpass("Again: ") != password:
        raise InputError("the two passwords differ; nothing was changed")
    user = users.add_user(workspace.store, options.name, options.role, password)
    line = f"{user.name} ({user.role}) can log in"
    return f"{line} with the password {password}" if generated else line


def _import(workspace: Workspace, options: argparse.Namespace) -> str:
    return str(import_file(workspace.store, options.file, users.local_owner(workspace.store)))


def _export(workspace: Workspace, options: argparse.Namespace) -> str:
    owner = users.local_owner(workspace.store)
    snapshot = snapshots.write_snapshot(workspace.store, options.file.resolve(), options.kind, {}, owner)
    return f"{options.file}: {snapshot.counts['rows']:,} rows, sha256 {snapshot.sha256}"


def _select(workspace: Workspace, options: argparse.Namespace) -> str:
    projects = {project.name.lower(): project.id for project in all_projects(workspace.store.db)}
    if options.project.lower() not in projects:
        raise InputError(f"there is no project {options.project!r}; there are {', '.join(projects)}")
    newest = [made.id for made in checkpoints.list_checkpoints(workspace, ["reward"])][:1]
    if options.checkpoint is None and not newest:
        raise InputError("there is no reward model yet; train one in the Train tab first")
    job_id = selection.create(
        workspace,
        users.local_owner(workspace.store),
        projects[options.project.lower()],
        newest[0] if options.checkpoint is None else options.checkpoint,
        heads=options.heads,
        second_opinions=options.second_opinions,
        seed=options.seed,
    )
    told = ""

    def tell(job: jobs.Job) -> None:
        nonlocal told
        line = jobs.running_line(workspace.store)
        if line and line != told:
            print(line, file=sys.stderr)
        told = line

    job = selection.wait(workspace, job_id, tell)
    if job.state != "finished":
        raise InputError(f"{job.label} {job.state}: {job.error or 'somebody stopped it'}")
    return selection.describe(workspace, job)


def _backup(workspace: Workspace, options: argparse.Namespace) -> str:
    workspace.store.backup(options.file)
    return f"{options.file}: {options.file.stat().st_size:,} bytes"


COMMANDS = {"init": _init, "user": _user, "import": _import, "export": _export, "select": _select, "backup": _backup}


if __name__ == "__main__":
    sys.exit(main())
