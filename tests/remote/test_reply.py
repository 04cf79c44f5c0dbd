"""What servers answer, in all the shapes that they give it, as pieces."""

import json
import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import DONE, delta, event

from llamachat.core.dialog import Message
from llamachat.remote import reply as replies
from llamachat.remote.asking import Alternative, Format, Piece, Question, ScoredToken, ServerError, Usage
from llamachat.remote.faults import RefusedError, refusal
from llamachat.remote.reply import Reply, parsed

HELLO = [Message("user", "Hello")]
SCORED = Question(HELLO, top_logprobs=1)
STOP = delta(reason="stop")


def read(*blocks: bytes, question: Question = SCORED) -> tuple[list[Piece], Reply]:
    reply = Reply(question, "SERVER", None)
    return [*reply.stream(blocks)], reply


def whole(answer: object, question: Question = SCORED) -> tuple[list[Piece], Reply]:
    reply = Reply(question, "SERVER", None)
    return [*reply.whole([json.dumps(answer).encode()])], reply


def text(pieces: Sequence[Piece], thinking: bool = False) -> str:
    return "".join(piece.text for piece in pieces if piece.thinking is thinking)


def test_a_chats_parts() -> None:
    pieces, reply = read(delta(role="assistant"), delta("Hel"), delta("lo"), delta(""), STOP, DONE)
    assert pieces == [Piece("Hel"), Piece("lo")] and reply.reason == "stop" and reply.usage is None


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_in_both_spellings(name: str) -> None:
    pieces, _ = read(delta(**{name: "Hm"}), delta(**{name: "."}), delta("Yes", **{name: None}), STOP)
    assert pieces == [Piece("Hm", True), Piece(".", True), Piece("Yes")]


def test_tags_in_the_content_stay_there() -> None:
    assert read(delta("<think>Hm</think>Yes"), STOP)[0] == [Piece("<think>Hm</think>Yes")]


def test_counts_of_tokens() -> None:
    counts = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    assert read(delta("x"), STOP, event({"choices": [], "usage": counts}), DONE)[1].usage == Usage(7, 2, 5)
    for wrong in (
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 10**4000, "completion_tokens": 2},
        {"prompt_tokens": True},
        [],
        "7",
    ):
        assert read(delta("x"), STOP, event({"choices": [], "usage": wrong}))[1].usage is None


def test_a_chats_logprobs() -> None:
    """With bytes, which say more than a token's name, and llama-server's ids."""
    top = [{"token": "a", "logprob": -2}, {"token": "b", "logprob": -0.5, "id": 4}, {"token": "c", "logprob": None}]
    entry = {"token": "bytes:\\xc3\\xa9", "bytes": [0xC3, 0xA9], "logprob": -0.5, "id": 9, "top_logprobs": top}
    chunk = {"choices": [{"delta": {"content": "é"}, "logprobs": {"content": [entry]}}]}
    pieces, reply = read(event(chunk), STOP)
    assert pieces == [Piece("é", tokens=(ScoredToken("é", -0.5, 9, (Alternative("b", -0.5, 4),)),))]
    assert [*reply.ignored()] == []


def test_the_older_logprobs() -> None:
    lists = {"tokens": ["x", " y"], "token_logprobs": [None, -1], "top_logprobs": [None, {" y": -1, " z": -2}]}
    pieces, _ = read(event({"choices": [{"text": "x y", "logprobs": lists, "finish_reason": "length"}]}))
    first, second = pieces[0].tokens
    assert first.text == "x" and math.isnan(first.logprob) and first.top == ()
    assert second == ScoredToken(" y", -1.0, None, (Alternative(" y", -1.0),))


@pytest.mark.parametrize(
    "lists",
    [{"tokens": ["x"]}, {"tokens": 7}, {"content": [7, {"token": 1}]}, [], {"tokens": ["x"], "token_logprobs": [{}, 1]},
     {"tokens": ["x"], "top_logprobs": [{"y": 10**400}]}, {"content": [{"token": "x", "bytes": [999]}]},
     {"content": [{"token": "x", "bytes": 10**10}]}],
)  # fmt: skip
def test_logprobs_that_are_none_are_survived(lists: object) -> None:
    assert text(read(event({"choices": [{"text": "x", "logprobs": lists, "finish_reason": "stop"}]}))[0]) == "x"


@pytest.mark.parametrize(
    "number", ["1e308", "1", "Infinity", "-Infinity", "NaN", "1" + "0" * 400, "true", '"-1"', "null"]
)
def test_a_logprob_is_of_a_probability_or_none(number: str) -> None:
    """What it is the exponent of is shown, and JSON knows no infinity."""
    chunk = f'data: {{"choices": [{{"text": "x", "logprobs": {{"content": [{{"logprob": {number}}}]}}}}]}}\n\n'
    assert math.isnan(read(chunk.encode(), STOP)[0][0].tokens[0].logprob)


def test_a_certain_token_may_be_rounded_up() -> None:
    chunk = {"choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "logprob": 1e-7, "id": -1}]}}]}
    assert read(event(chunk), STOP)[0][0].tokens == (ScoredToken("x", 0.0),)


def test_logprobs_that_nobody_asked_for_are_not_kept() -> None:
    chunk = {"choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "logprob": -1}]}}]}
    assert read(event(chunk), STOP, question=Question(HELLO))[0] == [Piece("x")]


def test_a_text_in_parts() -> None:
    """As Mistral's thinking models send it; and what OpenAI's refuse."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, 7]}
    parts = [thought, {"type": "text", "text": "Ye"}, {"type": "image"}, "x", {"type": "text", "text": "s"}]
    assert read(delta(content=parts), STOP)[0] == [Piece("Hm", True), Piece("Yes")]  # type: ignore[misc]
    assert read(delta(refusal="No."), STOP)[0] == [Piece("No.")]


def test_an_answer_that_comes_as_one() -> None:
    message = {"role": "assistant", "reasoning_content": "Hm", "content": "Yes"}
    pieces, reply = whole({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]})
    assert pieces == [Piece("Hm", True), Piece("Yes")] and reply.reason == "length"
    assert whole({"choices": [{"text": "Yes", "finish_reason": "stop"}]})[0] == [Piece("Yes")]


def test_what_an_answer_proves_to_have_been_ignored() -> None:
    wanted = Question(HELLO, top_logprobs=2, thinking=False, format=Format("schema", "{}"))
    _, reply = read(delta(reasoning="Hm"), delta("Yes"), STOP, question=wanted)
    assert [*reply.ignored()] == ["logprobs", "not to think", "the JSON schema"]
    _, reply = read(delta('{"a": 1}'), STOP, question=Question(HELLO, format=Format("schema", "{}")))
    assert [*reply.ignored()] == []
    for said, ignored in (('{"a": ', []), ("Yes, of", ["the JSON schema"])):
        _, reply = read(delta(said), delta(reason="length"), question=Question(HELLO, format=Format("schema", "{}")))
        assert [*reply.ignored()] == ignored


def test_a_text_that_is_repeated_is_a_piece_of_its_own() -> None:
    asked = Question(text="a b", echo=True, top_logprobs=1)
    lists = {"tokens": ["a", " b", " c"], "token_logprobs": [None, -1, -2], "text_offset": [0, 1, 3]}
    answer: dict[str, Any] = {"choices": [{"text": "a b c", "logprobs": lists, "finish_reason": "length"}]}
    for _ in range(2):
        pieces, reply = whole(answer, asked)
        assert [(piece.text, [token.text for token in piece.tokens]) for piece in pieces] == [
            ("a b", ["a", " b"]),
            (" c", [" c"]),
        ]
        assert [*reply.ignored()] == []
        del lists["text_offset"]  # where the tokens' texts tell
        answer["choices"][0]["logprobs"] = lists
        lists["text_offset"] = "none"  # type: ignore[assignment]


def test_a_text_that_is_not_repeated() -> None:
    asked = Question(text="a b", echo=True, top_logprobs=1)
    lists = {"tokens": [" c"], "token_logprobs": [-2]}
    pieces, reply = whole({"choices": [{"text": " c", "logprobs": lists, "finish_reason": "length"}]}, asked)
    assert text(pieces) == "a b c" and [*reply.ignored()] == ["logprobs of the text itself"]


def test_an_error_event_may_be_a_plain_text() -> None:
    with pytest.raises(ServerError, match="reports: overloaded"):
        read(delta("x"), b"event: error\ndata: overloaded\n\n")


def test_tools_and_filters_are_told() -> None:
    call = {"index": 0, "function": {"name": "get_\x1bweather", "arguments": "{}"}}
    _, reply = read(delta(tool_calls=[call]), delta(tool_calls=[call]), delta(reason="tool_calls"))
    assert reply.notes == ["the model calls the tool 'get_ weather': tools are not run"] and reply.reason == "stop"
    _, reply = read(delta("x"), delta(reason="content_filter"))
    assert reply.notes == ["the server's filter ended the answer"]
    _, reply = read(delta("x"), *[delta(reason="content_filter")] * 3)
    assert len(reply.notes) == 1


@pytest.mark.parametrize("reason", ["", None, 0, {}, [1]])
def test_what_is_no_reason_to_end_ends_nothing(reason: Any) -> None:
    with pytest.raises(ServerError, match="broke off"):
        read(delta("x", reason))
    assert read(delta("x", reason), delta("y", reason), STOP)[1].reason == "stop"


def test_an_error_that_only_its_kind_tells() -> None:
    """As older ones of vLLM and SGLang have it."""
    with pytest.raises(ServerError, match="reports: no more"):
        read(delta("x"), event({"object": "error", "message": "no more", "code": 400}))


def test_halves_of_characters_become_whole_or_are_replaced() -> None:
    pieces, _ = read(b'data: {"choices":[{"text":"\\ud834\\udd1e \\ud834","finish_reason":"stop"}]}\n\n')
    assert text(pieces) == "𝄞 \ufffd"


def test_other_choices_are_not_this_answer() -> None:
    other = event({"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]})
    assert text(read(other, delta("yes"), STOP)[0]) == "yes"
    both = {"choices": [{"index": 1, "text": "no"}, {"index": 0, "text": "yes"}]}
    assert text(read(event(both), event({"choices": [{"index": None, "text": "!"}]}), STOP)[0]) == "yes!"


def test_a_stream_and_its_text_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "LONGEST_TEXT", 1 << 20)
    with pytest.raises(ServerError, match="sends an answer of more than 1 million characters"):
        read(*[delta("x" * 1000)] * 1000, *[delta("x" * (1 << 19))])
    monkeypatch.setattr(replies, "LONGEST_STREAM", 1 << 20)
    with pytest.raises(ServerError, match="sends more than 1 MiB"):
        read(*[b": comment\n" * 1000] * 200)
    monkeypatch.setattr(replies, "LONGEST_BODY", 1 << 20)
    with pytest.raises(ServerError, match="sends more than 1 MiB"):
        Reply(SCORED, "SERVER", None).whole([b" " * 1000] * 2000).__next__()


def test_what_one_json_makes_is_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text can be a great many objects."""
    monkeypatch.setattr(replies, "MOST_VALUES", 1 << 20)
    for many in (b"[]," * (1 << 19), b"0," * (1 << 20), b"{}," * (1 << 19)):
        with pytest.raises(ServerError, match="more than 1 million values"):
            parsed(b'{"a": [' + many + b"0]}", "SERVER")
    monkeypatch.setattr(replies, "MOST_SCORES", 1000)
    chunk = event({"choices": [{"text": "x", "logprobs": {"content": [{}] * 90}}]})
    with pytest.raises(ServerError, match="logprobs"):
        read(*[chunk] * 12, STOP)


def outcome(blocks: Sequence[bytes]) -> tuple[str, str, str]:
    """What was thought, what was said, and how that ended."""
    reply, pieces, ended = Reply(SCORED, "SERVER", None), list[Piece](), ""
    try:
        for piece in reply.stream(blocks):
            pieces.append(piece)
        ended = str(reply.reason)
    except (ServerError, RefusedError) as error:
        ended = f"{error} {getattr(error, 'body', '')}"
    return text(pieces, True), text(pieces), ended


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "content", "text", "index", "logprobs", "usage", "error", "finish_reason",
             "reasoning", "tool_calls", "function", "tokens", "token_logprobs", "top_logprobs", "bytes", "prompt_tokens"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
PARTS = st.sampled_from(
    [delta("é𝄞"), delta(reasoning="ü"), STOP, DONE, b": ping\n\n", event({"choices": []}), event({"error": "e"})]
)


@given(st.lists(PARTS | JUNK.map(event), max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_cuts_change_nothing(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    assert outcome([data[at:end] for at, end in pairwise(ends)]) == outcome([data])


@given(st.lists(st.binary(max_size=60) | PARTS, max_size=6))
def test_any_bytes_end_in_pieces_or_in_a_line(blocks: list[bytes]) -> None:
    _, _, ended = outcome(blocks)
    assert ended in ("stop", "length") or len(ended.splitlines()) == 1


DEEP = reduce(lambda inner, _: [inner], range(400), "x")


def survived(value: object) -> None:
    """It gives pieces, or an error of one line."""
    try:
        whole(value)
    except (ServerError, RefusedError) as error:
        assert len(str(error).splitlines()) == 1


def told(body: object, status: int = 400, header: str = "") -> None:
    """A refusal with this body is an error of one line."""
    refused = RefusedError(status, {"retry-after": header, "location": header}, body)
    assert refused.named(["seed", "top_k"]) <= {"seed", "top_k"}
    line = str(refusal("SERVER", refused, None, "key"))
    assert len(line.splitlines()) == 1 and len(line) < 400


@given(JUNK)
def test_any_json_ends_in_pieces_or_in_a_line(value: object) -> None:
    survived(value)


@given(JUNK, st.sampled_from([200, 204, 302, 400, 401, 404, 422, 429, 500, 503]), st.text(max_size=30))
def test_any_refusal_is_a_line(body: object, status: int, header: str) -> None:
    told(body, status, header)


DEEP_ANSWERS = [
    {"choices": [{"delta": {"content": DEEP, "tool_calls": [{"function": {"name": DEEP}}]}, "finish_reason": DEEP}]},
    {"choices": [{"text": "x", "logprobs": {"tokens": [DEEP]}, "finish_reason": "stop"}, DEEP]},
    {"choices": [{"text": "x", "logprobs": {"content": [{"token": DEEP, "bytes": [DEEP]}]}, "finish_reason": "stop"}]},
    {"error": {"message": DEEP, "code": DEEP, "param": DEEP}},
    {"detail": [{"loc": ["body", DEEP], "msg": DEEP}]},
    {"usage": DEEP},
]


@pytest.mark.parametrize("at", range(len(DEEP_ANSWERS)))  # not the values, of which pytest would show too much
def test_what_is_nested_deeply_is_not_walked(at: int) -> None:
    survived(DEEP_ANSWERS[at])
    told(DEEP_ANSWERS[at])
