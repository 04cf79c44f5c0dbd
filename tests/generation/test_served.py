"""`complete` over a server: the JSON contract, faults in the middle, and many questions under way at once."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llamachat.core.dialog import Message
from llamachat.errors import UsageError
from llamachat.generation.in_flight import Patience
from llamachat.generation.served import ServedCompleter
from llamachat.remote.asking import Alternative, Ended, Format, Piece, Question, ScoredToken, ServerError, Usage

Answer = Callable[[Question, Callable[[], bool]], Iterator[Piece | Ended]]
DONE = Ended("stop", Usage(7, 3, 2), 0.5, 1.5)


class Scripted:
    """A server that answers as a function does."""

    def __init__(self, answer: Answer) -> None:
        self.ask = answer


def saying(*pieces: Piece | Ended | Exception) -> Answer:
    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return answer


def asked_for(question: Question) -> str:
    return question.text if question.text is not None else question.messages[-1].content


def completer(answer: Answer, said: list[str] | None = None, stopped: list[int] | None = None, **changes: Any) -> Any:
    given = {"settings": Question(), "system": None, "raw": False, "patience": Patience(0.001, 0.05), **changes}
    say = [].append if said is None else said.append
    return ServedCompleter(Scripted(answer), "m", interrupted=lambda: bool(stopped), say=say, **given)  # type: ignore[arg-type]


class Given:
    """Lines that are all there; with `late`, each is only there when it may be waited for."""

    def __init__(self, *lines: str, late: bool = False) -> None:
        self._lines, self._late = iter([line + "\n" for line in lines]), late

    def take(self, wait: bool) -> str | None:
        return None if self._late and not wait else next(self._lines, "")


def prompts(*texts: str) -> list[str]:
    return [json.dumps({"prompt": text}) for text in texts]


def batched(run: Any, *lines: str, parallel: int = 3, **given: Any) -> tuple[bool, list[dict[str, Any]]]:
    out = io.StringIO()
    good = run.batch(Given(*lines, **given), out, parallel)
    return good, [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_contract_object_over_a_server() -> None:
    pieces = [Piece("I muse. ", thinking=True), Piece("It "), Piece("is."), DONE]
    assert json.loads(json.dumps(completer(saying(*pieces)).result([Message("user", "?")]))) == {
        "model": "m",
        "text": "It is.",
        "reasoning": "I muse.",
        "tokens": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        "timings": {"load_s": 0.0, "prefill_s": 0.5, "decode_s": 1.0, "prefill_tok_s": 10.0, "decode_tok_s": 2.0},
    }


def test_what_a_server_does_not_tell_is_null_and_no_ids_are_no_tokens() -> None:
    tokens = ScoredToken("a", float("nan"), 5, ()), ScoredToken("b", -1.0, None, (Alternative("b", -1.0),))
    run = completer(
        saying(Piece("ab", tokens=tokens), Ended("length", None, 0.1, 0.2)), settings=Question(top_logprobs=1)
    )
    result = run.result("x")
    assert (result["usage"], result["tokens"]) == ({"prompt_tokens": None, "completion_tokens": None}, [])
    first, second = result["logprobs"]
    assert first == {"id": 5, "token": "a", "logprob": None, "top": []}
    assert second["top"] == [{"id": None, "token": "b", "logprob": -1.0}]


def test_ids_are_told_where_all_are_known() -> None:
    tokens = ScoredToken("a", -1.0, 5), ScoredToken("b", -1.0, 6)
    run = completer(saying(Piece("ab", tokens=tokens), DONE), settings=Question(top_logprobs=0))
    assert run.result("x")["tokens"] == [5, 6]


def test_a_question_has_the_system_prompt_the_format_and_what_all_have_in_common() -> None:
    seen: list[Question] = []

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        seen.append(question)
        yield DONE

    run = completer(answer, settings=Question(max_tokens=5), system="Be brief.", grammar=Format("regex", "a"))
    lines = ['{"prompt": "x", "schema": {"type": "object"}}', '{"messages": [{"role": "system", "content": "y"}]}']
    assert batched(run, *lines, parallel=1)[0]
    first, second = seen
    assert first.messages == [Message("system", "Be brief."), Message("user", "x")] and first.max_tokens == 5
    assert (first.format, second.format) == (Format("schema", '{"type": "object"}'), Format("regex", "a"))
    assert second.messages == [Message("system", "y")]
    completer(answer, raw=True).result("plain")
    assert seen[-1].text == "plain" and not seen[-1].messages


def test_what_breaks_off_stays_on_a_line_of_its_own() -> None:
    broken = saying(Piece("half an "), Piece("ans"), ServerError("it broke off"))
    out = io.StringIO()
    with pytest.raises(ServerError):
        completer(broken).stream("x", out)
    assert out.getvalue() == "half an ans\n"
    kept: list[dict[str, Any]] = []
    with pytest.raises(ServerError):
        completer(broken).result("x", kept.append)
    assert [(each["text"], each["finish_reason"]) for each in kept] == [("half an ans", "interrupt")]


def test_nothing_is_written_of_an_answer_that_never_began() -> None:
    out, kept = io.StringIO(), list[dict[str, Any]]()
    with pytest.raises(ServerError):
        completer(saying(ServerError("refused"))).stream("x", out)
    with pytest.raises(ServerError):
        completer(saying(ServerError("refused"))).result("x", kept.append)
    assert (out.getvalue(), kept) == ("", [])


def test_thoughts_go_where_they_are_asked_for() -> None:
    out, thoughts = io.StringIO(), io.StringIO()
    completer(saying(Piece("hm", thinking=True), Piece("yes"), DONE)).stream("x", out, thoughts)
    assert (out.getvalue(), thoughts.getvalue()) == ("yes\n", "hm\n")


@pytest.mark.parametrize("end", [DONE, ServerError("it broke off")])
def test_a_thought_that_a_server_leaves_in_the_text_is_none_of_the_answer(end: Ended | ServerError) -> None:
    run, kept = completer(saying(Piece("<thi"), Piece("nk>hm</think>\n\nyes <think>"), end)), list[dict[str, Any]]()
    if isinstance(end, ServerError):
        with pytest.raises(ServerError):
            run.result([Message("user", "x")], kept.append)
    else:
        kept.append(run.result([Message("user", "x")]))
    assert [(each["reasoning"], each["text"]) for each in kept] == [("hm", "yes <think>")]


def test_the_start_of_a_mark_is_text_where_no_more_comes_and_a_text_gone_on_with_has_no_marks() -> None:
    assert completer(saying(Piece("<thi"), DONE)).result([Message("user", "x")])["text"] == "<thi"
    assert completer(saying(Piece("<think>hm</think>"), DONE), raw=True).result("x")["text"] == "<think>hm</think>"


def test_what_a_server_ignores_is_said_once() -> None:
    said: list[str] = []
    ended = Ended("stop", None, 0.1, 0.2, ("min_p", "the seed"), ("the model calls a tool",))
    batched(completer(saying(Piece("a"), ended), said), *prompts("1", "2", "3"))
    assert said == ["the server ignores min_p, the seed", "the model calls a tool"]


def test_answers_come_in_order_however_long_each_takes() -> None:
    """Each waits for the one behind it."""
    texts = [str(number) for number in range(4)]
    ended = {text: threading.Event() for text in texts}

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        text = asked_for(question)
        if (behind := str(int(text) + 1)) in ended:
            assert ended[behind].wait(60)
        ended[text].set()
        yield Piece(text)
        yield DONE

    good, results = batched(completer(answer), *prompts(*texts), parallel=4)
    assert good and [each["text"] for each in results] == texts


def test_as_many_as_asked_for_are_under_way_and_no_more() -> None:
    barrier, lock, now, most = threading.Barrier(3), threading.Lock(), [0], [0]

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        barrier.wait(60)  # passes when three are here
        with lock:
            now[0] -= 1
        yield DONE

    good, results = batched(completer(answer), *prompts(*"abcdef"))
    assert good and len(results) == 6 and most == [3]


def test_a_fault_costs_its_own_line_only() -> None:
    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        yield Piece("half")
        if asked_for(question) == "bad":
            raise ServerError("the server broke off", "half an answer came")
        yield DONE

    good, results = batched(completer(answer), *prompts("a", "bad"), "[]", *prompts("c"))
    assert not good and [each.get("text") for each in results] == ["half", None, None, "half"]
    assert results[1] == {"error": "the server broke off; half an answer came"} and "line 3" in results[2]["error"]


def busy(seconds: float) -> ServerError:
    error = ServerError("too many requests")
    error.retry_after = seconds
    return error


def test_a_busy_server_is_asked_again_which_is_said_once() -> None:
    left, said = {"a": 2, "b": 1}, list[str]()

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        if left[asked_for(question)]:
            left[asked_for(question)] -= 1
            raise busy(0)
        yield Piece("at last")
        yield DONE

    good, results = batched(completer(answer, said), *prompts("a", "b"))
    assert good and [each["text"] for each in results] == ["at last"] * 2
    assert len(said) == 1 and "busy" in said[0]


@pytest.mark.parametrize("seconds", [0, 3600])
def test_patience_ends(seconds: float) -> None:
    good, results = batched(completer(saying(busy(seconds)), patience=Patience(0.01, 0.03)), *prompts("a"))
    assert not good and results == [{"error": "too many requests"}]


def test_an_interrupt_ends_what_is_under_way_and_begins_nothing_more() -> None:
    stopped, begun = list[int](), list[str]()

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        begun.append(asked_for(question))
        yield Piece("so far")
        if len(begun) == 2:
            stopped.append(1)
        while not interrupted():
            threading.Event().wait(0.001)
        yield Ended("interrupt", None, 0.1, 0.2)

    good, results = batched(completer(answer, stopped=stopped), *prompts(*"abcd"), parallel=2)
    assert good and [(each["text"], each["finish_reason"]) for each in results] == [("so far", "interrupt")] * 2


def test_who_leaves_is_not_waited_for() -> None:
    """A pipe whose reader has gone: the others are told to stop."""

    def answer(question: Question, interrupted: Callable[[], bool]) -> Iterator[Piece | Ended]:
        while asked_for(question) != "a" and not interrupted():
            threading.Event().wait(0.001)
        yield DONE

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        completer(answer).batch(Given(*prompts("a", "b", "c")), Gone(), 3)


def test_lines_that_come_late_are_answered_as_they_come() -> None:
    good, results = batched(completer(saying(Piece("x"), DONE)), *prompts("a", "b"), late=True)
    assert good and len(results) == 2


def test_a_stop_string_and_a_format_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="cut an answer short"):
        completer(saying(DONE), settings=Question(stop=["a"]), grammar=Format("regex", "b")).result("x")
