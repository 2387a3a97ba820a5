"""What may be brought in: safetensors of this base, out of an honest zip. The rest is refused and leaves nothing."""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from data.records import InputError
from labeler import checkpoint_imports
from labeler.checkpoint_imports import imports_folder, register, stage
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace

LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.score.weight"
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "base_model_name_or_path": "/elsewhere/no-model"}


def weights(*names: str) -> bytes:
    return save({name: np.zeros((2, 4), dtype=np.float32) for name in names})


def adapter(**changes: Any) -> dict[str, bytes]:
    config = json.dumps(CONFIG | changes).encode()
    return {"adapter_config.json": config, "adapter_model.safetensors": weights(LORA, HEAD)}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path / "w", rankings=0)


def zipped(folder: Path, files: Mapping[str, bytes], name: str = "model.zip") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
    return path


def refused(workspace: Workspace, files: list[Path], why: str) -> None:
    with pytest.raises(InputError, match=why):
        stage(workspace, files)
    folder = imports_folder(workspace)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_adapter_out_of_a_zip(workspace: Workspace, tmp_path: Path) -> None:
    extra = {
        "training_args.bin": pickle.dumps("never read"),
        "tokenizer.json": b"{}",
        "deep/adapter_config.json": b"{}",
    }
    files = {f"top/{name}": content for name, content in (adapter(init_lora_weights="pissa") | extra).items()}
    staged, form = stage(workspace, [zipped(tmp_path, files)])
    assert form == "policy-adapter"
    assert {path.name for path in staged.iterdir()} == {*adapter(), "manifest.json"}
    config = json.loads((staged / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert "init_lora_weights" not in config  # pissa would change the shared base when the adapter is loaded
    manifest = json.loads((staged / "manifest.json").read_text())
    assert (manifest["kind"], manifest["base_model"]) == ("policy", {"name": "no-model"})


def test_the_files_of_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    for name, content in adapter(task_type="SEQ_CLS", modules_to_save=["score"]).items():
        (tmp_path / name).write_bytes(content)
    staged, form = stage(workspace, [tmp_path / name for name in adapter()])
    assert form == "reward-adapter"
    assert json.loads((staged / "manifest.json").read_text())["kind"] == "reward"


def test_what_a_killed_import_left_is_swept(workspace: Workspace, tmp_path: Path) -> None:
    """The next import removes it, once it is a day old; what a checkpoint lies in stays."""
    kept, form = stage(workspace, [zipped(tmp_path, adapter())])
    register(workspace, kept, form, "brought in")
    left, fresh = imports_folder(workspace) / "left", imports_folder(workspace) / "fresh"
    for folder in (left, fresh):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(weights(LORA))
    for folder in (left, kept):
        os.utime(folder, (0, 0))
    staged, _ = stage(workspace, [tmp_path / "model.zip"])
    assert set(imports_folder(workspace).iterdir()) == {kept, fresh, staged}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "neither adapter_config.json nor config.json"),
        ({"../../evil.json": b"x"} | adapter(), "written elsewhere"),
        ({"/etc/evil.json": b"x"} | adapter(), "written elsewhere"),
        ({"a\\..\\evil.json": b"x"} | adapter(), "written elsewhere"),
        ({"C:/evil.json": b"x"} | adapter(), "written elsewhere"),
        ({f"{number}.txt": b"x" for number in range(300)} | adapter(), "302 files"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": pickle.dumps(1)}, "a pickle, which may run code"),
        ({"adapter_config.json": b"{}"}, "no weights"),
        (adapter() | {"adapter_model.safetensors": pickle.dumps(1)}, "no safetensors file"),
        (adapter() | {"adapter_config.json": b"{broken"}, "cannot be read as JSON"),
        (adapter() | {"adapter_config.json": b"[1]"}, "one JSON object"),
        (adapter() | {"adapter_config.json": b"[" * 100_000}, "cannot be read as JSON"),
        (adapter(peft_type="PREFIX_TUNING"), "only LORA"),
        (adapter(use_dora=True), "use_dora"),
        (adapter(bias="all"), "biases"),
        (adapter(modules_to_save=["embed_tokens"]), "whole modules"),
        (adapter(task_type="SEQ_2_SEQ_LM"), "SEQ_2_SEQ_LM"),
        (adapter(base_model_name_or_path="owner/another"), "belongs to the base model another"),
        (
            adapter(task_type="SEQ_CLS", modules_to_save=["score"]) | {"adapter_model.safetensors": weights(LORA)},
            "no score head",
        ),
        (adapter() | {"adapter_model.safetensors": weights("something")}, "no LoRA weights"),
        ({"config.json": b'{"auto_map": {}}', "model.safetensors": weights("w")}, "code of its own"),
        ({"config.json": b'{"architectures": ["T5Model"]}', "model.safetensors": weights("w")}, "T5Model"),
    ],
)
def test_what_is_refused(workspace: Workspace, tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    refused(workspace, [zipped(tmp_path, files)], why)
    assert not list(tmp_path.rglob("evil*"))


def test_links_and_doubles_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = zipped(tmp_path, adapter())
    link = zipfile.ZipInfo("notes.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(workspace, [path], "a link")
    path = zipped(tmp_path, adapter())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("adapter_config.json", b"{}")
    refused(workspace, [path], "same file twice")


def test_size_is_bounded(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = adapter() | {"adapter_model.safetensors": b"\0" * 3_000_000}
    path = zipped(tmp_path, big)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(checkpoint_imports, "MAX_BYTES", 1 << 20)
    refused(workspace, [path], "at most 0 GiB")
    # a zip that lies about its sizes
    raw = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), (300_000).to_bytes(4, "little"))
    path.write_bytes(raw)
    refused(workspace, [path], "unpacks to more|cannot be read|no safetensors")


def test_no_zip_and_nothing(workspace: Workspace, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and no more")
    refused(workspace, [broken], "cannot be read")
    refused(workspace, [], "choose the files")


def test_a_base_by_its_hash(workspace: Workspace, tmp_path: Path) -> None:
    """Where both hashes are known they decide, not the names."""
    with workspace.store.write() as db:
        manifest = json.dumps({"base_model": {"sha256": "ours"}})
        db.execute(
            "INSERT INTO checkpoints (name, kind, base_model, manifest) VALUES ('x', 'policy', 'no-model', ?)",
            [manifest],
        )

    def with_hash(sha256: str) -> Path:
        stated = json.dumps({"base_model": {"name": "renamed", "sha256": sha256}, "step": 7, "method": "dpo"}).encode()
        return zipped(tmp_path, adapter(base_model_name_or_path="renamed") | {"manifest.json": stated})

    staged, _ = stage(workspace, [with_hash("ours")])
    found = json.loads((staged / "manifest.json").read_text())
    assert (found["step"], found["method"], found["base_model"]["name"]) == (7, "dpo", "no-model")
    with pytest.raises(InputError, match="belongs to the base model"):
        stage(workspace, [with_hash("theirs")])
