"""Compare's batch mode: a set of prompts, answered by the chosen checkpoints, becomes a blind labeling project."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import jobs, sampling
from labeler.auth import current_user
from labeler.chat import Sampling
from labeler.projects import all_projects
from labeler.store import rows
from labeler.ui import page
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

EVERYTHING, UNRANKED = 0, -1
"""The choices besides projects in the menu of prompt sets."""
SETS = [("all prompts", EVERYTHING), ("unranked prompts", UNRANKED)]
ABOUT = """<p class="meta" style="max-width: 75ch">The checkpoints chosen above answer every prompt of a set. The
answers become the tasks of a new project in Rank: shuffled, without names, for as many people as you like. Their
rankings count in the Leaderboard.</p>"""


def build(workspace: Workspace, models: gr.Dropdown, settings: Sequence[Any]) -> None:
    """The folded section; `models` are the chosen checkpoints and `settings` the fields of Sampling."""
    with gr.Accordion("Many prompts: a labeling project", open=False, elem_id="compare-batch"):
        page.html(ABOUT)
        with gr.Row(elem_classes="knobs"):
            name = gr.Textbox(label="Name of the project", max_lines=1, elem_id="batch-name")
            prompts = gr.Dropdown([], label="Prompts of", elem_id="batch-prompts")
            count = gr.Number(50, label="Prompts at most", precision=0, minimum=1, elem_id="batch-count")
            each = gr.Number(1, label="Answers of each checkpoint", precision=0, minimum=1, elem_id="batch-each")
        create = gr.Button("Sample and make the project", scale=0, min_width=240, elem_id="batch-create")
        told = page.html(elem_id="batch-told")

    def refresh(chosen: int | None, request: gr.Request) -> Any:
        if current_user(request, workspace).role not in sampling.SAMPLERS:
            return gr.skip()  # the names of all projects are not everybody's
        found = [*SETS, *((one.name, one.id) for one in all_projects(workspace.store.db))]
        return gr.Dropdown(found, value=page.keep_choice(found, chosen, EVERYTHING))

    def start(
        request: gr.Request, title: str, chosen: list[int], source: int | None, most: Any, number: Any, *drawn: Any
    ) -> str:
        try:
            user = current_user(request, workspace)
            if user.role not in sampling.SAMPLERS:
                raise InputError(f"{user.name} may not sample completions; ask a researcher or a lead")
            if not (title or "").strip():
                raise InputError("Give the project a name.")
            if not chosen:
                raise InputError("Choose a checkpoint or more at the top of the page.")
            settings = Sampling(*drawn)
            picked = prompt_ids(workspace, source or EVERYTHING, int(most or 0), settings.seed)
            title = title.strip()
            made = sampling.create(workspace, user, title, chosen, picked, int(number or 0), settings.settings())
            label = jobs.get(workspace.store, made).label
        except InputError as error:
            return notice(str(error))
        who = f"{len(chosen)} checkpoint{'s' if len(chosen) > 1 else ''}"
        return notice(
            f"{label} is queued: {who} to answer {len(picked):,} prompts. Its progress is in Runs; the project "
            f"{title} is in Rank as soon as it has answers.",
            "info",
        )

    create.click(start, [name, models, prompts, count, each, *settings], told, **page.QUIET)
    page.on_show(refresh, [prompts], [prompts])


def prompt_ids(workspace: Workspace, chosen: int, most: int, seed: int) -> list[int]:
    """Up to `most` prompts of a set, drawn by the seed: of a project's tasks, of those without a ranking in force
    (UNRANKED: no run has learned from them), or of all (EVERYTHING).

    What people typed in Chat and Compare is theirs and not among them. Raises InputError where there are none.
    """
    ranked = "SELECT t.prompt_id FROM in_force AS f JOIN tasks AS t ON t.id = f.task_id"
    wanted = {EVERYTHING: "true", UNRANKED: f"id NOT IN ({ranked})"}.get(
        chosen, "id IN (SELECT prompt_id FROM tasks WHERE project_id = :project)"
    )
    sql = f"SELECT id FROM prompts WHERE {wanted} AND source NOT IN ('chat', 'compare') ORDER BY id"
    found = [row["id"] for row in rows(workspace.store.db, sql, {"project": chosen})]
    if not found:
        raise InputError("There are no prompts in this set; import some in Data, or choose another set.")
    if most < 1:
        raise InputError("Ask for at least one prompt.")
    return sorted(random.Random(seed).sample(found, min(most, len(found))))
