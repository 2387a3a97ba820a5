"""The projects of the Team tab: what is asked of whom, how far it is, and the guidelines."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import projects
from labeler.projects import ORDERS, QUESTIONS, Project
from labeler.store import rows
from labeler.ui import known_answers, page
from labeler.users import User, list_users
from labeler.workspace import Workspace

ORDER_CHOICES = [
    ("As they were added", "queue"),
    ("At random, for each annotator in another order", "random"),
    ("First where the reward model is least sure", "active"),
]
QUESTION_CHOICES = [
    ("Ranking: put 2 to 9 completions in order", "ranking"),
    ("Pairs: which of two is better, and by how much", "pairwise"),
    ("Ratings: give each completion 1 to 5", "ratings"),
]
assert {value for _, value in ORDER_CHOICES} == set(ORDERS)
assert {value for _, value in QUESTION_CHOICES} == set(QUESTIONS)

TITLES = ("Project", "Question", "Tasks", "Still open", "Labels", "Annotators", "Known answers", "For")


def build(workspace: Workspace) -> None:
    """Make the section where the caller stands in the page."""
    page.html("<h2>Projects</h2>")
    listed = page.html(elem_id="projects-table")
    with gr.Row():
        picker = gr.Dropdown([], label="Project to change", elem_id="project-picker", min_width=260)
        new_name = gr.Textbox(label="Or a new one, called", max_length=100, elem_id="project-new", min_width=260)
        create = gr.Button("Create project", scale=0, min_width=160, elem_id="project-create")
    told = page.html(elem_id="project-notice")
    with gr.Accordion("Settings", open=False, elem_id="project-settings"):
        fields = _fields()
        with gr.Row(elem_classes="buttons"):
            save = gr.Button("Save settings", variant="primary", min_width=160, elem_id="project-save")
            archive = gr.Button("Close the project", min_width=160, elem_id="project-archive")
        saved = page.html(elem_id="project-saved")
    with gr.Accordion("Guidelines", open=False, elem_id="project-guidelines"):
        text = gr.Textbox(
            label="What annotators read beside their task (Markdown)", lines=10, max_lines=30, elem_id="guidelines-text"
        )
        with gr.Row():
            version = gr.Dropdown([], label="Versions", elem_id="guidelines-version", min_width=260)
            write = gr.Button("Save as a new version", variant="primary", scale=0, min_width=200)
        written = page.html(elem_id="guidelines-notice")
    refresh_known = known_answers.build(workspace, picker)

    shown = [*fields.values(), archive, text, version]
    displayed: Any = gr.State(None)  # whose settings stand in the fields

    def look(chosen: int | None, request: gr.Request) -> list[Any]:
        try:
            page.lead(request, workspace)
        except InputError as error:
            return [escape(str(error)), gr.Dropdown([], value=None)]
        found = projects.all_projects(workspace.store.db)
        choices = [(f"{p.name} (closed)" if p.archived else p.name, p.id) for p in found]
        value = page.keep_choice(choices, chosen, found[0].id)
        return [projects_table(workspace, found), gr.Dropdown(choices, value=value)]

    def load(project_id: int | None, request: gr.Request) -> list[Any]:
        try:
            page.lead(request, workspace)
        except InputError:
            return [gr.skip() for _ in shown]
        if project_id is None:
            return [gr.skip() for _ in shown]
        project = projects.get_project(workspace.store.db, project_id)
        return [*settings_of(workspace, project), *_guidelines(workspace, project)]

    def load_other(project_id: int | None, before: int | None, request: gr.Request) -> list[Any]:
        """The choice also "changes" when the list is redrawn: what somebody is typing then must stay."""
        if project_id == before:
            return [gr.skip() for _ in (*shown, displayed)]
        return [*load(project_id, request), project_id]

    def make(name: str, chosen: int | None, request: gr.Request) -> list[Any]:
        made: list[Project] = []

        def act(user: User) -> str:
            made.append(projects.create_project(workspace.store, user, name or ""))
            return f"{made[0].name} was made. Say below what it asks, then import tasks for it in the Data tab."

        said = page.attempt(request, workspace, act)
        return [said, *look(made[0].id if made else chosen, request), "" if made else gr.skip()]

    def keep(chosen: int | None, *rest: Any, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            values = dict(zip(fields, rest, strict=True))
            people = values.pop("members")
            values["tags"] = (values["tags"] or "").split(",")
            with workspace.store.write():
                project = projects.change_project(workspace.store, user, _chosen(chosen), **values)
                projects.set_members(workspace.store, user, project.id, [int(person) for person in people or []])
            gold = projects.counts(workspace.store.db)[project.id]["num_gold"]
            if gold < project.qualification:
                return (
                    f"Saved. But {project.qualification} known answers come first and the project has {gold}: nobody "
                    "can begin until there are more. Add some under Known answers."
                )
            return "Saved."

        return [page.attempt(request, workspace, act), *look(chosen, request)]

    def close(chosen: int | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            project = projects.get_project(workspace.store.db, _chosen(chosen))
            projects.archive_project(workspace.store, user, project.id, archived=not project.archived)
            return f"{project.name} is {'open again' if project.archived else 'closed; nothing in it is lost'}."

        return [page.attempt(request, workspace, act), *look(chosen, request)]

    def note(chosen: int | None, new_text: str, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            number = projects.write_guidelines(workspace.store, user, _chosen(chosen), new_text or "")
            return (
                f"This is version {number} now." if number else "There is nothing to save yet; write something first."
            )

        said = page.attempt(request, workspace, act)
        return [said, *load(chosen, request)[-2:]]

    def turn_back(chosen: int | None, number: int | None, request: gr.Request) -> Any:
        try:
            page.lead(request, workspace)
        except InputError:
            return gr.skip()
        versions = projects.guidelines_versions(workspace.store.db, chosen or 0)
        return next((row["text"] for row in versions if row["version"] == number), gr.skip())

    overview = [listed, picker]
    page.on_show(look, [picker], overview)
    picker.change(load_other, [picker, displayed], [*shown, displayed], **page.QUIET).then(
        refresh_known[0], *refresh_known[1:], **page.QUIET
    )
    create.click(make, [new_name, picker], [told, *overview, new_name], **page.QUIET)
    save.click(_with_request(keep), [picker, *fields.values()], [saved, *overview], **page.QUIET)
    archive.click(close, picker, [saved, *overview], **page.QUIET).then(load, picker, shown, **page.QUIET)
    write.click(note, [picker, text], [written, text, version], **page.QUIET)
    version.input(turn_back, [picker, version], text, **page.QUIET)


def _with_request(fn: Any) -> Any:
    """Gradio finds the request by its annotation among the positional arguments."""

    def called(request: gr.Request, *values: Any) -> Any:
        return fn(*values, request=request)

    return called


def _chosen(project_id: int | None) -> int:
    if project_id is None:
        raise InputError("choose a project first")
    return int(project_id)


def _fields() -> dict[str, Any]:
    """A field for each setting, by the name of its column; and the members."""
    with gr.Row(elem_classes="knobs"):
        fields: dict[str, Any] = {
            "name": gr.Textbox(label="Name", max_length=100),
            "question": gr.Radio(QUESTION_CHOICES, label="Question"),
            "overlap": gr.Number(
                label="Annotators a task",
                precision=0,
                minimum=1,
                info="For tasks added from now on.",
                elem_id="p-overlap",
            ),
            "task_order": gr.Radio(ORDER_CHOICES, label="Order"),
        }
    with gr.Row(elem_classes="knobs"):
        fields |= {
            "gold_rate": gr.Slider(0, 0.5, step=0.01, label="Share of known answers mixed in"),
            "repeat_rate": gr.Slider(0, 0.4, step=0.01, label="Share of tasks shown to somebody again"),
            "qualification": gr.Number(
                label="Known answers before real work", precision=0, minimum=0, info="0: nobody has to qualify."
            ),
            "pass_mark": gr.Slider(0, 1, step=0.01, label="Agreement with them that is enough"),
        }
    fields["tags"] = gr.Textbox(label="Tags for completions, with commas between", lines=2)
    with gr.Row(elem_classes="knobs"):
        fields["for_everybody"] = gr.Checkbox(label="Everybody may work on it")
        fields["members"] = gr.Dropdown([], multiselect=True, label="Else these people and the leads")
    return fields


def settings_of(workspace: Workspace, project: Project) -> list[Any]:
    """What the fields and the button that closes the project show."""
    people = [(f"{user['name']} ({user['role']})", user["id"]) for user in list_users(workspace.store)]
    chosen = [row["id"] for row in projects.members(workspace.store.db, project.id)]
    return [
        project.name,
        project.question,
        project.overlap,
        project.task_order,
        project.gold_rate,
        project.repeat_rate,
        project.qualification,
        project.pass_mark,
        ", ".join(project.tags),
        project.for_everybody,
        gr.Dropdown(people, value=chosen),
        "Open the project again" if project.archived else "Close the project",
    ]


def _guidelines(workspace: Workspace, project: Project) -> list[Any]:
    versions = [
        (
            f"{row['version']} · {time.strftime('%Y-%m-%d %H:%M', time.localtime(row['created_at']))}"
            f" · {row['name'] or 'somebody'}",
            row["version"],
        )
        for row in projects.guidelines_versions(workspace.store.db, project.id)
    ]
    return [project.guidelines, gr.Dropdown(versions, value=project.guidelines_version or None)]


def projects_table(workspace: Workspace, found: list[Project]) -> str:
    """One row a project; HTML."""
    counted = projects.counts(workspace.store.db)
    sizes = {row["project_id"]: row["n"] for row in rows(workspace.store.db, _MEMBERS)}
    body = []
    for project in found:
        row = counted[project.id]
        done = row["num_tasks"] - row["num_open"]
        share = f" ({done / row['num_tasks']:.0%} done)" if row["num_tasks"] else " (import some in Data)"
        people = sizes.get(project.id, 0)
        body.append(
            [
                f"<b>{escape(project.name)}</b>{' · closed' if project.archived else ''}",
                escape(project.question),
                f"{row['num_tasks']:,}{share}",
                f"{row['num_open']:,}",
                f"{row['labels']:,}",
                f"{row['annotators']:,}",
                f"{row['num_gold']:,}",
                "everybody" if project.for_everybody else f"{people:,} member{'' if people == 1 else 's'}",
            ]
        )
    return page.table(TITLES, body, "Projects")


_MEMBERS = "SELECT project_id, count(*) AS n FROM members GROUP BY project_id"
