"""The works on real checkpoints of a tiny model, each by its real process: merge, evaluate, download, import, stop."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from data.records import InputError
from labeler import checkpoint_actions, checkpoint_work, checkpoints, evaluation, packages, registry
from labeler.checkpoint_work import Work
from labeler.web import create_app
from labeler.workspace import Workspace
from tests.labeler.studio import checkpoint_ids, wait_for
from tests.labeler.trained import POLICY, REWARD, trained_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    return trained_workspace(tmp_path_factory.mktemp("trained") / "w", tiny_model)


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[TestClient]:
    with TestClient(create_app(workspace), base_url="http://127.0.0.1:7860") as client:
        yield client


def ended(workspace: Workspace, kind: str, key: str | int) -> Work:
    def over() -> Work | None:
        work = checkpoint_work.look(workspace, kind, key)
        return work if work is not None and work.state != "running" else None

    return wait_for(over, 180)


def unpacked(content: bytes, folder: Path) -> Path:
    """Unzip; the one folder inside."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    (top,) = folder.iterdir()
    return top


def load_as_the_card_says(folder: Path, base: Path) -> dict:
    """Run the Python of the model card, with the base where it lies here."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    source = code[1].replace('folder = "."', f"folder = {str(folder)!r}")
    source = source.replace(f'base = "{base.name}"', f"base = {str(base)!r}").replace(
        "max_new_tokens=64", "max_new_tokens=2"
    )
    names: dict = {}
    exec(source, names)
    return names


def test_an_adapter_with_its_card(workspace: Workspace, client: TestClient, tmp_path: Path,
                                          tiny_model: Path) -> None:  # fmt: skip
    policy = checkpoint_ids(workspace)[POLICY]
    registry.edit(workspace.store, policy, "| `mine` <b>", "Likes numbers.\n# Not a heading", "toy")
    answer = client.get(f"/checkpoints/{policy}/adapter.zip")
    assert answer.status_code == 200
    assert 'filename="mine-b-adapter.zip"' in answer.headers["content-disposition"]
    assert not list(workspace.folder.glob(".adapter-*"))  # what was made for this answer is gone
    folder = unpacked(answer.content, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "\n    # Not a heading\n" in card
    assert "&lt;b\\>" in card
    every = "".join(p.read_text() for p in (*folder.glob("*.md"), *folder.glob("*manifest.json")))
    assert str(workspace.folder) not in every  # no paths of this machine
    row = workspace.store.db.execute("SELECT sha256 FROM snapshots ORDER BY id DESC LIMIT 1").fetchone()
    assert row[0] in card
    names = load_as_the_card_says(folder, tiny_model)
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_a_merged_reward_model(workspace: Workspace, client: TestClient, tmp_path: Path) -> None:
    reward = checkpoint_ids(workspace)[REWARD]
    assert client.get(f"/checkpoints/{reward}/merged.zip").status_code == 404  # not before it was asked for
    checkpoint_actions.merge(workspace, reward)
    with pytest.raises(InputError, match="just being used"):
        registry.delete(workspace, reward)
    work = ended(workspace, "merge", reward)
    assert work.state == "finished", work
    folder = unpacked(client.get(f"/checkpoints/{reward}/merged.zip").content, tmp_path / "out")
    names = load_as_the_card_says(folder, Path("none"))
    assert torch.isfinite(torch.tensor(names["score"]))
    assert names["model"].config.num_labels == 1

    # and as a whole model it comes back in
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")]
    with pytest.raises(InputError, match="names checkpoints itself"):
        checkpoint_actions.bring_in(workspace, files, "base whole")
    work = ended(workspace, "import", checkpoint_actions.bring_in(workspace, files, "whole"))
    assert work.state == "finished", work
    found = checkpoints.get(workspace.store, work.result["checkpoint_id"])
    assert (found.kind, found.parent_id) == ("reward", None)
    assert "whole" in [name for name, _ in checkpoints.choices(workspace, ["reward"])]
    with pytest.raises(InputError, match="has no adapter"):
        packages.adapter_parts(workspace, found)


def test_a_reward_model_is_measured_on_what_was_held_out(workspace: Workspace) -> None:
    reward = checkpoint_ids(workspace)[REWARD]
    assert evaluation.result(workspace, reward) is None
    checkpoint_actions.evaluate(workspace, reward)
    assert ended(workspace, "evaluate", reward).state == "finished"
    report = evaluation.result(workspace, reward)
    assert report is not None
    assert (report["prompts"], report["pairs"], report["left_out"]) == (8, 24, 0)  # half of 16, three pairs each
    assert report["accuracy"]["n"] == 24
    # what people said was scratch
    left = [p for p in (workspace.folder / "work" / f"evaluate-{reward}").iterdir() if p.is_dir()]
    assert left == []
    # the command line's own evaluation of the same rows says the same
    from training.evaluate import evaluate_reward
    from training.models import load_base
    from training.reward_model import Score

    job_data = workspace.runs_folder / "0001-reward" / "preferences.jsonl"
    from data.formats import ranking_row, write_rows

    held = evaluation.held_out({"data": str(job_data), "validation_fraction": 0.5, "seed": 0}, "preferences")
    path = workspace.folder / "held.jsonl"
    write_rows(path, (ranking_row(ranking) for ranking in held))
    folder = checkpoints.folder(workspace, checkpoints.get(workspace.store, reward))
    assert folder is not None
    theirs = evaluate_reward(Score(load_base(workspace.base_model), folder), path, 1024)
    assert theirs["n"] == 24
    assert report["accuracy"]["value"] == pytest.approx(theirs["accuracy"])


def test_what_a_policys_evaluation_needs(workspace: Workspace) -> None:
    ids = checkpoint_ids(workspace)
    policy = next(i for i in ids.values() if checkpoints.get(workspace.store, i).run_id == "0002-dpo")
    with pytest.raises(InputError, match="choose a reward model"):
        checkpoint_actions.evaluate(workspace, policy)
    with pytest.raises(InputError, match="4 to 500 prompts"):
        checkpoint_actions.evaluate(workspace, policy, ids[REWARD], num_prompts=1)
    with pytest.raises(InputError, match="a reward model is needed"):
        checkpoint_actions.evaluate(workspace, policy, policy)


def test_stopping_and_what_is_refused(workspace: Workspace) -> None:
    ids = checkpoint_ids(workspace)
    base = workspace.base_checkpoint_id
    for act in (checkpoint_actions.merge, checkpoint_actions.evaluate):
        with pytest.raises(InputError, match="is a base model"):
            act(workspace, base)
    checkpoint_actions.merge(workspace, ids[REWARD])
    checkpoint_work.stop(workspace, "merge", ids[REWARD])
    work = checkpoint_work.look(workspace, "merge", ids[REWARD])
    assert work is not None
    assert work.state in ("failed", "interrupted")  # the process may take a moment to be gone
    assert ended(workspace, "merge", ids[REWARD]).message == "stopped"


def test_an_adapter_that_does_not_fit_is_not_taken(workspace: Workspace, client: TestClient, tmp_path: Path) -> None:
    """It passes every look at its files; loading it shows that it is of another model."""
    from safetensors.torch import load_file, save_file

    reward = checkpoint_ids(workspace)[REWARD]
    folder = unpacked(client.get(f"/checkpoints/{reward}/adapter.zip").content, tmp_path / "out")
    weights = {k: torch.zeros(v.shape[0], 7) if "lora_A" in k else v
               for k, v in load_file(folder / "adapter_model.safetensors").items()}  # fmt: skip
    save_file(weights, folder / "adapter_model.safetensors")
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json")]
    before = set(checkpoint_ids(workspace))
    key = checkpoint_actions.bring_in(workspace, files, "misfit")
    work = ended(workspace, "import", key)
    assert work.state == "failed"
    assert "does not fit the base model" in work.message
    assert set(checkpoint_ids(workspace)) == before
    assert not (workspace.folder / "imports" / key).exists()


def test_without_a_token_nothing_is_pushed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if checkpoint_actions.can_push():
        pytest.skip("this machine has a token of the hub")
    with pytest.raises(InputError, match="set HF_TOKEN"):
        checkpoint_actions.push(workspace, checkpoint_ids(workspace)[REWARD], "me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(InputError, match="owner/name"):
        checkpoint_actions.push(workspace, checkpoint_ids(workspace)[REWARD], "../mine")


def test_only_researchers_take_models_away(tmp_path: Path) -> None:
    from labeler.users import add_user
    from tests.labeler.studio import small_workspace

    workspace = small_workspace(tmp_path / "w", rankings=0)
    add_user(workspace.store, "ann", "annotator", "correct horse")
    add_user(workspace.store, "lea", "lead", "correct horse")
    with TestClient(create_app(workspace, "0.0.0.0"), base_url="http://lab.example:7860") as client:
        assert client.get("/checkpoints/1/adapter.zip").status_code == 401
        for name in ("ann", "lea"):
            client.cookies.clear()
            client.post("/login", data={"name": name, "password": "correct horse"}, follow_redirects=False)
            assert client.get("/checkpoints/1/adapter.zip").status_code == 403
