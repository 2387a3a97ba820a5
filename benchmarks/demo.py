"""`make demo`: the whole loop without a person. Rank, fit a reward model, run DPO and PPO, compare on held-out prompts.

The base model answers the seed prompts, shortly, because that is how the policies are trained and judged here; a
simulated annotator (benchmarks/true_reward.py) ranks the answers through the code that the Rank tab uses; the runs go
through the job queue and worker that the Train tab uses. What comes out is judged by the true reward, which no model
has seen, on prompts that no run has seen. The workspace stays: make run WORKSPACE=demo-workspace opens it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.true_reward import TrueReward
from data.formats import parse_prompt, read_rows, write_rows
from data.preferences import split_by_prompt
from data.records import InputError, Row
from labeler import checkpoints, events, jobs, new_jobs, rankings, tasks
from labeler.users import User, ensure_user
from labeler.worker import Worker
from labeler.workspace import SEED_FILE, Workspace, open_workspace
from training.config import DEFAULT_MODEL
from training.run_folder import read_metrics

HELD_OUT = 0.25
NOISE = 0.5  # of the simulated annotator: P(i ≻ j) = σ((u_i - u_j) / NOISE)
LORA = {"lora_layers": 12}  # twice as fast as all 30, and no worse on so little data
LENGTH = 40  # tokens of an answer, everywhere: a reward model is good for what it has seen
TEXTS = {"sample_every": 1000, "sample_max_new_tokens": LENGTH}  # texts to read before and after, none on the way
TO_RANK = [0.7, 0.7, 0.8, 0.9, 1.0]  # temperatures of the answers that are ranked
SETTINGS: dict[str, dict[str, Any]] = {
    "reward": {"epochs": 2, "batch_size": 2, "learning_rate": 3e-4, "eval_every": 40, "save_every": 50, **LORA},
    "dpo": {
        "epochs": 1, "batch_size": 2, "learning_rate": 2.5e-4, "beta": 0.1, "eval_every": 25, "kl_prompts": 0,
        "save_every": 25, **LORA, **TEXTS,
    },
    "ppo": {
        "max_steps": 12, "batch_size": 24, "samples_per_prompt": 3, "max_new_tokens": LENGTH, "temperature": 0.7,
        "learning_rate": 6e-4, "beta": 0.05, "ppo_epochs": 2, "minibatches": 2, "save_every": 9, **LORA, **TEXTS,
    },
}  # fmt: skip
BATCH = 96  # answers that are sampled together
SAMPLING: dict[str, Any] = {"num_completions": 6, "max_new_tokens": LENGTH, "temperature": 0.7, "batch_size": BATCH}


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="The whole loop on a simulated annotator, without a browser.")
    parser.add_argument("--workspace", type=Path, default=Path("demo-workspace"), help="a folder that is made anew")
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=2, help="of the split, the answers, the annotator and the runs")
    options = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        train_rows, held_rows = _split_seed(options.seed)
        folder = _fresh_folder(options.workspace)
        train_rows = answer(folder, options.base_model, train_rows, options.seed)
        reward = TrueReward([text for row in train_rows for text in row["completions"]])
        correlation = _length_correlation(reward, train_rows)
        say(f"the true reward's correlation with length is {correlation:+.2f} (in words, over the ranked answers)")
        workspace = open_workspace(folder, options.base_model, folder / "answers.jsonl")
        annotator, agreement = annotate(workspace, reward, options.seed)
        say(f"the simulated annotator ranked {len(train_rows)} prompts; {agreement:.0%} of its pairs are in true order")
        worker = Worker(workspace)
        worker.start()
        try:
            reward_id = run(workspace, annotator, "reward", options.seed)
            policies = {
                "base": workspace.base_checkpoint_id,
                "DPO": run(workspace, annotator, "dpo", options.seed),
                "PPO": run(workspace, annotator, "ppo", options.seed, reward_id=reward_id),
            }
        finally:
            worker.stop()
        results = compare(workspace, policies, reward_id, reward, held_rows, options.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    report = workspace.folder / "report"
    summary = summarise(results)
    write_report(report, workspace, summary, correlation, agreement, seconds)
    print(table(summary))
    print(f"\n{seconds / 60:.1f} minutes. Plots and figures: {report}")
    print(f"Chat with each checkpoint: make run WORKSPACE={options.workspace}")
    raised = [summary[name]["gain"][1] > 0 for name in ("DPO", "PPO")]
    if not all(raised):
        print("error: not every policy raised the true reward; its 95% interval holds 0", file=sys.stderr)
    return 0 if all(raised) and abs(correlation) < 0.3 else 1


def say(text: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _split_seed(seed: int) -> tuple[list[Row], list[Row]]:
    """Seed prompts for the workspace, and those that nothing is trained on."""
    rows = [{key: row[key] for key in row.keys() & {"id", "category", "prompt"}} for _, row in read_rows(SEED_FILE)]
    _, held = split_by_prompt([parse_prompt(row["prompt"]) for row in rows], HELD_OUT, seed)
    texts = {json.dumps(list(prompt.messages)) for prompt in held}
    inside = [json.dumps(row["prompt"]) in texts for row in rows]
    return (
        [row for row, is_held in zip(rows, inside, strict=True) if not is_held],
        [row for row, is_held in zip(rows, inside, strict=True) if is_held],
    )


def _length_correlation(reward: TrueReward, rows: Sequence[Row]) -> float:
    texts = [text for row in rows for text in row["completions"]]
    return float(np.corrcoef([reward(text) for text in texts], [len(text.split()) for text in texts])[0, 1])


def _fresh_folder(folder: Path) -> Path:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "demo.json").exists():
            raise InputError(f"{folder}: is not a demo's workspace; name another one with --workspace")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "demo.json").write_text("{}\n")
    return folder


def answer(folder: Path, base_model: str, rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with answers of the base model; they also lie in answers.jsonl."""
    from training.generate import generate
    from training.models import load_base
    from training.processes import set_threads

    set_threads(0)
    write_rows(folder / "prompts.jsonl", rows)
    generate(
        load_base(base_model), None, folder / "prompts.jsonl", folder / "answers.jsonl", num_completions=len(TO_RANK),
        max_new_tokens=LENGTH, temperature=TO_RANK, top_p=1.0, seed=seed, batch_size=BATCH,
    )  # fmt: skip
    return [row for _, row in read_rows(folder / "answers.jsonl")]


def annotate(workspace: Workspace, reward: TrueReward, seed: int) -> tuple[User, float]:
    """Rank every task as a person would: ask for the next, submit, ask again. Returns (user, share of true pairs)."""
    with workspace.store.write() as db:
        user = ensure_user(db, "simulated annotator")
    random = np.random.default_rng(seed)
    right = total = 0
    while assignment := tasks.next_assignment(workspace.store, user):
        texts = [completion.text for completion in assignment.completions]
        ranks = reward.rank(texts, random, NOISE)
        event = events.Event(
            f"simulated-{assignment.id}", assignment.id, "submit", ranks, source="simulated", seconds=0.0
        )
        rankings.record_event(workspace.store, user, event)
        true = [reward(text) for text in texts]
        pairs = [(i, j) for i in range(len(texts)) for j in range(i) if true[i] != true[j]]
        right += sum((true[i] > true[j]) == (ranks[i] < ranks[j]) for i, j in pairs)
        total += len(pairs)
    return user, right / total


def run(workspace: Workspace, user: User, method: str, seed: int, reward_id: int | None = None) -> int:
    """Queue a run, wait for it, and return its checkpoint's id. Raises InputError where it fails."""
    job_id = new_jobs.create(workspace, user, method, SETTINGS[method] | {"seed": seed}, reward_id=reward_id)
    say(f"started {job_id}: {jobs.command_line(workspace, jobs.get(workspace.store, job_id))}")
    line = ""
    while (job := jobs.get(workspace.store, job_id)).state in jobs.OPEN_STATES:
        time.sleep(1)
        now = jobs.running_line(workspace.store)
        if now != line:
            line = now
            say(line)
    if job.state != "finished":
        raise InputError(
            f"the {method} run ended as {job.state}: {job.error}; see {workspace.runs_folder / job_id}/log.txt"
        )
    say(f"{job_id}: {json.dumps(job.result)}")
    return max(checkpoints.of_run(workspace.store, job_id), key=lambda c: c.step or 0).id


def compare(
    workspace: Workspace,
    policies: dict[str, int],
    reward_id: int,
    reward: TrueReward,
    rows: Sequence[Row],
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Sample every policy on the held-out prompts; returns name -> measure -> one mean a prompt."""
    from training.chat_template import decode, encode_prompt
    from training.evaluate import sequence_log_probs
    from training.generate import sample_all, show_progress
    from training.models import load_base
    from training.packs import Group
    from training.processes import set_threads
    from training.reward_model import Score

    set_threads(0)
    base = load_base(workspace.base_model)
    score = Score(base, _folder(workspace, reward_id))
    prompts = [encode_prompt(base, row["prompt"]) for row in rows]
    results: dict[str, dict[str, np.ndarray]] = {}
    texts: list[Row] = [{"prompt": row["prompt"]} for row in rows]
    for name, checkpoint_id in policies.items():
        adapter = None if name == "base" else base.attach(_folder(workspace, checkpoint_id))
        samples = sample_all(
            base,
            prompts,
            adapter=adapter,
            seed=seed + 1,
            on_batch=show_progress(f"{name}: prompts sampled"),
            **SAMPLING,
        )
        groups = [Group(p, [s.ids for s in found]) for p, found in zip(prompts, samples, strict=True)]
        temperature = SAMPLING["temperature"]
        ours = sequence_log_probs(base, adapter, groups, temperature)
        plain = ours if adapter is None else sequence_log_probs(base, None, groups, temperature)
        said = [[decode(base, s.ids) for s in found] for found in samples]
        for row, some in zip(texts, said, strict=True):
            row[name] = some
        results[name] = {
            "true reward": np.array([np.mean([reward(text) for text in some]) for some in said]),
            "reward model": (np.array(score.score(groups)).mean(1) - score.mean) / score.std,
            "KL": (np.array(ours) - np.array(plain)).mean(1),
            "length": np.array([np.mean([len(s.ids) for s in found]) for found in samples]),
        }
    write_rows(workspace.folder / "report" / "samples.jsonl", texts)
    return results


def _folder(workspace: Workspace, checkpoint_id: int) -> Path:
    folder = checkpoints.folder(workspace, checkpoints.get(workspace.store, checkpoint_id))
    assert folder is not None
    return folder


def interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float, float]:
    """(mean, low, high): the 95% bootstrap interval over prompts."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def summarise(results: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Intervals of every measure, and of the paired gain in true reward over the base, with the prompts counted."""
    return {
        name: {measure: interval(values) for measure, values in measures.items()}
        | {
            "gain": interval(measures["true reward"] - results["base"]["true reward"]),
            "prompts": len(measures["true reward"]),
        }
        for name, measures in results.items()
    }


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The result as text."""
    names = ["true reward", "reward model", "KL", "length", "gain"]
    lines = [f"{'policy':8}" + "".join(f"{name:>26}" for name in names)]
    for policy, measures in summary.items():
        cells = "".join(f"{f'{m:.2f} [{low:.2f}, {high:.2f}]':>26}" for m, low, high in (measures[n] for n in names))
        lines.append(f"{policy:8}{cells}")
    count = next(iter(summary.values()))["prompts"]
    lines.append(
        f"Means over {count} held-out prompts, {SAMPLING['num_completions']} samples each, 95% bootstrap intervals."
    )
    lines.append(
        "gain: true reward minus the base's, paired by prompt. KL from the base in nats a response. Length in tokens."
    )
    return "\n".join(lines)


def write_report(
    folder: Path, workspace: Workspace, summary: dict[str, Any], correlation: float, agreement: float, seconds: float
) -> None:
    """summary.json and the plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(exist_ok=True)
    facts = {"length_correlation": correlation, "annotator_agreement": agreement, "minutes": seconds / 60}
    (folder / "summary.json").write_text(json.dumps(facts | {"policies": summary}, indent=1) + "\n")

    figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    units = {"true reward": "true reward", "reward model": "reward model's score (σ)", "KL": "nats", "length": "tokens"}
    for axis, (measure, unit) in zip(axes, units.items(), strict=True):
        for x, policy in enumerate(summary):
            mean, low, high = summary[policy][measure]
            axis.errorbar(x, mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=5, color=f"C{x}")
        axis.set(title=measure, ylabel=unit, xticks=range(len(summary)), xticklabels=list(summary), xlim=(-0.5, 2.5))
        axis.grid(alpha=0.3)
    figure.suptitle("On held-out prompts: mean and 95% interval")
    figure.savefig(folder / "policies.png", dpi=120)

    curves = {
        "reward": ("eval/accuracy", "Reward model: held-out accuracy"),
        "dpo": ("rewards/margins", "DPO: reward margin (β × nats)"),
        "ppo": ("objective/score", "PPO: reward model's score of the rollouts"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    for job in jobs.list_jobs(workspace.store):
        metrics = read_metrics(workspace.runs_folder / job.id)
        name, title = curves[job.method]
        axis = axes[list(curves).index(job.method)]
        points = [(row["step"], row[name]) for row in metrics if name in row]
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set(title=title, xlabel="update" if job.method == "ppo" else "step")
        axis.grid(alpha=0.3)
        if job.method == "ppo":
            axes[3].plot([row["step"] for row in metrics], [row["objective/kl"] for row in metrics], marker=".")
            axes[3].set(title="PPO: KL from the base (nats a response)", xlabel="update")
            axes[3].grid(alpha=0.3)
    figure.savefig(folder / "training.png", dpi=120)
    plt.close("all")


if __name__ == "__main__":
    sys.exit(main())
