"""history.py: records make the dialog again, and nothing else is taken for one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.history import History, everything, mend, replay
from llamachat.chat.tree import path
from llamachat.errors import FormatError

HEAD = {"type": "session", "version": 1, "uid": "u"}
QUESTION = {"type": "message", "id": 1, "parent": 0, "role": "user", "text": "hi"}
ANSWER = {"type": "message", "id": 2, "parent": 1, "role": "assistant", "text": ""}
PIECE = {"type": "piece", "id": 2, "text": "yes", "ids": [5, 6]}
END = {"type": "end", "id": 2, "reason": "stop", "exact": True, "text": None}


def opened(*records: Any) -> History:
    history = replay(((number, json.dumps(each).encode()) for number, each in enumerate(records, 1)), "x.jsonl")
    mend(history)
    return history


def facts(history: History) -> object:
    nodes = [(n.id, n.parent and n.parent.id, n.role, n.text, n.ids, n.reason) for n in history.tree]
    state = (history.uid, history.system, history.model, history.tokenizer, history.parameters)
    return nodes, history.tree.active.id, history.tree.forks, state


def test_pieces_of_an_answer_come_together() -> None:
    history = opened(HEAD, QUESTION, ANSWER, PIECE, {**PIECE, "text": " it is", "ids": [7]}, END)
    answer = path(history.tree.active)[-1]
    assert (answer.text, answer.ids, answer.reason) == ("yes it is", (5, 6, 7), "stop")


def test_pieces_in_a_row_are_joined_at_once_and_others_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, join = list[int](), History.join

    def held(history: History) -> int:
        return sum(len(node.ids or ()) for node in history.tree)

    def noted(history: History) -> None:
        before = held(history)
        join(history)
        joined.append(held(history) - before)

    monkeypatch.setattr(History, "join", noted)
    other = {**ANSWER, "id": 3}
    history = opened(HEAD, QUESTION, ANSWER, *[PIECE] * 1000, other, {**PIECE, "id": 3}, PIECE)
    assert [(node.text, len(node.ids or ())) for node in history.tree][1:] == [("yes" * 1001, 2002), ("yes", 2)]
    assert sorted(joined)[-3:] == [2, 2, 2000]


def test_an_answer_without_its_end_was_interrupted_and_a_question_without_answer_gets_an_empty_one() -> None:
    assert path(opened(HEAD, QUESTION, ANSWER, PIECE).tree.active)[-1].reason == "interrupt"
    history = opened(HEAD, QUESTION)
    assert [node.role for node in path(history.tree.active)] == ["user", "assistant"]


@pytest.mark.parametrize(
    "records", [[QUESTION], [QUESTION, ANSWER, {**ANSWER, "id": 3}, {"type": "drop", "id": 3}], [QUESTION, ANSWER, END]]
)
def test_what_was_mended_is_told_so_that_the_file_can_be_gone_on_with(records: list[dict[str, Any]]) -> None:
    history = replay([(n, json.dumps(each).encode()) for n, each in enumerate([HEAD, *records], 1)], "x.jsonl")
    mended = mend(history)
    assert bool(mended) == (records[-1] is not END)
    again = {**QUESTION, "id": history.tree.next_id, "parent": history.tree.active.id}
    assert facts(opened(HEAD, *records, *mended)) == facts(history) and opened(HEAD, *records, *mended, again)


def test_each_answer_keeps_the_parameters_that_it_was_given_with() -> None:
    values: list[dict[str, Any]] = [{"type": "parameters", "values": {"top_k": n}} for n in range(3)]
    later = [{**QUESTION, "id": 3, "parent": 2}, {**ANSWER, "id": 4, "parent": 3}]
    history = opened(HEAD, values[0], QUESTION, ANSWER, values[1], *later, values[2])
    again = opened(*everything(history))
    assert [node.parameters["top_k"] for node in again.tree] == [0, 0, 1, 1] and again.parameters == {"top_k": 2}


def test_another_tokenizer_makes_ids_worthless() -> None:
    model = {"type": "model", "name": "m", "tokenizer": "a"}
    records = [HEAD, model, QUESTION, ANSWER, PIECE, END]
    assert path(opened(*records, {**model, "name": "n"}).tree.active)[-1].ids == (5, 6)
    assert path(opened(*records, {**model, "tokenizer": "b"}).tree.active)[-1].ids is None


@st.composite
def dialogs(draw: st.DrawFn) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [HEAD, {"type": "model", "name": draw(st.text(max_size=5)), "tokenizer": "t"}]
    answers, at = [0], 0
    for number in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["turn", "turn", "active", "fork", "system", "drop"]))
        if kind == "turn":
            question, answer = 2 * number + 1, 2 * number + 2
            records.append({**QUESTION, "id": question, "parent": at, "text": draw(st.text(max_size=8))})
            records.append({**ANSWER, "id": answer, "parent": question})
            records.append(
                {
                    **PIECE,
                    "id": answer,
                    "text": draw(st.text(max_size=8)),
                    "ids": draw(st.lists(st.integers(0, 99), max_size=3)),
                }
            )
            if draw(st.booleans()):
                records.append({**END, "id": answer, "exact": draw(st.booleans())})
            answers.append(answer)
            at = answer
        elif kind == "system":
            records.append({"type": "system", "text": draw(st.none() | st.text(max_size=5))})
        elif kind != "drop":
            target = draw(st.sampled_from(answers))
            records.append({"type": kind, "id": target})
            at = target if kind == "active" else at
    return records


@given(dialogs())
def test_the_records_of_a_dialog_make_it_again(records: list[dict[str, Any]]) -> None:
    history = opened(*records)
    assert facts(opened(*everything(history))) == facts(history)


@pytest.mark.parametrize(
    "record",
    [
        {"type": "unknown"},
        {"type": ["unhashable"]},
        {"no": "type"},
        [],
        7,
        {**QUESTION, "id": 1},
        {**QUESTION, "id": True},
        {**QUESTION, "id": 3, "parent": 1},
        {**QUESTION, "id": 3, "parent": 99},
        {**QUESTION, "id": 3, "role": "system", "parent": 2},
        {**QUESTION, "id": 3, "parent": 2, "text": None},
        {**QUESTION, "id": 3, "parent": 2, "more": 1},
        {**PIECE, "id": 1},
        {**PIECE, "id": 0},
        {**PIECE, "ids": [-1]},
        {**PIECE, "ids": ["5"]},
        {**PIECE, "ids": [2**40]},
        {**END, "reason": "whim"},
        {**END, "exact": 1},
        {"type": "active", "id": 1},
        {"type": "fork", "id": 44},
        {"type": "drop", "id": 0},
        {**HEAD},
        {"type": "parameters", "values": []},
    ],
)
def test_what_no_chat_would_have_written_is_an_error_that_names_file_and_line(record: Any) -> None:
    with pytest.raises(FormatError, match=r"x\.jsonl, line 6, is damaged or of another version: .*left as it is"):
        opened(HEAD, QUESTION, ANSWER, PIECE, END, record)


@pytest.mark.parametrize("line", [b"", b"\0" * 40, b'{"type": "se', b"[" * 100_000, b"\xff\xfe{}", b"1" * 5000])
def test_a_damaged_line_is_an_error_that_names_it(line: bytes) -> None:
    with pytest.raises(FormatError, match="line 2"):
        replay([(1, json.dumps(HEAD).encode()), (2, line)], "x.jsonl")


@pytest.mark.parametrize("first", [QUESTION, {**HEAD, "version": 2}, {**HEAD, "uid": 5}])
def test_a_file_that_does_not_begin_as_one_of_ours_is_refused(first: Any) -> None:
    with pytest.raises(FormatError, match="line 1"):
        opened(first)


def test_no_records_are_no_dialog_yet() -> None:
    assert (opened().uid, list(opened().tree)) == ("", [])
