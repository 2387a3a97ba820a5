"""The store without the pages: python -m labeler {init,user,token,import,export,select,erase,clean,backup}."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sqlite3
import sys
from pathlib import Path

from data.records import InputError
from labeler import checkpoints, erasure, exports, jobs, selection, snapshots, tokens, users
from labeler.imports import ON_ERROR, Progress, import_file
from labeler.imports.columns import FIELDS
from labeler.projects import FIRST, all_projects
from labeler.store import explain, one
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

    token = commands.add_parser("token", help="keys for programs that use the REST interface")
    token_commands = token.add_subparsers(dest="token_command", required=True)
    for name, text in (
        ("create", "make a token and print it, this once"),
        ("list", "the tokens of a user"),
        ("revoke", "make a token worthless"),
    ):
        command = token_commands.add_parser(name, help=text)
        command.add_argument("--user", required=True)
        if name == "create":
            command.add_argument("--name", required=True, help="the program that will use it")
            command.add_argument("--days", type=float, help="how long it lasts; default: until it is revoked")
        elif name == "revoke":
            command.add_argument("id", type=int)

    load = commands.add_parser("import", help="prompts, preferences or demonstrations from a file or dataset folder")
    load.add_argument("file", type=Path)
    load.add_argument("--project", default=str(FIRST), help="id or name of the project that the tasks go to")
    load.add_argument("--on-error", choices=ON_ERROR, default="stop", help="; ".join(map(": ".join, ON_ERROR.items())))
    load.add_argument(
        "--map", action="append", metavar="FIELD=COLUMN", help=f"which column is what: {', '.join(FIELDS)}; repeat it"
    )
    export = commands.add_parser("export", help="training data for us and others; a folder with --format dataset")
    export.add_argument("file", type=Path)
    export.add_argument("--format", choices=exports.FORMS, default="rankings")
    for name, what in snapshots.FILTERS.items():
        if name not in ("top_ranked_as_demonstrations", "event_high_water"):
            export.add_argument(
                f"--{name.replace('_', '-')}", nargs=1 if name in ("since", "until") else "+", help=what
            )
    erase = commands.add_parser("erase", help="delete a person's data for good")
    erase.add_argument("name")
    erase.add_argument("--files", choices=("delete", "keep"), required=True, help="snapshots that held it")
    commands.add_parser("clean", help="rewrite the database without what was deleted, where erase could not")
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
    counts = snapshots.count(workspace.store, kinds=("preferences", "prompts"))
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
    if options.role != "owner" and not users.needs_login(workspace.store):
        raise InputError(
            "once anybody has a password everybody needs one, and no owner has one yet; first "
            f"python -m labeler user add {users.LOCAL_OWNER} --role owner"
        )
    generated = options.generate or not sys.stdin.isatty()
    password = secrets.token_urlsafe(12) if generated else getpass.getpass(f"Password for {options.name}: ")
    if not generated and getpass.getpass("Again: ") != password:
        raise InputError("the two passwords differ; nothing was changed")
    user = users.add_user(workspace.store, options.name, options.role, password)
    line = f"{user.name} ({user.role}) can log in"
    return f"{line} with the password {password}" if generated else line


def _token(workspace: Workspace, options: argparse.Namespace) -> str:
    row = one(workspace.store.db, "SELECT id, name, role FROM users WHERE name = ?", [options.user.strip()])
    if row is None:
        raise InputError(f"there is no user {options.user!r}; make one: python -m labeler user add NAME")
    user = users.User(**row)
    if options.token_command == "create":
        secret, _ = tokens.create_token(workspace.store, user, options.name, options.days)
        return secret
    if options.token_command == "revoke":
        tokens.revoke_token(workspace.store, user, options.id)
        return f"token {options.id} is revoked"
    found = tokens.list_tokens(workspace.store, user)
    lines = [f"{token.id}\t{token.name}\t{'revoked' if token.revoked_at else 'in force'}" for token in found]
    return "\n".join(lines) or "none yet"


def _import(workspace: Workspace, options: argparse.Namespace) -> str:
    projects = {str(key): p.id for p in all_projects(workspace.store.db) for key in (p.id, p.name)}
    if options.project not in projects:
        raise InputError(f"there is no project {options.project!r}; use {', '.join(projects)}")
    mapping: dict[str, str | list[str]] = {}
    for pair in options.map or ():
        field, _, column = pair.partition("=")
        known = mapping.get(field)
        mapping[field] = column if known is None else [*([known] if isinstance(known, str) else known), column]
    owner = users.local_owner(workspace.store)
    result = import_file(
        workspace.store, options.file, owner, project_id=projects[options.project], on_error=options.on_error,
        mapping=mapping or None, watch=_watch if sys.stderr.isatty() else None,
    )  # fmt: skip
    for error in result.errors:
        print(error, file=sys.stderr)
    return str(result)


def _watch(progress: Progress) -> bool:
    total = f" of about {progress.total:,}" if progress.total else ""
    left = f", {progress.left:,.0f} s left" if progress.left else ""
    print(f"\r{progress.stage}: {progress.rows:,}{total} rows{left}\033[K", end="", file=sys.stderr, flush=True)
    return True


def _export(workspace: Workspace, options: argparse.Namespace) -> str:
    owner = users.local_owner(workspace.store)
    filters: dict[str, object] = {}
    for name in snapshots.FILTERS:
        given = getattr(options, name, None)
        if given is None:
            continue
        try:
            if name in ("since", "until"):
                filters[name] = float(given[0])
            else:
                filters[name] = [int(value) for value in given] if name.endswith("_ids") else given
        except ValueError:
            raise InputError(f"--{name.replace('_', '-')} takes numbers, not {' '.join(given)}") from None
    made = exports.write_export(workspace.store, options.file.resolve(), options.format, filters, owner)
    return f"{options.file}: {made.counts['rows']:,} rows, sha256 {made.sha256}"


def _erase(workspace: Workspace, options: argparse.Namespace) -> str:
    person = one(workspace.store.db, "SELECT id FROM users WHERE name = ?", [options.name])
    if person is None:
        raise InputError(f"there is no user {options.name!r}")
    made = erasure.erase(workspace.store, users.local_owner(workspace.store), person["id"], options.files)
    counts = ", ".join(f"{count} {name}" for name, count in made.counts.items())
    return f"erased-{person['id']}: {counts}" + ("" if made.clean else "; now run: python -m labeler clean")


def _clean(workspace: Workspace, options: argparse.Namespace) -> str:
    if not erasure.clean(workspace.store):
        raise InputError("the database is in use; try again when nobody works")
    return "clean"


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


COMMANDS = {
    "init": _init, "user": _user, "token": _token, "import": _import, "export": _export, "select": _select,
    "erase": _erase, "clean": _clean, "backup": _backup,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
