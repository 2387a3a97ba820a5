"""The Team tab's part about tasks with known answers, and about who qualified with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import gold, projects, qualification
from labeler.store import one, rows
from labeler.ui import page
from labeler.users import User
from labeler.workspace import Workspace

Refresh = tuple[Callable[..., Any], list[Any], list[Any]]


def build(workspace: Workspace, picker: gr.Dropdown) -> Refresh:
    """Make the parts where the caller stands; returns what shows the chosen project: a function, inputs, outputs."""
    with gr.Accordion("Known answers", open=False, elem_id="project-gold"):
        listed = page.html()
        with gr.Row():
            ranked = gr.Dropdown([], label="A task that you ranked, or that was adjudicated", elem_id="gold-ranked")
            use = gr.Button("Make that ranking the known answer", scale=0, min_width=260, elem_id="gold-use")
        with gr.Row():
            number = gr.Number(label="Or any task, by its number", precision=0, elem_id="gold-task")
            show = gr.Button("Show the task", scale=0, min_width=140)
        task = page.html(elem_id="gold-shown")
        with gr.Row():
            ranks = gr.Textbox(
                label="Ranks of its completions", placeholder="1 2 2 -", elem_id="gold-ranks", min_width=200
            )
            keep = gr.Button("Make these the known answer", scale=0, min_width=220, elem_id="gold-keep")
            drop = gr.Button("Make it an ordinary task", scale=0, min_width=200, elem_id="gold-drop")
        said = page.html(elem_id="gold-notice")
    with gr.Accordion("Qualification", open=False, elem_id="project-qualification"):
        standing = page.html(elem_id="qualification-table")
        with gr.Row():
            person = gr.Dropdown([], label="Person", elem_id="qualification-person")
            let_in = gr.Button("Let them in", scale=0, min_width=140, elem_id="qualification-let-in")
            again = gr.Button("Let them try again", scale=0, min_width=160, elem_id="qualification-again")
        decided = page.html(elem_id="qualification-notice")

    outputs = [listed, ranked, standing, person]

    def look(project_id: int | None, request: gr.Request) -> list[Any]:
        try:
            user = page.lead(request, workspace)
        except InputError:
            return [gr.skip() for _ in outputs]
        if project_id is None:
            return [gr.skip() for _ in outputs]
        db, project = workspace.store.db, projects.get_project(workspace.store.db, project_id)
        choices = [
            (f"{row['id']} · {_short(row['messages'])}{' · adjudicated' if row['adjudicated'] else ''}", row["id"])
            for row in gold.candidates(db, user, project_id)
        ]
        people = [(f"{found['name']} ({found['role']})", found["id"]) for found in _people(workspace)]
        return [
            gold_table(workspace, project_id),
            gr.Dropdown(choices, value=None),
            standing_table(workspace, project),
            gr.Dropdown(people, value=None),
        ]

    def change(request: gr.Request, act: Callable[[User], str], project_id: int | None) -> list[Any]:
        return [page.attempt(request, workspace, act), *look(project_id, request)]

    def take(project_id: int | None, task_id: int | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            found = gold.set_gold_as_ranked(workspace.store, user, _task(workspace, project_id, task_id))
            return f"Task {task_id} has the known answer {_words(found)}."

        return change(request, act, project_id)

    def set_ranks(project_id: int | None, task_id: int | None, text: str, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            found = read_ranks(text)
            gold.set_gold(workspace.store, user, _task(workspace, project_id, task_id), found)
            return f"Task {task_id} has the known answer {_words(found)}."

        return change(request, act, project_id)

    def unset(project_id: int | None, task_id: int | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            gold.set_gold(workspace.store, user, _task(workspace, project_id, task_id), None)
            return f"Task {task_id} is an ordinary task again."

        return change(request, act, project_id)

    def show_task(project_id: int | None, task_id: int | None, request: gr.Request) -> str:
        try:
            page.lead(request, workspace)
            return task_html(workspace, _task(workspace, project_id, task_id))
        except InputError as error:
            problem = error
        return page.attempt(request, workspace, lambda _: _raise(problem))

    def decide(how: Callable[..., None], words: str) -> Callable[..., list[Any]]:
        def handler(project_id: int | None, user_id: int | None, request: gr.Request) -> list[Any]:
            def act(user: User) -> str:
                if project_id is None or user_id is None:
                    raise InputError("choose a person first")
                how(workspace.store, user, int(user_id), int(project_id))
                return words

            return change(request, act, project_id)

        return handler

    use.click(take, [picker, ranked], [said, *outputs], **page.QUIET)
    keep.click(set_ranks, [picker, number, ranks], [said, *outputs], **page.QUIET)
    drop.click(unset, [picker, number], [said, *outputs], **page.QUIET)
    show.click(show_task, [picker, number], task, **page.QUIET)
    let_in.click(
        decide(qualification.let_in, "They may work in this project now."),
        [picker, person],
        [decided, *outputs],
        **page.QUIET,
    )
    again.click(
        decide(qualification.reset, "They get other known answers, and begin anew."),
        [picker, person],
        [decided, *outputs],
        **page.QUIET,
    )
    page.on_show(look, [picker], outputs)
    return look, [picker], outputs


def read_ranks(text: str) -> list[int | None]:
    """Ranks as people type them: "1 2 2 -", in the task's order; a dash says nothing of a completion."""
    words = (text or "").replace(",", " ").split()
    for word in words:
        if word not in ("-", "–", "0") and not (word.isascii() and word.isdigit()):
            raise InputError(f"{word!r} is no rank; type one number each, such as 1 2 2 -")
    return [None if word in ("-", "–", "0") else int(word) for word in words]


def gold_table(workspace: Workspace, project_id: int) -> str:
    """The known answers; HTML."""
    found = gold.gold_tasks(workspace.store.db, project_id)
    if not found:
        return (
            '<p class="empty">No task has a known answer yet. Rank a task in the Rank tab and choose it below: it then '
            "tests annotators, and nothing is learned from it.</p>"
        )
    body = [
        [str(row["id"]), escape(_short(row["messages"])), _words(json.loads(row["gold_ranks"])), f"{row['answers']:,}"]
        for row in found[:200]
    ]
    more = f'<p class="meta">and {len(found) - 200:,} more</p>' if len(found) > 200 else ""
    return page.table(("Task", "Prompt", "Known answer", "Answers"), body, "Known answers") + more


def standing_table(workspace: Workspace, project: projects.Project) -> str:
    """Who qualified; HTML."""
    if not project.qualification:
        return '<p class="empty">Nobody has to qualify. Set "Known answers before real work" to ask for it.</p>'
    found = qualification.everybody(workspace.store.db, project)
    if not found:
        return '<p class="empty">Nobody has begun yet.</p>'
    body = []
    for person, status in found:
        agreement = "–" if status.agreement is None else f"{status.agreement:.0%} of {status.pairs} pairs"
        state = "passed" if status.passed else "fell short" if status.failed else "at it"
        body.append([escape(person["name"]), f"{status.done} of {status.needed}", agreement, state])
    return page.table(("Person", "Answered", "As known", "State"), body, "Qualification")


def task_html(workspace: Workspace, task_id: int) -> str:
    """A task's prompt and completions in its own order, as plain text; HTML."""
    db = workspace.store.db
    task = one(
        db,
        "SELECT t.gold_ranks, p.messages FROM tasks AS t JOIN prompts AS p ON p.id = t.prompt_id WHERE t.id = ?",
        [task_id],
    )
    texts = rows(
        db,
        """SELECT c.text FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id
           WHERE tc.task_id = ? ORDER BY tc.position""",
        [task_id],
    )
    assert task is not None
    known = f"Known answer: {_words(json.loads(task['gold_ranks']))}" if task["gold_ranks"] else "No known answer yet"
    prompt = json.loads(task["messages"])[-1]["content"]
    items = "".join(f"<li>{escape(row['text'][:2000])}</li>" for row in texts)
    return (
        f'<div class="shown-task"><p><b>{escape(prompt[:2000])}</b></p><ol>{items}</ol>'
        f'<p class="meta">{escape(known)}</p></div>'
    )


def _task(workspace: Workspace, project_id: int | None, task_id: int | None) -> int:
    if task_id is None:
        raise InputError("choose a task first")
    sql = "SELECT 1 FROM tasks WHERE id = ? AND project_id = ?"
    if one(workspace.store.db, sql, [task_id, project_id]) is None:
        raise InputError(f"there is no task {task_id} in this project")
    return int(task_id)


def _people(workspace: Workspace) -> list[dict[str, Any]]:
    sql = "SELECT id, name, role FROM users WHERE role NOT IN ('lead', 'owner') ORDER BY name"
    return rows(workspace.store.db, sql)


def _raise(error: InputError) -> str:
    raise error


def _short(messages: str) -> str:
    return " ".join(json.loads(messages)[-1]["content"].split())[:80]


def _words(ranks: list[int | None]) -> str:
    return " ".join("–" if rank is None else str(rank) for rank in ranks)
