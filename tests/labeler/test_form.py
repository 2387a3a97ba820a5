"""The form: every knob of the dataclass and none by hand, values back to settings, errors in the form's words."""

from __future__ import annotations

import gradio as gr
import pytest

from data.records import InputError
from labeler import form
from training.config import METHODS
from training.knobs import from_dict, knobs


@pytest.mark.parametrize("method", METHODS)
def test_every_knob_has_a_field_and_files_have_none(method: str) -> None:
    config_class = METHODS[method]
    with gr.Blocks():
        components = form.build(config_class)
    shown = form.fields(config_class)
    assert {knob.name for knob in shown} == {knob.name for knob in knobs(config_class) if knob.section != "Files"}
    assert len(components) == len(shown)
    for knob, component in zip(shown, components, strict=True):
        assert component.label == form.label(knob.name)
        assert component.info.startswith(knob.help), f"{knob.name} has no help"
        assert component.value == (knob.default if knob.default is not None else component.value)


@pytest.mark.parametrize("method", METHODS)
def test_common_knobs_come_first_and_the_rest_is_folded(method: str) -> None:
    shown = form.fields(METHODS[method])
    common = [knob.common for knob in shown]
    assert common == sorted(common, reverse=True)
    assert any(common)
    with gr.Blocks():
        components = form.build(METHODS[method])

    def folded(component: gr.components.Component) -> bool:
        block = component.parent
        while block is not None:
            if isinstance(block, gr.Accordion):
                return not block.open
            block = block.parent
        return False

    assert [folded(component) for component in components] == [not is_common for is_common in common]


@pytest.mark.parametrize("method", METHODS)
def test_the_form_as_it_stands_means_the_defaults(method: str) -> None:
    config_class = METHODS[method]
    with gr.Blocks():
        values = [component.value for component in form.build(config_class)]
    settings = form.read(config_class, values)
    assert from_dict(config_class, settings) == config_class()


def change(method: str, name: str, value: object) -> dict:
    config_class = METHODS[method]
    values = [value if knob.name == name else knob.default for knob in form.fields(config_class)]
    return form.read(config_class, values)


def test_numbers_arrive_as_the_browser_sends_them() -> None:
    assert change("dpo", "max_steps", 7.0)["max_steps"] == 7
    assert isinstance(change("dpo", "max_steps", 7.0)["max_steps"], int)
    assert change("dpo", "learning_rate", 1)["learning_rate"] == 1.0
    assert change("dpo", "fold", None)["fold"] is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_steps", 2.5, "Max steps must be a whole number"),
        ("beta", -1, "Beta must be at least"),
        ("beta", None, "Beta must be set"),
        ("learning_rate", 3, "Learning rate must be at most 1"),
        ("lora_rank", 0, "LoRA rank must be at least 1"),
        ("schedule", "zigzag", "Schedule must be one of cosine"),
    ],
)
def test_an_error_names_the_field_as_the_form_does(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        change("dpo", name, value)


def test_a_rule_between_fields_is_checked() -> None:
    with pytest.raises(InputError, match="Batch size 16 is not a multiple of Samples per prompt 3"):
        change("ppo", "samples_per_prompt", 3)
