"""Rows in and out, and the errors that name the place."""

import gzip
import json

import pandas as pd
import pytest

from data.formats import (
    parse_demonstration,
    parse_ranking,
    ranking_row,
    read_demonstrations,
    read_prompts,
    read_rankings,
    write_rows,
)
from data.records import InputError

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
RANKED = {"prompt": "Why?", "completions": ["a", "b", "c"], "ranks": [1, 2, None]}


def test_pair_becomes_a_ranking_of_two():
    ranking = parse_ranking(PAIR | {"margin": 2, "weight": 0.5})
    assert ranking.completions == ("Because.", "No.")
    assert (ranking.ranks, ranking.margin, ranking.weight) == ((1, 2), 2.0, 0.5)


def test_chat_messages_and_strings_mean_the_same():
    chat = {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    assert parse_ranking(chat) == parse_ranking(PAIR)


def test_prompt_is_found_in_whole_conversations():
    turns = [{"role": "user", "content": "Why?"}]
    row = {field: [*turns, {"role": "assistant", "content": PAIR[field]}] for field in ("chosen", "rejected")}
    assert parse_ranking(row) == parse_ranking(PAIR)


def test_cut_answers_are_known_as_such():
    generated = RANKED | {"completion_info": [{"finish_reason": "length"}, {"finish_reason": "stop"}, {}]}
    assert parse_ranking(generated).ended == (False, True, True)
    assert parse_demonstration(generated).ended is False
    assert parse_demonstration({"prompt": "x", "completion": "y"}).ended is True


def test_best_ranked_completion_is_the_demonstration():
    found = parse_demonstration(RANKED | {"ranks": [3, None, 1]})
    assert found.messages[-1] == {"role": "assistant", "content": "c"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_survive_a_file(tmp_path, name):
    rankings = [
        parse_ranking(RANKED | {"finish_reasons": ["stop", "length", "stop"], "annotator": "ann"}),
        parse_ranking(PAIR | {"margin": 0.5, "weight": 3}),
    ]
    assert write_rows(tmp_path / name, map(ranking_row, rankings)) == 2
    assert read_rankings(tmp_path / name) == rankings
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_are_read(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    frame = pd.DataFrame([PAIR | {"margin": 1.5}, PAIR])
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    first, second = read_rankings(path)
    assert (first.margin, second.margin) == (1.5, 0.0)
    assert first.completions == ("Because.", "No.")


def test_lists_and_texts_that_look_like_lists_survive_csv(tmp_path):
    chat = [{"role": "user", "content": 'Say "[1]", please'}]
    frame = pd.DataFrame([
        {"prompt": json.dumps(chat), "completions": '["a", "b"]', "ranks": "[2, 1]", "finish_reasons": "[null, null]"},
        {"prompt": "[1, 2] is what?", "completions": '["[x]", "line\\nbreak"]', "ranks": "[1, null]"},
        {"prompt": "[1, 2]", "chosen": "[3]", "rejected": "two\nlines, in a cell"},
    ])  # fmt: skip
    frame.iloc[[0, 2]].to_csv(tmp_path / "rows.csv", index=False)
    ranked, pair = read_rankings(tmp_path / "rows.csv")
    assert (ranked.prompt.messages, ranked.ranks, ranked.ended) == (tuple(chat), (2, 1), (True, True))
    assert pair.prompt.messages[0]["content"] == "[1, 2]"
    assert pair.completions == ("[3]", "two\nlines, in a cell")
    assert ranked.place == f"{tmp_path / 'rows.csv'}:2"
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(InputError, match=r"rows.csv:3: fewer than two"):
        read_rankings(tmp_path / "rows.csv")


def test_finish_reasons_of_a_pair_are_read():
    assert parse_ranking(PAIR | {"finish_reasons": ["stop", "length"]}).ended == (True, False)


def test_saved_dataset_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list([PAIR, PAIR]).save_to_disk(tmp_path / "set")
    assert read_rankings(tmp_path / "set") == [parse_ranking(PAIR)] * 2


def test_hub_name_that_is_not_to_be_had_is_one_clear_line():
    with pytest.raises(InputError, match=r"nobody/nothing: no such file, and not to be loaded") as caught:
        read_rankings("nobody/nothing")
    assert "\n" not in str(caught.value)


BROKEN = {
    "no rejected": ({"prompt": "x", "chosen": "a"}, "completions"),
    "empty completion": (PAIR | {"chosen": "  "}, "completion 1 is empty"),
    "one completion": ({"prompt": "x", "completions": ["a"], "ranks": [1]}, "at least two completions"),
    "ranks of other length": (RANKED | {"ranks": [1, 2]}, "3 completions but 2 ranks"),
    "rank zero": (RANKED | {"ranks": [0, 1, 2]}, "rank 0"),
    "rank text": (RANKED | {"ranks": ["best", 1, 2]}, '"best"'),
    "nobody ranked": (RANKED | {"ranks": [None, None, 1]}, "fewer than two"),
    "NaN margin": (PAIR | {"margin": float("nan")}, "margin"),
    "negative weight": (PAIR | {"weight": -1}, "weight"),
    "prompt number": (PAIR | {"prompt": 3}, "prompt"),
    "empty prompt": (PAIR | {"prompt": " "}, "empty"),
    "unknown role": (PAIR | {"prompt": [{"role": "wizard", "content": "x"}]}, "wizard"),
    "ends with assistant": (PAIR | {"prompt": [{"role": "assistant", "content": "x"}]}, "end with a user"),
    "content missing": (PAIR | {"prompt": [{"role": "user"}]}, "content"),
    "half a surrogate pair": (PAIR | {"chosen": "\ud83d"}, "surrogate"),
    "not an object": ([1], "JSON object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_is_named_with_file_and_line(tmp_path, name):
    row, words = BROKEN[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError) as caught:
        read_rankings(path)
    assert f"{path}:2" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_clear_line(tmp_path):
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress((json.dumps(PAIR) * 500).encode())[:-20])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"prompt": "caf\xe9"}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{not json\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    other = tmp_path / "rows.xlsx"
    other.write_text("x")
    for path, words in [
        (cut, "cannot be read to its end"),
        (latin, "UTF-8"),
        (bad, "bad.jsonl:1: not JSON"),
        (empty, "holds no rows"),
        (other, "unknown kind"),
        (tmp_path / "absent.jsonl", "no such file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(InputError, match=words):
            read_rankings(path)


def test_prompts_and_demonstrations_of_any_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    conversation = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    path.write_text("\n".join(map(json.dumps, [PAIR, RANKED, conversation])))
    assert [p.messages[-1]["content"] for p in read_prompts(path)] == ["Why?", "Why?", "Hi"]
    assert [d.messages[-1]["content"] for d in read_demonstrations(path)] == ["Because.", "a", "Hello"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [PAIR])

    def breaks():
        yield PAIR
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_rows(path, breaks())
    assert read_rankings(path) == [parse_ranking(PAIR)]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
