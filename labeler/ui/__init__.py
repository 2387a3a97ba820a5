"""The pages: a header and one tab for each step of the loop."""

from __future__ import annotations

import gradio as gr

from labeler.ui import chat, checkpoints, compare, leaderboard, quality, rank, rounds, runs, team, theme, train
from labeler.ui import data as data_tab
from labeler.workspace import Workspace

TABS = (
    ("Rank", rank.build),
    ("Chat", chat.build),
    ("Compare", compare.build),
    ("Leaderboard", leaderboard.build),
    ("Train", train.build),
    ("Runs", runs.build),
    ("Checkpoints", checkpoints.build),
    ("Rounds", rounds.build),
    ("Quality", quality.build),
    ("Data", data_tab.build),
    ("Team", team.build),
)

HIDDEN_TABS = {
    "annotator": ("Leaderboard", "Train", "Runs", "Checkpoints", "Rounds", "Quality", "Data", "Team"),
    "lead": ("Train",),
}
"""Tabs that a role does not need. header.js hides them, since Gradio's own way to hide a tab that was never opened has
no effect. It is for calm, not for safety: every handler checks who asks."""

HEADER = """
<header class="site-header">
  <strong class="site-name">Preference Loop</strong>
  <span class="site-running" role="status" hidden></span>
  <span class="site-user"></span>
  <form class="site-logout" method="post" action="logout" hidden><button>Log out</button></form>
</header>
"""


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page. Nothing on it needs the model until somebody chats."""
    with gr.Blocks(title="Preference Loop", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            html_template=HEADER,
            js_on_load=theme.script("header.js"),
            apply_default_css=False,
            elem_id="site-header",
            container=False,
        )
        with gr.Tabs(elem_id="tabs"):
            for label, build_tab in TABS:
                with gr.Tab(label, id=label.lower(), elem_id=f"tab-{label.lower()}"):
                    build_tab(workspace)
    return page
