"""Streams say what the calls without one return, and leave the model usable wherever they are left off."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hash_engine import HashEngine, hash_model
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from llamachat import Llama
from llamachat.api import Stream
from llamachat.errors import DoesNotFitError, UsageError

DIALOG = [{"role": "user", "content": "hi"}]


def build(seed: int = 1, slots: int = 800) -> Llama:
    return Llama(replace(hash_model(slots), parallel=2), max_batch_size=4, seed=seed)


def computed(llama: Llama) -> int:
    """Tokens that the engine has run."""
    assert isinstance(llama.model.engine, HashEngine)
    return sum(llama.model.engine.forwarded)


@limited(max_examples=25)
@given(
    text=st.text(min_size=1, max_size=9),
    seed=st.integers(0, 2**64 - 1),
    settings=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0, 0.6, 3.0]),
            "max_gen_len": st.none() | st.integers(0, 60),
            "logprobs": st.booleans(),
            "echo": st.booleans(),
        }
    ),
)
def test_pieces_make_up_what_the_twin_returns(text: str, seed: int, settings: dict[str, Any]) -> None:
    """Its bytes are mostly no UTF-8, and control tokens are among its tokens."""
    stream = build(seed, 160).text_stream(text, **settings)
    (expected,) = build(seed, 160).text_completion([text], **settings)
    assert "".join(stream) == expected["generation"]
    assert stream.result == expected
    said = [{"role": "user", "content": text}]
    answer = build(seed, 160).chat_stream(said, **{key: value for key, value in settings.items() if key != "echo"})
    whole = build(seed, 160).chat_completion([said], **{key: value for key, value in settings.items() if key != "echo"})
    assert ["".join(answer)] == [each["generation"]["content"] for each in whole]
    assert [answer.result] == whole


@pytest.mark.parametrize(("limit", "reason"), [(3, "length"), (None, "stop"), (0, "length")])
def test_a_stream_says_why_it_ended(limit: int | None, reason: str) -> None:
    stream = build().text_stream("abc", temperature=0, max_gen_len=limit)
    assert stream.finish_reason is None
    for _ in stream:
        assert stream.finish_reason is None
    assert stream.finish_reason == reason
    assert list(stream) == []


def test_nothing_is_computed_before_it_is_asked_for_nor_after_it_was_closed() -> None:
    llama = build()
    stream = llama.chat_stream(DIALOG, temperature=0)
    assert computed(llama) == 0
    begun = list(islice(stream, 3))
    assert stream.result["generation"]["content"].startswith("".join(begun))
    stream.close()
    before, kept = computed(llama), stream.result
    assert list(stream) == [] and stream.finish_reason == "interrupt"
    stream.close()
    assert (computed(llama), stream.result) == (before, kept)
    assert llama.chat_completion([DIALOG], temperature=0) == build().chat_completion([DIALOG], temperature=0)


def test_a_block_that_is_left_closes_its_stream() -> None:
    llama = build()
    with llama.chat_stream(DIALOG, temperature=0) as stream:
        for _ in stream:
            break
    assert stream.finish_reason == "interrupt"
    with pytest.raises(ZeroDivisionError), llama.chat_stream(DIALOG) as stream:
        next(stream)
        _ = 1 / 0
    assert stream.finish_reason == "interrupt"
    expected = "".join(build().text_stream("ab", temperature=0))
    assert "".join(llama.text_stream("ab", temperature=0)) == expected


def next_requests(llama: Llama) -> list[Any]:
    return [
        lambda: next(llama.text_stream("xyz", temperature=0)),
        lambda: llama.text_completion(["xyz"]),
        lambda: llama.generate([[1], [2]], 3),
    ]


@pytest.mark.parametrize("which", range(3))
def test_reading_on_after_another_request_is_an_error_and_what_was_said_is_kept(which: int) -> None:
    llama = build()
    stream = llama.chat_stream(DIALOG, temperature=0)
    begun = "".join(islice(stream, 2))
    next_requests(llama)[which]()
    for _ in range(2):
        with pytest.raises(UsageError, match="the model has begun another answer"):
            next(stream)
    assert stream.finish_reason == "interrupt"
    assert stream.result["generation"]["content"].startswith(begun)


@pytest.mark.parametrize("which", range(3))
def test_a_stream_that_has_ended_or_not_begun_does_not_mind_another_request(which: int) -> None:
    llama = build()
    ended: Stream[Any] = llama.chat_stream(DIALOG, temperature=0)
    waiting = llama.chat_stream(DIALOG, temperature=0)
    text = "".join(ended)
    next_requests(llama)[which]()
    assert (list(ended), ended.finish_reason) == ([], "stop")
    assert "".join(waiting) == text


def test_an_error_of_the_engine_ends_the_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = build()
    stream = llama.chat_stream(DIALOG, temperature=0)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(llama.model.engine, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(stream)
    assert list(stream) == []
    assert llama.chat_completion([DIALOG], temperature=0) == build().chat_completion([DIALOG], temperature=0)


def test_bad_arguments_are_refused_at_the_call() -> None:
    llama = build()
    with pytest.raises(DoesNotFitError, match="max_seq_len=400"):
        llama.text_stream("x" * 401)
    with pytest.raises(UsageError, match="temperature is -1"):
        llama.text_stream("x", temperature=-1)
    with pytest.raises(UsageError, match="max_gen_len is True"):
        llama.chat_stream(DIALOG, max_gen_len=True)
    with pytest.raises(UsageError, match="without tokens"):
        llama.text_stream("")
    with pytest.raises(UsageError, match="a message is not"):
        llama.chat_stream([DIALOG])
