"""Imports go one way: data <- training <- labeler <- app.py; and the tests' own check can fail."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LAYERS = ("data", "training", "labeler", "app")
"""Each may import itself and what stands before it."""
HEAVY = {"data": {"torch", "gradio", "sqlite3", "sqlite_utils"}, "training": {"gradio", "sqlite3", "sqlite_utils"}}
"""What a layer must do without."""


def imported(source: str, package: str) -> set[str]:
    """The top-level names that a module imports, wherever in the module it does so. `package` resolves "from . ..."."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value.partition(".")[0])
    return names


def breaches(root: Path) -> list[str]:
    """Every import in the project that goes against the layers, as "file imports name"."""
    found = []
    for level, layer in enumerate(LAYERS):
        files = sorted((root / layer).rglob("*.py")) if (root / layer).is_dir() else [root / f"{layer}.py"]
        forbidden = {*LAYERS[level + 1 :], "tests", "benchmarks"} | HEAVY.get(layer, set())
        for file in files:
            if file.exists():
                for name in sorted(imported(file.read_text(encoding="utf-8"), layer) & forbidden):
                    found.append(f"{file.relative_to(root)} imports {name}")
    return found


def test_imports_go_one_way() -> None:
    assert breaches(PROJECT) == []


def test_every_layer_is_looked_at() -> None:
    for layer in LAYERS:
        assert (PROJECT / layer).is_dir() or (PROJECT / f"{layer}.py").is_file()


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/a.py", "import training.config", "imports training"),
        ("data/a.py", "import torch", "imports torch"),
        ("training/deep/er/a.py", "from labeler.store import Store", "imports labeler"),
        ("training/a.py", "def late():\n    from gradio import Blocks", "imports gradio"),
        ("training/a.py", "import importlib\nimportlib.import_module('labeler.jobs')", "imports labeler"),
        ("labeler/a.py", "import app", "imports app"),
        ("labeler/a.py", "from tests.tiny import make_tiny_model", "imports tests"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, source: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert breaches(tmp_path) == [f"{file} {expected}"]


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    for file, source in {
        "data/a.py": "from data import b\nfrom . import c\nimport json",
        "training/a.py": "import torch\nfrom data.records import InputError",
        "labeler/a.py": "import gradio\nfrom training.config import METHODS\nimport data.formats",
        "app.py": "from labeler.web import create_app\nfrom training import config",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(source, encoding="utf-8")
    assert breaches(tmp_path) == []
