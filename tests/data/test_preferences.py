"""Rankings to comparisons, and the split by prompt."""

import pytest

from data.formats import parse_prompt, parse_ranking
from data.preferences import comparisons, count_comparisons, fingerprint, split_by_prompt
from data.records import Ranking


def ranking(ranks, margin=0.0, prompt="x"):
    return Ranking(parse_prompt(prompt), tuple("abcdefgh"[: len(ranks)]), tuple(ranks), margin)


def test_all_pairs_of_a_ranking_with_ties_and_unranked():
    found = comparisons(ranking([2, 1, None, 2]))
    assert [(c.winner, c.loser, c.tie) for c in found] == [(1, 0, False), (0, 3, True), (1, 3, False)]


def test_margin_grows_with_the_ranks_between():
    found = comparisons(ranking([1, 2, 3], margin=0.5))
    assert [c.margin for c in found] == [0.5, 1.0, 0.5]


def test_a_pair_is_a_ranking_of_two_with_its_strength_and_weight():
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "margin": 2, "weight": 0.25, "annotator": "ann"}
    found = parse_ranking(row)
    assert comparisons(found) == [(0, 1, False, 2.0)]
    assert (found.weight, found.annotator) == (0.25, "ann")
    listed = {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2], "margin": 2, "weight": 0.25}
    assert parse_ranking(listed | {"annotator": "ann"}) == found


def test_ranks_may_leave_gaps_and_the_margin_follows_them():
    assert [c.margin for c in comparisons(ranking([1, 5, 5], margin=0.5))] == [2.0, 2.0, 0.0]


def test_completions_that_read_the_same_are_not_compared():
    same = Ranking(parse_prompt("x"), ("a", "b", "a"), (1, 2, 3))
    assert [(c.winner, c.loser) for c in comparisons(same)] == [(0, 1), (1, 2)]
    cut = Ranking(parse_prompt("x"), ("a", "a"), (1, 2), ended=(True, False))
    assert len(comparisons(cut)) == 1, "one goes on to the end token, the other does not"
    assert comparisons(Ranking(parse_prompt("x"), ("a", "a"), (1, 2))) == []


def test_a_duplicate_says_the_same_of_the_same_by_the_same_person():
    row = {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2], "annotator": "ann", "weight": 2.0}
    same = [row, row | {"prompt": [{"role": "user", "content": "x"}]}, row | {"weight": 2, "source": "elsewhere"}]
    assert len({fingerprint(parse_ranking(r)) for r in same}) == 1
    other = [row, *(row | change for change in (
        {"annotator": "bob"}, {"ranks": [2, 1]}, {"ranks": [1, 1]}, {"margin": 1}, {"weight": 1}, {"prompt": "y"},
        {"completions": ["a", "c"]}, {"finish_reasons": ["stop", "length"]},
    ))]  # fmt: skip
    assert len({fingerprint(parse_ranking(r)) for r in other}) == len(other)


def test_k_choose_two():
    assert count_comparisons([ranking(range(1, k + 1)) for k in (2, 4, 8)]) == 1 + 6 + 28


@pytest.mark.parametrize("seed", [0, 1])
def test_split_keeps_every_prompt_on_one_side(seed):
    records = [ranking([1, 2], prompt=f"prompt {i % 30}") for i in range(90)]
    train, held = split_by_prompt(records, 0.2, seed)
    assert len(train) + len(held) == 90
    assert len({r.prompt.messages[0]["content"] for r in held}) == 6
    sides = [{r.prompt.messages[0]["content"] for r in side} for side in (train, held)]
    assert not sides[0] & sides[1]


def test_folds_cover_everything_once():
    records = [parse_ranking({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) for i in range(23)]
    held = [split_by_prompt(records, 0.2, 0, fold)[1] for fold in range(5)]
    texts = [r.prompt.messages[0]["content"] for fold in held for r in fold]
    assert sorted(texts) == sorted(f"p{i}" for i in range(23))


def test_more_rows_move_few_prompts_between_the_sides():
    records = [parse_ranking({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) for i in range(100)]
    before = {r.prompt.messages[0]["content"] for r in split_by_prompt(records[:90], 0.2)[1]}
    after = {r.prompt.messages[0]["content"] for r in split_by_prompt(records, 0.2)[1]}
    assert len(before & after) >= len(before) - 3


def test_conversations_that_open_alike_stay_on_one_side():
    def talk(i, turns):
        messages = [{"role": "system", "content": "Be brief."}]
        for turn in range(turns):
            messages += [{"role": "user", "content": f"{i}-{turn}"}, {"role": "assistant", "content": "ok"}]
        return Ranking(parse_prompt([*messages, {"role": "user", "content": "last"}]), ("a", "b"), (1, 2))

    records = [talk(i, turns) for i in range(20) for turns in (1, 2, 3)]
    train, held = split_by_prompt(records, 0.25)
    assert (len(train), len(held)) == (45, 15)
    sides = [{r.prompt.messages[1]["content"] for r in side} for side in (train, held)]
    assert not sides[0] & sides[1]
