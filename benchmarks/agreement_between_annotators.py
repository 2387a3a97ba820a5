"""Our agreement figures beside independent ones, on pairs that several people voted on.

    python -m benchmarks.agreement_between_annotators --data FILE

A row of the file is `prompt`, `response_a`, `response_b` and `votes`, one an annotator: 1 = a, 2 = b, 0 = tie, null =
none. They are recorded in a fresh workspace by the app's own functions, one task a row (importing the file in the Data
tab would make one task of rows that hold the same pair), and read back as the Quality page does. The independent
figures are evalica's alpha of a = -1, tie = 0, b = 1, scipy's tau-b task by task, and a count by hand.

Prints a table and one JSON line; exits with 1 where a figure differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import evalica
import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from data.formats import read_rows
from data.records import InputError
from labeler import quality, tasks
from labeler.projects import FIRST
from labeler.prompts import add_completion, add_prompt
from labeler.rankings import record_ranking
from labeler.users import ensure_user
from labeler.workspace import Workspace, open_workspace

TOLERANCE = 1e-6
RANKS = {1: (1, 2), 2: (2, 1), 0: (1, 1)}
CODES = {1: -1.0, 2: 1.0, 0: 0.0, None: math.nan}
Row = dict[str, Any]


def main() -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Pairs with votes (JSONL, may be gzipped)")
    options = parser.parse_args()
    try:
        read = [row for _, row in read_rows(options.data)]
        with tempfile.TemporaryDirectory() as folder:
            workspace = open_workspace(folder, "no-model", seed_file=None)
            record(workspace, read)
            ours = figures(quality.measure(workspace.store.db, FIRST))
            workspace.store.close()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    theirs = independent([row["votes"] for row in read])
    print(f"{len(read)} pairs, {len(read[0]['votes'])} annotators\n\n{'':24}{'ours':>14}{'independent':>14}")
    worst = 0.0
    for name, value in theirs.items():
        print(f"{name:24}{ours[name]:14.8f}{value:14.8f}")
        if not (math.isnan(ours[name]) and math.isnan(value)):
            worst = max(worst, math.inf if math.isnan(ours[name] - value) else abs(ours[name] - value))
    print(json.dumps({"ours": ours, "independent": theirs, "largest_difference": worst}))
    return int(worst > TOLERANCE)


def record(workspace: Workspace, read: list[Row]) -> None:
    """One task a row, one ranking a vote."""
    with workspace.store.write() as db:
        for number, row in enumerate(read):
            prompt_id = add_prompt(db, [{"role": "user", "content": row["prompt"]}], "", "import")
            texts = (row["response_a"], row["response_b"])
            ids = [add_completion(db, prompt_id, text, None, {}, None, None, "import") for text in texts]
            task_id = tasks.create_task(
                db, prompt_id, ids, project_id=FIRST, overlap=len(row["votes"]), source="import"
            )
            for annotator, vote in enumerate(row["votes"], 1):
                if vote is not None:
                    user = ensure_user(db, f"annotator {annotator}")
                    event_id = f"vote-{number:05}-{annotator}"
                    record_ranking(db, user, task_id, RANKS[vote], source="import", event_id=event_id)


def figures(found: quality.Quality) -> dict[str, float]:
    """What the Quality page says, of all annotators and of each two; nan where it is not defined."""
    names = {one.user_id: one.name for one in found.annotators}
    said = {"all": found.overall} | {
        " and ".join(sorted((names[a], names[b]))): pair for (a, b), pair in found.pairs.items()
    }
    listed: dict[str, float] = {}
    for who, one in said.items():
        for name in ("percent", "nominal", "ordinal", "interval", "tau"):
            value = getattr(one, name).value
            listed[f"{_short(who)} {name}"] = math.nan if value is None else value
        listed[f"{_short(who)} tau undefined"] = one.undefined
    return listed


def independent(votes: list[list[int | None]]) -> dict[str, float]:
    """The same figures from the votes alone: rows of votes, one an annotator."""
    table = np.array([[CODES[vote] for vote in row] for row in votes]).T  # (annotators, pairs)
    listed: dict[str, float] = {}
    people = range(len(table))
    groups = {"all": list(people)} | {
        f"annotator {a + 1} and annotator {b + 1}": [a, b] for a, b in combinations(people, 2)
    }
    for who, members in groups.items():
        part = table[members]
        pairs = [(x, y) for column in part.T for x, y in combinations(column, 2) if not math.isnan(x + y)]
        # a vote as ranks of a and b: -1 is 1, 2
        taus = [kendalltau([x, -x], [y, -y]).statistic if x and y else math.nan for x, y in pairs]
        defined = [tau for tau in taus if not math.isnan(tau)]
        listed[f"{_short(who)} percent"] = sum(x == y for x, y in pairs) / len(pairs)
        for level in ("nominal", "ordinal", "interval"):
            listed[f"{_short(who)} {level}"] = float(evalica.alpha(pd.DataFrame(part), distance=level).alpha)
        listed[f"{_short(who)} tau"] = sum(defined) / len(defined)
        listed[f"{_short(who)} tau undefined"] = len(taus) - len(defined)
    return listed


def _short(who: str) -> str:
    return who.replace("annotator ", "").replace(" and ", "-")


if __name__ == "__main__":
    sys.exit(main())
