"""Completions for a file of prompts, and scores for a file of completions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.formats import parse_completion, parse_ended, parse_prompt_row, parse_ranking, read_rows, write_rows
from data.records import InputError, Row
from training.base import Base
from training.chat_template import decode, encode_prompt, encode_response
from training.packs import Group
from training.reward_model import RewardModel, Score
from training.rollout import Sample, sample, uniforms
from training.server import Server


def sample_all(
    base: Base,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: str | None,
    num_completions: int,
    max_new_tokens: int,
    temperature: float | Sequence[float],
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    on_batch: Any = None,
    keys: Sequence[tuple[int, int]] | None = None,
) -> list[list[Sample]]:
    """`num_completions` samples of every prompt, in the prompts' order; at most `batch_size` are sampled at once.

    Prompts of like length share a batch, the longest first: what does not fit into memory fails at the start, and the
    time left is not promised too short. `keys` are two numbers a prompt that, beside the seed, key its random stream
    (None: 0 and its place), so that a sample does not depend on what else is sampled.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    heat = np.broadcast_to(np.asarray(temperature, dtype=np.float32), (num_completions,))
    results: list[list[Sample]] = [[] for _ in prompts]
    keys = keys or [(0, i) for i in range(len(prompts))]
    size = max(1, batch_size // num_completions)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        for first in range(0, num_completions, batch_size):
            numbers = range(first, min(first + batch_size, num_completions))
            random = np.array([[uniforms(seed, *keys[i], k, max_new_tokens) for k in numbers] for i in chosen])
            found = sample(
                base, [prompts[i] for i in chosen], random, adapter=adapter,
                temperature=heat[numbers.start : numbers.stop].tolist(), top_p=top_p,
            )  # fmt: skip
            for i, samples in zip(chosen, found, strict=True):
                results[i] += samples
        if on_batch:
            on_batch(min(start + size, len(order)), len(order))
    return results


def show_progress(what: str) -> Any:
    """A callback (done, total) that writes a line with the time left to stderr every few seconds."""
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 5 or done == total:
            last = now
            left = (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)

    return report


def generate(
    base: Base,
    adapter: str | None,
    source: Path | str,
    output: Path | str,
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: Sequence[float],
    top_p: float,
    seed: int,
    batch_size: int,
    server: Server | None = None,
) -> dict[str, Any]:
    """Write every row of `source` with `completions` and, for each, how it was sampled (`completion_info`).

    `temperature` holds one number, or one for each completion. With `server` it does the sampling, `adapter` names one
    of its models, and the base here gives the tokens of the prompts.
    """
    if len(temperature) not in (1, num_completions):
        raise InputError(f"{len(temperature)} temperatures for {num_completions} completions; give one, or one each")
    rows, prompts = [], []
    for place, row in read_rows(source):
        try:
            prompts.append(encode_prompt(base, parse_prompt_row(row).messages))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        if len(prompts[-1]) + max_new_tokens > base.context_length:
            raise InputError(f"{place}: the prompt is longer than the model's context of {base.context_length} tokens")
        rows.append(row)
    if not rows:
        raise InputError(f"{source}: holds no rows")
    heat = [*temperature] * (num_completions if len(temperature) == 1 else 1)
    if server:
        found = server.complete(
            str(adapter), prompts, [(seed, 0, i) for i in range(len(prompts))], max_new_tokens=max_new_tokens,
            temperature=heat, top_p=top_p, stop_ids=base.stop_ids, on_answer=show_progress("completions sampled"),
        )  # fmt: skip
        answers = [[(c.text, c.num_tokens, c.finish_reason) for c in row] for row in found]
    else:
        samples = sample_all(
            base, prompts, adapter=adapter, num_completions=num_completions, max_new_tokens=max_new_tokens,
            temperature=heat, top_p=top_p, seed=seed, batch_size=batch_size, on_batch=show_progress("prompts sampled"),
        )  # fmt: skip
        answers = [[(decode(base, s.ids), len(s.ids), s.finish_reason) for s in row] for row in samples]
    shared = {"top_p": top_p, "seed": seed, "max_new_tokens": max_new_tokens}
    written = [
        row
        | {
            "completions": [text for text, _, _ in found],
            "completion_info": [
                {
                    "temperature": heat[k],
                    **shared,
                    "sample": k,
                    "num_tokens": count,
                    "finish_reason": reason,
                }
                for k, (_, count, reason) in enumerate(found)
            ],
            "model": adapter if server else base.name,
        }
        for row, found in zip(rows, answers, strict=True)
    ]
    write_rows(output, written)
    return {"output": str(output), "prompts": len(rows), "completions": len(rows) * num_completions}


def score_file(
    model: RewardModel, source: Path | str, output: Path | str, heads: Tensor | None = None, skip_errors: bool = False
) -> dict[str, Any]:
    """Add `score` (one completion) or `scores` ([chosen, rejected], or one each for completions) to every row.

    With the weights `heads` (H, d) of a committee also `ensemble_scores`: for each of these numbers a list of H. With
    `skip_errors` a row that cannot be scored gets an `error` instead.
    """
    rows: list[Row] = []
    scored: list[Row] = []
    groups: list[Group] = []
    for place, row in read_rows(source):
        try:
            groups.append(_to_score(model.reader, row))
            scored.append(row)
        except InputError as error:
            if not skip_errors:
                raise InputError(f"{place}: {error}") from None
            print(f"skipped {place}: {error}", file=sys.stderr)
            row["error"] = str(error)
        rows.append(row)
    if not rows:
        raise InputError(f"{source}: holds no rows")
    if heads is None:
        found = model.score(groups)
    else:
        assert isinstance(model, Score)
        every = _scores_by_all(model, groups, heads)
        found = [[own for own, *_ in group] for group in every]
        for row, group in zip(scored, every, strict=True):
            ensemble = [others for _, *others in group]
            row["ensemble_scores"] = ensemble[0] if _single(row) else ensemble
    for row, values in zip(scored, found, strict=True):
        row.update({"score": values[0]} if _single(row) else {"scores": values})
    write_rows(output, rows)
    skipped = {"skipped": len(rows) - len(scored)} if skip_errors else {}
    return {"output": str(output), "n": sum(map(len, found))} | skipped


def _scores_by_all(model: Score, groups: Sequence[Group], heads: Tensor) -> list[list[list[float]]]:
    """For each response of each group the model's own score, then the H of the heads; the text is read once."""
    if not groups:
        return []
    every = torch.cat([model.head.weight, heads.to(model.head.weight)]).T
    read = model.read(groups, lambda hidden: hidden @ every, on_progress=show_progress("completions scored"))
    return [part.tolist() for part in read.split([len(group.responses) for group in groups])]


def _single(row: Row) -> bool:
    """Whether the row holds one completion that stands for itself."""
    return "completion" in row and "completions" not in row


def _to_score(base: Base, row: Row) -> Group:
    """The prompt and the completions of a row, tokenised as they are for training."""
    if "completions" in row:
        if not isinstance(row["completions"], list) or not row["completions"]:
            raise InputError('"completions" must be a list that is not empty')
        texts = [parse_completion(text, "completions") for text in row["completions"]]
        ended = parse_ended(row) or (True,) * len(texts)
        if len(ended) != len(texts):
            raise InputError(f"{len(texts)} completions but {len(ended)} finish reasons; give one each")
    elif "chosen" in row:
        ranking = parse_ranking(row)
        texts, ended = list(ranking.completions), ranking.ended
    elif "completion" in row:
        texts, ended = [parse_completion(row["completion"])], (row.get("finish_reason") != "length",)
    else:
        raise InputError('nothing to score: no "completion", "completions", or "chosen" and "rejected"')
    prompt = encode_prompt(base, parse_prompt_row(row).messages)
    responses = [encode_response(base, text, end) for text, end in zip(texts, ended, strict=True)]
    if len(prompt) + max(map(len, responses)) > base.context_length:
        raise InputError(f"prompt and completion are longer than the model's context of {base.context_length} tokens")
    if not all(responses):
        raise InputError("an unfinished completion is empty; there is no token to score")
    return Group(prompt, responses)
