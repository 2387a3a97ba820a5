"""Recipes as cards, each started by one click."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, recipes
from labeler.ui import page
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

# A button rests for a moment: a double click must not queue everything twice.
START = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-recipe]');
  if (!button || button.disabled) return;
  button.disabled = true;
  setTimeout(() => { button.disabled = false; }, 2000);
  trigger('select', {recipe: button.dataset.recipe});
});
"""


def build(workspace: Workspace) -> Any:
    """Make the cards where the caller stands in the page; the event after which the queue is another one."""
    cards = page.html(recipe_cards(), js_on_load=START, elem_id="train-recipes")
    said = page.html(elem_id="train-recipe-said")

    def begin(request: gr.Request, event: gr.EventData) -> str:
        try:
            made = recipes.start(workspace, page.trainer(request, workspace), str(event.recipe))
        except InputError as error:
            return notice(str(error))
        names = ", then ".join(checkpoints.run_label(job_id) for job_id in made)
        return notice(f"Queued {names}. They learn from the labels there are now; watch them below.", "info")

    return cards.select(begin, None, said, **page.QUIET)


def recipe_cards() -> str:
    """HTML."""
    cards = "".join(
        f'<li><h3>{escape(each.title)}</h3><p>{escape(each.about)}</p><button type="button" data-recipe="{each.name}" '
        f'aria-label="Start {escape(each.title)}">Start</button></li>'
        for each in recipes.RECIPES.values()
    )
    return f'<h2>Recipes</h2><ul class="recipes">{cards}</ul>'
