"""What docs/training.md promises exists: every knob on the command line, every test in its file."""

import re
from pathlib import Path

from training.__main__ import parser

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_every_knob_of_the_page_is_a_flag():
    flags = set()
    for command in parser()._subparsers._group_actions[0].choices.values():
        flags |= {option for action in command._actions for option in action.option_strings}
    named = set(re.findall(r"`(?:\w+ )?(--[\w-]+)", PAGE)) | set(re.findall(r" (--[\w-]+)`", PAGE))
    assert len(named) > 50
    assert named <= flags, named - flags


def test_every_test_of_the_page_exists():
    named = set(re.findall(r"`((?:tests/\w+/)?test_\w+\.py)(?:::(\w+))?`", PAGE))
    assert len(named) > 50
    for file, name in named:
        path = ROOT / (file if "/" in file else f"tests/training/{file}")
        assert path.is_file(), file
        assert f"def {name or 'test_'}" in path.read_text(encoding="utf-8"), f"{file}::{name}"
