"""What the policy says on the way: answers to the same few prompts at intervals, in samples.jsonl of the run folder.

The prompts, the random numbers and the settings never change, so what differs between two steps is the policy. Drawn
from streams of their own (`rollout.uniforms`): training goes the same way with and without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.records import Demonstration, InputError, Prompt, Ranking
from training import processes
from training.base import Base
from training.chat_template import decode, encode_prompt
from training.config import PolicyConfig
from training.packs import Group
from training.rollout import sample, uniforms
from training.run import Run, every

TEMPERATURE, TOP_P = 0.7, 0.95
"""As in Chat, where people meet the policy."""

Judge = Callable[[Sequence[Group], Sequence[Prompt]], list[list[Tensor]]]
"""Rewards (T,) of every group's responses, as `rewards.Reward.of` gives them."""


class Samples:
    """The chosen prompts; `write` adds a row for each of them, with a number of each of the `judges`."""

    def __init__(
        self,
        run: Run,
        base: Base,
        config: PolicyConfig,
        records: Iterable[Prompt | Ranking | Demonstration],
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        self.run, self.base, self.config, self.judges = run, base, config, judges or {}
        self.longest = min(config.sample_max_new_tokens, base.context_length // 2)
        self.prompts: list[Prompt] = []
        self.groups: list[Group] = []
        if config.sample_prompts:
            self._choose(records)

    def _choose(self, records: Iterable[Prompt | Ranking | Demonstration]) -> None:
        """The first prompts that leave room for an answer, each once."""
        for record in records:
            prompt = _prompt_of(record)
            if prompt is None or prompt in self.prompts:
                continue
            try:
                ids = encode_prompt(self.base, prompt.messages)
            except InputError:  # the template refuses it; whoever learns from it says so
                continue
            if len(ids) + self.longest <= self.base.context_length:
                self.groups.append(Group(ids, [], index=len(self.prompts)))
                self.prompts.append(prompt)
            if len(self.prompts) == self.config.sample_prompts:
                return

    def due(self, step: int, total: int) -> bool:
        """Whether this is one of the steps to read at: the beginning, the end, and the interval's."""
        interval = self.config.sample_every or max(1, total // 10)
        return bool(self.groups) and (step in (0, total) or every(step, interval))

    @torch.no_grad()
    def write(self, step: int) -> None:
        """Let the policy answer, as it is after `step` steps."""
        seed, mine = self.config.seed, processes.share(self.groups)
        rows: list[dict[str, Any]] = []
        if mine:
            random = np.stack([uniforms(seed, 0, group.index, 0, self.longest)[None] for group in mine])
            found = sample(
                self.base, [group.prompt for group in mine], random,
                adapter="policy", temperature=TEMPERATURE, top_p=TOP_P,
            )  # fmt: skip
            answered = [
                Group(group.prompt, [answer.ids], index=group.index)
                for group, (answer,) in zip(mine, found, strict=True)
            ]
            rows = [
                {
                    "step": step,
                    "number": group.index,
                    "prompt": list(self.prompts[group.index].messages),
                    "completion": decode(self.base, answer.ids),
                    "seed": seed,
                    "num_tokens": len(answer.ids),
                    "finish_reason": answer.finish_reason,
                }
                for group, (answer,) in zip(mine, found, strict=True)
            ]
            for name, judge in self.judges.items():
                for row, (rewards,) in zip(rows, judge(answered, self.prompts), strict=True):
                    row[name] = round(float(rewards.sum()), 4)
        rows = processes.gather(rows)
        if self.run.writes:
            with open(self.run.folder / "samples.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prompt_of(record: Prompt | Ranking | Demonstration) -> Prompt | None:
    """What an answer would follow; None where a demonstration's answer follows no user."""
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Ranking):
        return record.prompt
    messages = record.messages
    first = next(i for i in range(record.first_target, len(messages)) if messages[i]["role"] == "assistant")
    try:
        return Prompt(messages[:first])
    except InputError:
        return None
