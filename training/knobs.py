"""What a knob is: a dataclass field with its help, range and choices, from which flags, form and docs are made."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import field
from typing import Any, NamedTuple

from data.records import InputError


class Knob(NamedTuple):
    """What the command line and the form need to know of one field of a config."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    common: bool
    section: str
    optional: bool


def knob(
    default: Any,
    help: str,
    *,
    section: str,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    common: bool = False,
) -> Any:
    """A dataclass field that carries its own documentation and range."""
    meta = {
        "help": help,
        "section": section,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "common": common,
    }
    return field(default=default, metadata=meta)


def knobs(config_class: type[Any]) -> list[Knob]:
    """Every field of a config class, in its order of definition."""
    hints = typing.get_type_hints(config_class)
    found = []
    for item in dataclasses.fields(config_class):
        hint = hints[item.name]
        optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        kind = next(t for t in typing.get_args(hint) if t is not type(None)) if optional else hint
        meta = item.metadata
        found.append(
            Knob(
                item.name, kind, item.default, meta["help"], meta["choices"], meta["minimum"], meta["maximum"],
                meta["common"], meta["section"], optional,
            )
        )  # fmt: skip
    return found


def checked(item: Knob, value: Any) -> Any:
    """The value in the knob's type and range, or an InputError that names the knob."""
    if value is None or (item.optional and value == ""):
        if item.optional:
            return None
        raise InputError(f"{item.name} must be set")
    if item.type is bool:
        if not isinstance(value, bool):
            raise InputError(f"{item.name} must be true or false, not {value!r}")
        return value
    if item.type is str:
        if not isinstance(value, str):
            raise InputError(f"{item.name} must be text, not {value!r}")
        if item.choices and value not in item.choices:
            raise InputError(f"{item.name} must be one of {', '.join(item.choices)}, not {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{item.name} must be a number, not {value!r}")
    if item.type is int and value != int(value):
        raise InputError(f"{item.name} must be a whole number, not {value!r}")
    if item.minimum is not None and value < item.minimum:
        raise InputError(f"{item.name} must be at least {item.minimum:g}, not {value:g}")
    if item.maximum is not None and value > item.maximum:
        raise InputError(f"{item.name} must be at most {item.maximum:g}, not {value:g}")
    return item.type(value)


def from_dict(config_class: type[Any], values: dict[str, Any]) -> Any:
    """A config from JSON keys; unknown keys are an InputError that names them."""
    unknown = sorted(set(values) - {item.name for item in knobs(config_class)})
    if unknown:
        raise InputError(f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}")
    return config_class(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON keys and values; `from_dict` reads it back to an equal config."""
    return dataclasses.asdict(config)
