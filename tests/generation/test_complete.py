"""complete.py: the JSON contract, logprobs, echo, batches, prompts from everywhere, and clean streams."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hash_engine import HashEngine, hash_model

from llamachat.core.sampler import token_logprobs
from llamachat.core.sampling import SamplingParams
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.generation.constraints import from_regex
from llamachat.generation.jsonl import Lines
from llamachat.generation.prompting import write_json
from llamachat.generation.prompts import open_lines, read_format, read_prompt
from llamachat.models import load

GREEDY = SamplingParams(temperature=0)


def completer(
    *, raw: bool = True, echo: bool = False, system: str | None = None, slots: int = 512, **s: Any
) -> Completer:
    grammar = s.pop("grammar", None)
    settings = AnswerSettings(GREEDY, frozenset({257, 258}), **{"max_tokens": 6, **s})
    return Completer(hash_model(slots), settings, system, raw, echo, grammar=grammar)


class Given:
    """Lines that are all there."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter([line + "\n" for line in lines])

    def take(self, wait: bool) -> str:
        return next(self._lines, "")


def batched(run: Completer, *lines: str, skip: int = 0) -> tuple[bool, list[dict[str, Any]]]:
    """Whether all lines were good, and the results."""
    out = io.StringIO()
    good = run.batch(Given(*lines), out, 3, skip)
    return good, [json.loads(line) for line in out.getvalue().splitlines()]


def expected(prompt: list[int], count: int = 6) -> list[int]:
    """Greedy continuation by the slow definition."""
    engine, ids = HashEngine(512, 259), list(prompt)
    for _ in range(count):
        ids.append(int(engine.row(ids).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Say hi\r\nplease\r\n", "Say hi\r\nplease"),
        (b"\xef\xbb\xbfSay hi", "Say hi"),
        (b"\xef\xbb\xbfa\rb\n\n", "a\rb\n"),
        (b"a\n\r", "a\n\r"),
        (b"\r\n", ""),
        ("é\u2028\x85\ufeff\n".encode(), "é\u2028\x85\ufeff"),
    ],
)
def test_a_text_is_the_same_tokens_from_a_file_stdin_and_jsonl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, text: str
) -> None:
    file, batch = tmp_path / "prompt", tmp_path / "batch"
    file.write_bytes(data)
    monkeypatch.setattr("sys.stdin", Terminal())
    run, texts = completer(), []
    if text:
        texts.append(read_prompt(None, file))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        texts.append(read_prompt(None, None))
        assert texts == [text, text]
    batch.write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": text or "x"}).encode() + b"\r\n")
    with open_lines(batch) as lines:
        good, (result,) = batched_lines(run, Lines(lines))
    assert good and result["tokens"] == run.result(text or "x")["tokens"]


def batched_lines(run: Completer, lines: Lines) -> tuple[bool, list[dict[str, Any]]]:
    out = io.StringIO()
    return run.batch(lines, out, 3), [json.loads(line) for line in out.getvalue().splitlines()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_result_is_the_contract_object() -> None:
    result = completer().result("ab")
    assert list(result) == ["model", "text", "tokens", "finish_reason", "usage", "timings"]
    assert result["tokens"] == expected(list(b"ab"))
    assert result["finish_reason"] == "length"
    assert result["usage"] == {"prompt_tokens": 2, "completion_tokens": 6}
    assert set(result["timings"]) == {"load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"}
    json.dumps(result)


def test_logprobs_are_of_the_plain_distribution() -> None:
    result = completer(top_logprobs=3).result("ab")
    ids = list(b"ab")
    for entry in result["logprobs"]:
        exact = token_logprobs(HashEngine(512, 259).row(ids), entry["id"], 3)
        assert entry["logprob"] == exact.logprob
        assert [(t["id"], t["logprob"]) for t in entry["top"]] == list(exact.top)
        ids.append(entry["id"])
    assert ids[2:] == result["tokens"]


def test_echo_puts_the_prompt_and_its_logprobs_first() -> None:
    plain, echoed = (
        completer(top_logprobs=1).result("abc"),
        completer(top_logprobs=1, score_prompt=True, echo=True).result("abc"),
    )
    assert echoed["text"] == "abc" + plain["text"]
    assert echoed["tokens"] == [*b"abc", *plain["tokens"]]
    assert [entry["id"] for entry in echoed["logprobs"]] == echoed["tokens"]
    assert echoed["logprobs"][0] == {"id": ord("a"), "token": "a", "logprob": None, "top": []}
    assert echoed["logprobs"][1]["logprob"] == token_logprobs(HashEngine(512, 259).row([97]), 98, 1).logprob
    assert echoed["logprobs"][3:] == plain["logprobs"]


def test_a_control_token_is_named_in_logprobs() -> None:
    top = completer(top_logprobs=100).result("ab")["logprobs"][0]["top"]
    assert {entry["token"] for entry in top if entry["id"] >= 256} <= {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    assert len(top) == 100


def test_a_dialog_is_rendered_with_the_system_prompt() -> None:
    run = completer(raw=False, system="be brief")
    run.result(run.dialog("hi"))
    assert bytes(t for t in run.cache.log if t < 256).startswith(b"system\nbe brief\nuser\nhi\nassistant\n")


def test_stop_strings_cut_the_text() -> None:
    whole = completer().result("ab")["text"]
    result = completer(stop_strings=[whole[2]]).result("ab")
    assert (result["text"], result["finish_reason"]) == (whole[: whole.index(whole[2])], "stop")


def test_stream_writes_text_as_it_is_off_a_terminal_and_sanitised_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashEngine, "row", lambda self, tokens: script(b"a\x1b]0;evil\x07b", len(tokens) - 1))
    piped, terminal = io.StringIO(), Terminal()
    completer(max_tokens=11).stream("x", piped)
    completer(max_tokens=11).stream("x", terminal)
    assert piped.getvalue() == "a\x1b]0;evil\x07b\n"
    assert terminal.getvalue() == "ab\n"


def script(said: bytes, at: int) -> Any:
    """Logits that say these bytes one after the other."""
    import numpy as np

    logits = np.zeros(259, np.float32)
    logits[said[at] if at < len(said) else 258] = 9
    return logits


def test_a_batch_gives_one_line_for_each_in_order_and_reports_bad_ones_in_place() -> None:
    lines = ['{"prompt": "one"}', "", "nonsense", '{"prompt": 3}', '{"messages": []}', '{"prompt": "two"}']
    good, results = batched(completer(), *lines)
    assert not good
    assert [result.get("tokens") for result in results] == [
        expected(list(b"one")),
        None,
        None,
        None,
        expected(list(b"two")),
    ]
    assert [result["error"].split(";")[0] for result in results[1:4]] == [
        "line 3 is not JSON: Expecting value: line 1 column 1 (char 0)",
        "line 4 is not a request",
        "line 5 is not a request",
    ]


def test_a_key_that_no_request_has_is_named() -> None:
    good, (result,) = batched(completer(), '{"prompt": "one", "temperature": 9}')
    assert not good and result["error"].startswith(
        "line 1 has 'temperature', which no request has; it was skipped; write {"
    )
    assert result["error"].endswith("; options hold for all lines")


def test_a_batch_gives_what_each_prompt_gives_alone() -> None:
    texts = ["one", "two", "three " * 20, "four", "x" * 600]
    options: dict[str, Any] = {"top_logprobs": 2, "score_prompt": True, "echo": True}
    good, results = batched(completer(**options), *(json.dumps({"prompt": text}) for text in texts))
    assert not good and "the context holds 512" in results.pop()["error"]
    for text, result in zip(texts, results, strict=False):
        alone = completer(**options).result(text)
        assert {**result, "timings": 0} == {**json.loads(json.dumps(alone)), "timings": 0}


def test_a_batch_skips_what_was_answered_before() -> None:
    lines = ['{"prompt": "one"}', "", "nonsense", "", '{"prompt": "two"}']
    assert batched(completer(), *lines, skip=2)[1][0]["tokens"] == expected(list(b"two"))
    assert batched(completer(), *lines, skip=3) == (True, [])


def test_a_line_that_cannot_be_read_costs_that_line_only() -> None:
    out, taken = io.StringIO(), iter(['{"prompt": "one"}\n', "\n", None, '{"prompt": "one"}\n', ""])

    class Broken:
        def take(self, wait: bool) -> str:
            if (line := next(taken)) is None:
                raise UsageError("a line is longer than 1 MiB", "it was skipped")
            return line

    assert not completer().batch(Broken(), out, 4)
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert first["text"] == third["text"] and second == {"error": "a line is longer than 1 MiB; it was skipped"}


def test_a_batch_takes_dialogs_and_gives_them_the_system_prompt_they_lack() -> None:
    request = {
        "messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3"},
        ]
    }
    own = {"messages": [{"role": "system", "content": "T"}, *request["messages"]]}
    run = completer(raw=False, system="S", echo=True)
    for body, system in ((request, "S"), (own, "T")):
        good, (result,) = batched(run, json.dumps(body))
        assert good
        assert result["text"].startswith(f"system\n{system}\nuser\n1\nassistant\n2\nuser\n3\nassistant\n")


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"role": "boss", "content": ""}, {"role": "user", "content": 1}, 7]
)
def test_a_batch_refuses_what_is_no_message(message: object) -> None:
    good, (result,) = batched(completer(raw=False), json.dumps({"messages": [message]}))
    assert not good and "error" in result


def test_a_batch_follows_the_schema_of_each_line_and_reports_a_bad_one_in_place() -> None:
    lines = [
        {"prompt": "a", "schema": {"enum": ["yes", "no"]}},
        {"prompt": "b", "schema": {"type": "objekt"}},
        {"prompt": "c"},
    ]
    good, (follows, bad, free) = batched(completer(grammar=from_regex("[0-9]{3}")), *map(json.dumps, lines))
    assert not good
    assert json.loads(follows["text"]) in ("yes", "no") and follows["finish_reason"] == "stop"
    assert bad == {"error": "the JSON schema cannot be used: Invalid type: objekt; nothing was generated"}
    assert free["text"].isdigit() and len(free["text"]) == 3


def test_stop_strings_and_grammars_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="leave --stop out"):
        completer(grammar=from_regex("a"), stop_strings=["x"]).result("a")


def test_a_prompt_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(DoesNotFitError, match="20 tokens, the context holds 16"):
        completer(slots=16).result("x" * 20)


@pytest.mark.parametrize("raw", [True, False])
def test_a_text_that_cannot_fit_is_refused_before_it_is_all_encoded(raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run, encoded = completer(raw=raw, slots=1000), list[int]()
    encode = run.model.tokenizer.encode
    assert run.model.dialog, "made before anything is counted"

    def counted(text: str, *, start: bool = True) -> list[int]:
        encoded.append(len(text))
        return encode(text, start=start)

    monkeypatch.setattr(run.model.tokenizer, "encode", counted)
    with pytest.raises(
        DoesNotFitError, match=r"makes more than 65472 tokens, the context holds 1000; nothing was comp"
    ):
        run.result(run.dialog("x" * 10**6))
    assert sum(encoded) <= load.PIECE
    monkeypatch.setattr(load, "LONG", 10)
    monkeypatch.setattr(load, "PIECE", 70)
    assert run.result(run.dialog("x" * 900))["usage"]["prompt_tokens"] >= 900, "a close case is not refused"


def test_json_on_a_terminal_is_ascii() -> None:
    terminal, piped = Terminal(), io.StringIO()
    for out in (terminal, piped):
        write_json({"text": "é\u009b\u202e\x1b"}, out)
    assert terminal.getvalue().isascii() and "\x1b" not in terminal.getvalue()
    assert json.loads(terminal.getvalue()) == json.loads(piped.getvalue())


@pytest.mark.parametrize(
    ("argument", "file", "stdin", "prompt"),
    [
        ("arg", None, None, "arg"),
        (None, "file\n", None, "file"),
        (None, None, "piped\n", "piped"),
        ("arg", None, "piped\n\n", "arg\n\npiped\n"),
        (None, "file\n", "piped", "file\n\npiped"),
    ],
)
def test_prompts_come_from_argument_file_and_stdin(
    argument: str | None,
    file: str | None,
    stdin: str | None,
    prompt: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin.encode())))
    path = None
    if file is not None:
        (path := tmp_path / "prompt").write_text(file)
    assert read_prompt(argument, path) == prompt


@pytest.mark.parametrize(("argument", "file"), [("a", Path("b")), (None, None), (None, Path("missing")), ("", None)])
def test_no_prompt_or_two_is_a_usage_error(
    argument: str | None, file: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UsageError):
        read_prompt(argument, file)


@pytest.mark.parametrize("name", [".", "no\0ne", "x" * 300])
def test_a_prompt_file_that_cannot_be_read_is_a_usage_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompt(None, tmp_path / name)


def test_a_prompt_file_that_is_not_text_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_prompt(None, tmp_path / "binary")


def test_a_grammar_that_is_no_utf_8_is_a_usage_error() -> None:
    for given in ((None, "\udcff", None), (None, None, 'start: "\udcff"')):
        with pytest.raises(UsageError, match="is not UTF-8"):
            read_format(*given)


def test_a_batch_reports_what_is_no_utf_8_in_place_and_reads_a_byte_order_mark(tmp_path: Path) -> None:
    file, out = tmp_path / "requests", io.StringIO()
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "\xff"}\n{"prompt": "\\ud800"}\n' + b"[" * 100_000)
    with open_lines(file) as lines:
        assert completer().batch(Lines(lines), out, 2) is False
    first, bad, surrogate, deep = map(json.loads, out.getvalue().splitlines())
    assert first["tokens"] == expected(list(b"one"))
    assert bad == {"error": "line 2 is not UTF-8; it was not sent; convert it"}
    assert surrogate["tokens"] == expected(list("\ufffd".encode()))
    assert "recursion" in deep["error"]


def test_a_line_of_brackets_is_not_even_parsed() -> None:
    good, (bad, fine) = batched(completer(), '{"prompt": [' + "[]," * 400_000 + "0]}", '{"prompt": "one"}')
    assert not good and bad == {"error": "line 1 is mostly brackets; it was skipped"} and fine["text"]


@pytest.mark.parametrize("kind", ["schema", "grammar"])
def test_a_schema_or_grammar_is_given_as_text_or_in_a_file(kind: str, tmp_path: Path) -> None:
    text = {"schema": '{"enum": ["a", "b"]}', "grammar": 'start: "a" | "b"'}[kind]
    (tmp_path / "file").write_text(text)
    given: dict[str, str | None] = dict.fromkeys(("schema", "regex", "grammar"))
    read = [read_format(**{**given, kind: each}) for each in (text, str(tmp_path / "file"))]
    assert read[0] == read[1] is not None
    with pytest.raises(UsageError, match="missing cannot be read"):
        read_format(**{**given, kind: "missing"})
    with pytest.raises(UsageError, match="only one of"):
        read_format(**{**given, kind: text, "regex": "a"})
    with pytest.raises(UsageError, match=rf"--{kind} is empty; nothing was generated"):
        read_format(**{**given, kind: " "})
    assert read_format(**given) is None


def test_json_is_ascii_where_the_encoding_lacks_characters() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_json({"text": "é"}, out)
    assert out.buffer.getvalue() == b'{"text": "\\u00e9"}\n'
