"""Chat on a tiny model: the right adapter answers, what is too long is said, settings are checked."""

from __future__ import annotations

import fcntl
from itertools import islice
from pathlib import Path

import pytest

from data.records import InputError
from labeler import chat
from labeler.chat import Chat, Sampling, conversation
from labeler.workspace import Workspace
from tests.labeler.studio import QUESTION, SHORT, checkpoint_ids, small_workspace


def answer(talking: Chat, checkpoint_id: int, sampling: Sampling = SHORT) -> str:
    return list(talking.stream(checkpoint_id, QUESTION, sampling))[-1].text_so_far


def test_an_answer_grows_token_by_token_and_ends_with_a_reason(talking: Chat) -> None:
    tokens = list(talking.stream(talking.workspace.base_checkpoint_id, QUESTION, SHORT))
    assert [token.num_tokens for token in tokens] == list(range(1, len(tokens) + 1))
    assert [token.finish_reason for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].finish_reason in ("stop", "length")


def test_a_run_can_see_that_somebody_answers(talking: Chat, workspace: Workspace) -> None:
    stream = talking.stream(workspace.base_checkpoint_id, QUESTION, SHORT)
    held = []
    with open(workspace.chat_lock, "ab") as file:
        for step in range(3):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(file, fcntl.LOCK_UN)
                held.append(False)
            except BlockingIOError:
                held.append(True)
            if step == 0:
                next(stream)
            else:
                stream.close()  # type: ignore[attr-defined]
    assert held == [False, True, False]


def test_each_checkpoint_answers_with_its_own_adapter(talking: Chat, workspace: Workspace) -> None:
    known = checkpoint_ids(workspace)
    answers = {name: answer(talking, known[name]) for name in known if "reward" not in name}
    assert len(set(answers.values())) == 3, answers
    # after the others were used the base answers as before: nothing was merged into it
    assert answer(talking, workspace.base_checkpoint_id) == answers[f"base {Path(workspace.base_model).name}"]


def test_interleaved_streams_do_not_mix(talking: Chat, workspace: Workspace) -> None:
    known = checkpoint_ids(workspace)
    chosen = [known["dpo/0001 step 1"], known["dpo/0002 step 1"], workspace.base_checkpoint_id]
    alone = [answer(talking, checkpoint_id) for checkpoint_id in chosen]
    streams = [talking.stream(checkpoint_id, QUESTION, SHORT) for checkpoint_id in chosen]
    last = [""] * 3
    for _ in range(SHORT.max_new_tokens):
        for place, stream in enumerate(streams):
            for token in islice(stream, 1):
                last[place] = token.text_so_far
    assert last == alone


def test_one_base_is_loaded_for_all(workspace: Workspace) -> None:
    assert chat.of_workspace(workspace) is chat.of_workspace(workspace)
    one = chat.of_workspace(workspace)
    assert one.load() is one.load()


def test_a_reward_model_cannot_answer(talking: Chat, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="reward/0003 step 1 is a reward model"):
        talking.stream(checkpoint_ids(workspace)["reward/0003 step 1"], QUESTION, SHORT)


def test_a_conversation_beyond_the_context_is_refused_before_sampling(talking: Chat, workspace: Workspace) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(InputError, match="has reached the 2048 tokens"):
        talking.stream(workspace.base_checkpoint_id, long, SHORT)


def test_near_the_context_s_end_the_answer_gets_shorter(talking: Chat, workspace: Workspace) -> None:
    from training.chat_template import encode_prompt

    base = talking.base()
    empty = len(encode_prompt(base, [{"role": "user", "content": ""}]))
    words = base.context_length - 20 - empty
    near = [{"role": "user", "content": " word" * words}]
    room = base.context_length - len(encode_prompt(base, near))
    assert 16 <= room <= 30
    tokens = list(talking.stream(workspace.base_checkpoint_id, near, Sampling(max_new_tokens=500, temperature=1.0)))
    assert tokens[-1].num_tokens <= room


def test_a_base_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    nowhere = Chat(small_workspace(tmp_path, "/no/such/model", rankings=0))
    with pytest.raises(InputError, match="no such folder"):
        list(nowhere.wait(0.01))
    assert not nowhere.ready


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature must lie between"),
        ({"max_new_tokens": None}, "set max new tokens to a number"),
        ({"seed": 2**40}, "seed must lie"),
        ({"top_p": 0}, "top p must lie"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_the_system_prompt_stands_in_front() -> None:
    assert conversation(QUESTION, "  Be brief. ")[0] == {"role": "system", "content": "Be brief."}
    assert conversation(QUESTION, "  ") == QUESTION
