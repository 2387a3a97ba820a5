"""A form from a method's config dataclass: the knobs are defined once, in training.config, and shown here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from data.records import InputError
from training.config import TrainingConfig
from training.knobs import Knob, from_dict, knobs

FILES = "Files"
"""The section of paths: those have pickers of their own and are no fields of the form."""

SPELLING = {"lora": "LoRA", "ppo": "PPO", "eos": "EOS", "kl": "KL", "adam": "Adam"}


def fields(config_class: type[TrainingConfig]) -> list[Knob]:
    """The knobs that the form shows: common ones first, then section by section."""
    shown = [knob for knob in knobs(config_class) if knob.section != FILES]
    sections = list(dict.fromkeys(knob.section for knob in shown))
    return sorted(shown, key=lambda knob: (not knob.common, -1 if knob.common else sections.index(knob.section)))


def label(name: str) -> str:
    """ "max_new_tokens" -> "Max new tokens"."""
    words = [SPELLING.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + words[0][1:] + "".join(f" {word}" for word in words[1:])


def build(config_class: type[TrainingConfig]) -> list[Any]:
    """Make the fields where the caller stands in the page: common ones open, the rest folded, by section.

    Returns the components in the order of `fields`.
    """
    shown = fields(config_class)
    components = []
    with gr.Row(elem_classes="knobs"):
        components += [_component(knob) for knob in shown if knob.common]
    rest = [knob for knob in shown if not knob.common]
    with gr.Accordion(f"More settings ({len(rest)})", open=False):
        for section in dict.fromkeys(knob.section for knob in rest):
            gr.HTML(f'<p class="knobs-title">{section}</p>', apply_default_css=False, elem_classes=["studio"])
            with gr.Row(elem_classes="knobs"):
                components += [_component(knob) for knob in rest if knob.section == section]
    return components


def _component(knob: Knob) -> Any:
    name = label(knob.name)
    ident = f"knob-{knob.name}"
    if knob.type is bool:
        return gr.Checkbox(value=knob.default, label=name, info=knob.help, elem_classes=[ident])
    if knob.choices:
        return gr.Dropdown(list(knob.choices), value=knob.default, label=name, info=knob.help, elem_classes=[ident])
    if knob.type in (int, float):
        # no minimum, maximum or precision: Gradio would round, or complain in a toast that vanishes
        number: dict[str, Any] = {"step": 1} if knob.type is int else {}
        return gr.Number(value=knob.default, label=name, info=_help(knob), elem_classes=[ident], **number)
    return gr.Textbox(value=knob.default or "", label=name, info=knob.help, max_lines=1, elem_classes=[ident])


def _help(knob: Knob) -> str:
    return f"{knob.help} Empty: not set." if knob.optional else knob.help


def read(config_class: type[TrainingConfig], values: Sequence[Any]) -> dict[str, Any]:
    """The settings in a form's values (as the components of `build` give them), checked.

    Raises InputError that names the field as the form does.
    """
    shown = fields(config_class)
    settings = {knob.name: value for knob, value in zip(shown, values, strict=True)}
    try:
        checked = from_dict(config_class, settings)
    except InputError as error:
        raise InputError(readable(str(error), config_class)) from None
    return {knob.name: getattr(checked, knob.name) for knob in shown}


def readable(message: str, config_class: type[TrainingConfig]) -> str:
    """Knob names in a message as the form's labels; the longest first, so that no name is cut out of another."""
    for knob in sorted(knobs(config_class), key=lambda knob: -len(knob.name)):
        if "_" in knob.name:
            message = message.replace(knob.name, label(knob.name))
        elif message.startswith(f"{knob.name} "):
            message = label(knob.name) + message[len(knob.name) :]
    return message
