"""The look: Gradio's own variables set to ours, and the style sheet for the rest."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent
STYLES = (
    "style.css",
    "rank.css",
    "cards.css",
    "panels.css",
    "markdown.css",
    "studio.css",
    "chat.css",
    "runs.css",
    "quality.css",
    "checkpoints.css",
    "leaderboard.css",
)
SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO_FONT = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def css() -> str:
    """The page's style sheet."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)


def script(name: str) -> str:
    """A script of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def form_page() -> str:
    """A page with one form, with comments where the title and the fields go."""
    return (FOLDER / "form.html").read_text(encoding="utf-8")


def make() -> gr.themes.Base:
    """Gradio's theme. The colours are those of style.css, so that its components look like our own."""
    theme = gr.themes.Base(font=SYSTEM_FONT, font_mono=MONO_FONT, text_size=gr.themes.sizes.text_lg)
    both = {
        "body_background_fill": "var(--page)",
        "body_text_color": "var(--text)",
        "body_text_color_subdued": "var(--muted)",
        "background_fill_primary": "var(--surface)",
        "background_fill_secondary": "var(--sunken)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-soft)",
        "link_text_color": "var(--accent-text)",
        "link_text_color_hover": "var(--accent-text)",
        "link_text_color_active": "var(--accent-text)",
        "link_text_color_visited": "var(--accent-text)",
        "block_background_fill": "var(--surface)",
        "block_border_color": "var(--line)",
        "block_label_background_fill": "transparent",
        "block_label_border_color": "transparent",
        "block_label_text_color": "var(--muted)",
        "block_title_text_color": "var(--text)",
        "block_info_text_color": "var(--muted)",
        "block_shadow": "none",
        "panel_background_fill": "var(--surface)",
        "panel_border_color": "var(--line)",
        "input_background_fill": "var(--field)",
        "input_border_color": "var(--line-strong)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--muted)",
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 2px var(--accent-soft)",
        "checkbox_background_color": "var(--field)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color": "var(--line-strong)",
        "checkbox_border_color_selected": "var(--accent)",
        "checkbox_label_background_fill": "var(--surface)",
        "checkbox_label_background_fill_hover": "var(--sunken)",
        "checkbox_label_background_fill_selected": "var(--accent-soft)",
        "checkbox_label_border_color": "var(--line)",
        "checkbox_label_border_color_selected": "var(--accent)",
        "checkbox_label_text_color": "var(--text)",
        "checkbox_label_text_color_selected": "var(--text)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-strong)",
        "button_primary_text_color": "var(--on-accent)",
        "button_primary_border_color": "transparent",
        "button_secondary_background_fill": "var(--surface)",
        "button_secondary_background_fill_hover": "var(--sunken)",
        "button_secondary_text_color": "var(--text)",
        "button_secondary_border_color": "var(--line-strong)",
        "button_cancel_background_fill": "var(--surface)",
        "button_cancel_background_fill_hover": "var(--sunken)",
        "button_cancel_text_color": "var(--bad)",
        "button_cancel_border_color": "var(--line-strong)",
        "slider_color": "var(--accent)",
        "stat_background_fill": "var(--accent-soft)",
        "table_border_color": "var(--line)",
        "table_even_background_fill": "var(--surface)",
        "table_odd_background_fill": "var(--surface)",
        "table_row_focus": "var(--accent-soft)",
        "table_text_color": "var(--text)",
        "code_background_fill": "var(--sunken)",
        "error_background_fill": "var(--bad-soft)",
        "error_border_color": "var(--bad)",
        "error_text_color": "var(--bad)",
        "accordion_text_color": "var(--text)",
    }
    known = {name for name in dir(theme) if not name.startswith("_")} | set(_parameters(theme))
    values = {name: value for name, value in both.items() if name in known}
    values |= {f"{name}_dark": value for name, value in both.items() if f"{name}_dark" in known}
    radius = {name: "var(--radius)" for name in known if name.endswith("_radius")}
    plain = {
        "color_accent": "var(--accent)",
        "block_border_width": "1px",
        "checkbox_border_radius": "3px",  # with the one radius of the rest it would look like a radio button
        "button_border_width": "1px",
        "button_large_text_weight": "600",
        "button_small_text_weight": "500",
    }
    return theme.set(**values | radius | {name: value for name, value in plain.items() if name in known})


def _parameters(theme: gr.themes.Base) -> list[str]:
    import inspect

    return list(inspect.signature(theme.set).parameters)
