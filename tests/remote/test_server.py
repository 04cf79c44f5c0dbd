"""What a server is asked, what it is not asked again, and what it never learns."""

import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
from stand_in import DONE, RESET, SAID, WAIT, WHOLE, Script, StandIn, delta, document, event, head, standing_in

from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.errors import LlamachatError, UsageError
from llamachat.remote.asking import Address, Ended, Format, Piece, Question, ServedModel, ServerError, TooLongError
from llamachat.remote.server import Server

HELLO = [Message("user", "Hello")]
PLAIN = SamplingParams(temperature=0.5, top_p=0.8)
SOON = 2.0  # seconds, on a machine however busy, for what takes a twentieth of one
KEY = "sk-S3cretS3cret"


def ask(server: Server, question: Question) -> tuple[str, Ended]:
    *pieces, ended = server.ask(question, lambda: False)
    assert isinstance(ended, Ended)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), ended


def owned(owner: str, *names: str, **more: Any) -> Script:
    """A list of models."""
    return [document({"object": "list", "data": [{"id": name, "owned_by": owner, **more} for name in names or ("x",)]})]


def sent(question: Question, *scripts: Script, model: str | None = "x") -> dict[str, Any]:
    """The body of the last request."""
    with standing_in(*scripts, WHOLE_SCRIPT) as stand_in:
        ask(Server(Address(stand_in.url, model)), question)
    return stand_in.requests[-1].body


WHOLE_SCRIPT: Script = [WHOLE]


def test_a_chat() -> None:
    question = Question([Message("system", "Be brief."), *HELLO], sampling=PLAIN)
    with standing_in(WHOLE_SCRIPT) as stand_in:
        text, ended = ask(Server(Address(stand_in.url, "x")), question)
    (request,) = stand_in.requests
    assert text == "Hello there" and ended.reason == "stop" and ended.ignored == ended.notes == ()
    assert 0 < ended.first_s <= ended.total_s
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["host"] == stand_in.url.removeprefix("http://")
    assert request.headers["accept-encoding"] == "identity" and "authorization" not in request.headers
    assert request.body == {
        "model": "x",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.8,
    }


def test_a_text_goes_on_to_its_end_unless_there_is_a_limit() -> None:
    """Servers stop at 16 tokens where they are told nothing."""
    body = sent(Question(text="Once", sampling=PLAIN, top_logprobs=0))
    assert body["prompt"] == "Once" and body["max_tokens"] is None and body["logprobs"] == 1
    assert sent(Question(text="Once", max_tokens=7))["max_tokens"] == 7
    assert "max_tokens" not in sent(Question(HELLO))


def test_all_that_can_be_asked_for() -> None:
    params = SamplingParams({3: -float("inf"), 4: 2.0}, 1.1, 0.2, 0.3, 0.0, 5, 0.9, 0.05, seed=7)
    body = sent(Question(HELLO, sampling=params, max_tokens=9, stop=["\n"], top_logprobs=4), owned("vllm"))
    assert {**body, "messages": None, "model": None, "stream": None, "stream_options": None} == {
        "messages": None, "model": None, "stream": None, "stream_options": None,
        "max_tokens": 9, "stop": ["\n"], "logprobs": True, "top_logprobs": 4, "seed": 7, "temperature": 0.0, "top_p": 0.9,
        "logit_bias": {"3": -100.0, "4": 2.0}, "frequency_penalty": 0.2, "presence_penalty": 0.3, "top_k": 5, "min_p": 0.05,
        "repetition_penalty": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "keys", "ignored"),
    [
        ("sglang", {"top_k", "min_p", "repetition_penalty"}, ()),
        ("llamacpp", {"top_k", "min_p", "repeat_penalty"}, ()),
        ("organization_owner", {"top_k", "repeat_penalty"}, ("min_p",)),
        ("library", set(), ("top_k", "min_p", "the repetition penalty")),
        ("somebody", {"top_k", "min_p", "repetition_penalty", "repeat_penalty"}, ()),
    ],
)
def test_each_kind_of_server_is_asked_in_its_own_words(owner: str, keys: set[str], ignored: tuple[str, ...]) -> None:
    question = Question(HELLO, sampling=SamplingParams(repetition_penalty=1.1, top_k=5, min_p=0.1))
    with standing_in(owned(owner), WHOLE_SCRIPT) as stand_in:
        _, ended = ask(Server(Address(stand_in.url, "x")), question)
    body = stand_in.requests[-1].body
    assert body.keys() & {"top_k", "min_p", "repetition_penalty", "repeat_penalty"} == keys
    assert ended.ignored == ignored


def test_thinking_is_asked_for_as_the_server_has_it_and_thoughts_are_never_sent() -> None:
    said = Message("assistant", "<think>\nsecret\n</think>\n\nYes.")
    body = sent(Question([*HELLO, said, *HELLO], thinking=False), owned("vllm"))
    assert body["messages"][1] == {"role": "assistant", "content": "Yes."} and "secret" not in json.dumps(body)
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert sent(Question(HELLO, thinking=False), owned("library"))["reasoning_effort"] == "none"
    assert not sent(Question(HELLO)).keys() & {"chat_template_kwargs", "reasoning_effort"}


@pytest.mark.parametrize(
    ("owner", "text", "wanted", "key", "value"),
    [
        ("vllm", None, "schema", "response_format",
         {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True}}),
        ("me", None, "schema", "response_format", {"type": "json_object", "schema": {"type": "null"}}),
        ("llamacpp", "Once", "schema", "json_schema", {"type": "null"}),
        ("vllm", None, "regex", "structured_outputs", {"regex": "a+"}),
        ("vllm", None, "regex", "guided_regex", "a+"),
        ("vllm", None, "lark", "structured_outputs", {"grammar": "start: /a+/"}),
        ("sglang", "Once", "regex", "regex", "a+"),
    ],
)  # fmt: skip
def test_formats(owner: str, text: str | None, wanted: Any, key: str, value: object) -> None:
    spelled = {"schema": '{"type": "null"}', "regex": "a+", "lark": "start: /a+/"}[wanted]
    messages = () if text else HELLO
    assert sent(Question(messages, text, format=Format(wanted, spelled)), owned(owner))[key] == value


@pytest.mark.parametrize(
    ("owner", "text", "wanted", "what"),
    [
        ("llamacpp", None, "lark", "a grammar in lark's notation"),
        ("somebody", None, "regex", "a regular expression"),
        ("me", "Once", "schema", "a JSON schema when it goes on with a plain text"),
    ],
)
def test_what_cannot_be_left_out_is_refused(owner: str, text: str | None, wanted: Any, what: str) -> None:
    with standing_in(owned(owner)) as stand_in, pytest.raises(ServerError, match=what):
        ask(Server(Address(stand_in.url, "x")), Question(HELLO, text, format=Format(wanted, "{}")))


def refused(key: str, shape: int = 0) -> Script:
    message = f"Unrecognized request argument supplied: '{key}'"
    shapes: list[tuple[object, int]] = [
        ({"error": {"message": message, "param": key}}, 400),
        ({"error": {"message": message}}, 400),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs are not permitted"}]}, 422),
        ({"detail": f"Unexpected fields in the request: {{'{key}'}}"}, 422),  # transformers serve
        ({"error": {"message": f"{key} is not supported for models created with logits_all=False"}}, 500),
    ]
    return [document(*shapes[shape])]


@pytest.mark.parametrize("shape", range(5))
def test_an_unknown_parameter_is_left_out_named_and_not_sent_again(shape: int) -> None:
    question = Question(HELLO, top_logprobs=3)
    with standing_in(refused("top_logprobs", shape), WHOLE_SCRIPT) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        for _ in range(2):
            assert ask(server, question)[1].ignored == ("logprobs",)
    asked = ["logprobs" in request.body for request in stand_in.requests]
    assert asked == [True, False, False]
    assert not any("top_logprobs" in request.body for request in stand_in.requests[1:])


def test_several_unknown_parameters() -> None:
    question = Question(HELLO, sampling=SamplingParams(seed=1, presence_penalty=1, temperature=0.1))
    with standing_in(refused("seed"), refused("presence_penalty"), refused("stream_options"), WHOLE_SCRIPT) as stand_in:
        _, ended = ask(Server(Address(stand_in.url, "x")), question)
    assert {*ended.ignored} == {"seed", "presence_penalty"} and stand_in.requests[-1].body["temperature"] == 0.1


def test_a_model_that_cannot_think_is_asked_without() -> None:
    no = document({"error": {"message": '"llama3" does not support thinking'}}, 400)
    with standing_in(owned("library"), [no], WHOLE_SCRIPT) as stand_in:
        _, ended = ask(Server(Address(stand_in.url, "x")), Question(HELLO, thinking=True))
    assert ended.ignored == ("whether to think",) and "reasoning_effort" not in stand_in.requests[-1].body


def test_the_older_of_two_keys_may_be_refused() -> None:
    question = Question(HELLO, format=Format("regex", "a+"))
    with standing_in(owned("vllm"), refused("guided_regex"), WHOLE_SCRIPT) as stand_in:
        _, ended = ask(Server(Address(stand_in.url, "x")), question)
    assert ended.ignored == () and stand_in.requests[-1].body["structured_outputs"] == {"regex": "a+"}
    with (
        standing_in(owned("vllm"), refused("structured_outputs")) as stand_in,
        pytest.raises(ServerError, match="structured"),
    ):
        ask(Server(Address(stand_in.url, "x")), question)


def test_a_refused_value_is_remembered_as_that() -> None:
    no = document({"error": {"message": "temperature: must be at most 2", "param": "temperature"}}, 400)
    with standing_in([no], WHOLE_SCRIPT) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        assert ask(server, Question(HELLO, sampling=SamplingParams(temperature=9)))[1].ignored == ("temperature",)
        assert ask(server, Question(HELLO, sampling=SamplingParams(temperature=1)))[1].ignored == ()
        assert ask(server, Question(HELLO, sampling=SamplingParams(temperature=9)))[1].ignored == ("temperature",)
    assert [request.body.get("temperature") for request in stand_in.requests] == [9, None, 1, None]


def test_a_limit_goes_by_the_name_that_the_server_asks_for() -> None:
    says = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    no = document({"error": {"message": says, "param": "max_tokens", "code": "unsupported_parameter"}}, 400)
    with standing_in([no], WHOLE_SCRIPT) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        for _ in range(2):
            assert ask(server, Question(HELLO, max_tokens=5))[1].ignored == ()
    limits = [(each.body.get("max_tokens"), each.body.get("max_completion_tokens")) for each in stand_in.requests]
    assert limits == [(5, None), (None, 5), (None, 5)]


def test_a_parameter_that_cannot_be_left_out_is_named() -> None:
    with standing_in(refused("stop")) as stand_in, pytest.raises(ServerError, match=r"refuses \(400\): .*'stop'"):
        ask(Server(Address(stand_in.url, "x")), Question(HELLO, stop=["x"]))
    assert len(stand_in.requests) == 1


def test_an_error_in_place_of_the_stream_may_name_one_too() -> None:
    no = event({"error": {"message": "logprobs is not supported"}})
    with standing_in([head(), no], WHOLE_SCRIPT) as stand_in:
        assert ask(Server(Address(stand_in.url, "x")), Question(HELLO, top_logprobs=1))[1].ignored == ("logprobs",)


def test_a_text_without_a_limit_that_is_too_long_does_not_cost_the_next_its_length() -> None:
    no = document(
        {"error": {"message": "maximum context length is 8 tokens (parameter=max_tokens)", "param": "max_tokens"}}, 400
    )
    with standing_in([no], WHOLE_SCRIPT) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        with pytest.raises(TooLongError):
            ask(server, Question(text="Once"))
        ask(server, Question(text="Once"))
    assert stand_in.requests[1].body["max_tokens"] is None


def test_words_of_english_are_no_names() -> None:
    no = document({"error": {"message": "please stop: the seed model has no stream left"}}, 400)
    with standing_in([no]) as stand_in, pytest.raises(ServerError, match="please stop"):
        ask(Server(Address(stand_in.url, "x")), Question(HELLO, sampling=SamplingParams(seed=1)))
    assert len(stand_in.requests) == 1


def test_an_answer_ends_before_a_stop_string_that_the_server_gives_or_goes_on_behind() -> None:
    asked = Question([Message("user", "?")], stop=["STOP"])
    given = [head(), delta("one ST"), delta("OP"), delta(reason="stop"), DONE]
    going_on = [head(), delta("one S"), delta("TOP two"), delta(" three"), WAIT]
    half = [head(), delta("one S"), delta("T"), delta(reason="stop"), DONE]
    with standing_in(given, going_on, half) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        found = [ask(server, asked) for _ in range(3)]
    assert [text for text, _ in found] == ["one ", "one ", "one ST"]
    assert {ended.reason for _, ended in found} == {"stop"}


def test_an_echo_is_ours_unless_its_logprobs_are_wanted() -> None:
    answer = {"choices": [{"text": " more", "finish_reason": "stop"}]}
    with standing_in([head(), event(answer), DONE]) as stand_in:
        assert ask(Server(Address(stand_in.url, "x")), Question(text="Once", echo=True))[0] == "Once more"
    assert "echo" not in stand_in.requests[0].body
    with standing_in(refused("echo"), [document(answer)]) as stand_in:
        text, ended = ask(Server(Address(stand_in.url, "x")), Question(text="Once", echo=True, top_logprobs=1))
    assert text == "Once more" and "logprobs of the text itself" in ended.ignored
    assert stand_in.requests[0].body["echo"] is True and stand_in.requests[0].body["stream"] is False


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"meta": {"n_ctx_train": 8192, "n_ctx": 2048}}, 2048),
        ({"meta": {"n_ctx_train": 8192}}, 8192),
        ({"max_context_length": 32768, "loaded_context_length": 4096}, 4096),
        ({"context_length": 128000}, 128000),
        ({"context_window": 1000}, 1000),
        ({"context_length": "many", "meta": 7}, None),
        ({"context_length": -1}, None),
        ({}, None),
    ],
)
def test_models_and_their_context(entry: dict[str, Any], context: int | None) -> None:
    with standing_in(owned("x", "one", "two", **entry)) as stand_in:
        assert Server(Address(stand_in.url + "/api/v1/")).models() == [
            ServedModel("one", context),
            ServedModel("two", context),
        ]
    assert stand_in.requests[0].line == "GET /api/v1/models HTTP/1.1"


@pytest.mark.parametrize(
    "body", [{}, {"data": None}, {"data": [7, {"id": 7}, {"id": "\x1b[2J"}, {"id": ""}, {"id": "x" * 999}]}]
)
def test_models_without_a_name_are_none(body: object) -> None:
    with standing_in([document(body)]) as stand_in:
        server = Server(Address(stand_in.url))
        assert server.models() == []
        with pytest.raises(UsageError, match="has no model"):
            ask(server, Question(HELLO))


def test_the_only_model_is_taken_and_among_several_one_is_to_be_named() -> None:
    assert sent(Question(HELLO), owned("vllm", "llama"), model=None)["model"] == "llama"
    with standing_in(owned("vllm", "llama")) as stand_in:
        assert Server(Address(stand_in.url)).model_name() == "llama"
        assert Server(Address(stand_in.url, "qwen")).model_name() == "qwen"
        assert [request.line.split()[0] for request in stand_in.requests] == ["GET", "GET"]
    with (
        standing_in(owned("vllm", "llama", "qwen")) as stand_in,
        pytest.raises(UsageError, match="2 models: llama, qwen"),
    ):
        ask(Server(Address(stand_in.url)), Question(HELLO))


def test_a_servers_own_defaults_are_told_that_none_is_wanted() -> None:
    for owner, keys in (
        ("me", {"top_k", "min_p", "repeat_penalty"}),
        ("llamacpp", {"top_k", "min_p"}),
        ("vllm", set()),
    ):
        with standing_in(owned(owner), WHOLE_SCRIPT) as stand_in:
            server = Server(Address(stand_in.url, "x"))
            assert server.model_name() == "x"
            ask(server, Question(HELLO, sampling=PLAIN))
        body = stand_in.requests[-1].body
        assert body.keys() & {"top_k", "min_p", "repeat_penalty", "repetition_penalty"} == keys
        assert [body[key] for key in sorted(keys)] == [{"repeat_penalty": 1.0}.get(key, 0) for key in sorted(keys)]


def test_a_server_without_a_list_is_asked_all_the_same() -> None:
    body = sent(Question(HELLO, sampling=SamplingParams(top_k=3)), [head(404, "text/plain")])
    assert body["top_k"] == 3


def clock(when: Callable[[], bool]) -> tuple[Callable[[], bool], list[float]]:
    """An `interrupted` that is true once `when` is, and when it first was."""
    since: list[float] = []

    def interrupted() -> bool:
        if not since and when():
            since.append(time.monotonic())
        return bool(since)

    return interrupted, since


@pytest.mark.parametrize(
    ("script", "said"),
    [([WAIT], ""), ([head(), WAIT], ""), ([head(), *SAID, WAIT], "Hello there")],
    ids=["head", "first", "next"],
)
def test_an_interrupt_closes_the_connection_at_once(script: Script, said: str) -> None:
    with standing_in(script) as stand_in:
        text = ""
        interrupted, since = clock(lambda: stand_in.waiting.is_set() and text == said)
        for piece in Server(Address(stand_in.url, "x")).ask(Question(HELLO), interrupted):
            text += piece.text if isinstance(piece, Piece) else f" {piece.reason}"
        took = time.monotonic() - since[0]
        while not stand_in.left:
            time.sleep(0.001)
    assert text == f"{said} interrupt"
    assert took < SOON and stand_in.left[0] - since[0] < SOON


def test_leaving_the_iterator_closes_the_connection_too() -> None:
    with standing_in([head(), *SAID, WAIT]) as stand_in:
        reply = Server(Address(stand_in.url, "x")).ask(Question(HELLO), lambda: False)
        assert next(reply) == Piece("Hello")
        reply.close()
        while not stand_in.left:
            time.sleep(0.001)


def test_an_interrupt_is_heard_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that never answers, in the look-up of its name or behind it."""
    reached, hold = threading.Event(), threading.Event()

    def never(*_: object, **__: object) -> Any:
        reached.set()
        hold.wait(10)
        raise OSError

    monkeypatch.setattr("socket.create_connection", never)
    interrupted, since = clock(reached.is_set)
    (ended,) = Server(Address("http://host.example", "x")).ask(Question(HELLO), interrupted)
    assert time.monotonic() - since[0] < SOON
    hold.set()
    assert isinstance(ended, Ended) and ended.reason == "interrupt"


def test_closing_the_server_ends_what_is_under_way() -> None:
    with standing_in([head(), *SAID, WAIT]) as stand_in:
        server = Server(Address(stand_in.url, "x"))
        threading.Thread(target=lambda: (stand_in.waiting.wait(), server.close())).start()
        assert ask(server, Question(HELLO))[1].reason == "interrupt"


def test_a_list_is_given_up_when_the_server_is_closed() -> None:
    with standing_in([WAIT]) as stand_in:
        server = Server(Address(stand_in.url))
        threading.Thread(target=lambda: (stand_in.waiting.wait(), server.close())).start()
        for ask_for in (server.models, server.model_name):
            with pytest.raises(ServerError, match="is asked no more"):
                ask_for()


def test_many_are_asked_at_once() -> None:
    together = threading.Barrier(8, timeout=60)  # no answer begins before eight questions have come
    with standing_in(WHOLE_SCRIPT) as stand_in, ThreadPoolExecutor(8) as pool:
        serve = stand_in.serve
        stand_in.serve = lambda connection, script: (together.wait(), serve(connection, script))[1]  # type: ignore[method-assign]
        server = Server(Address(stand_in.url, "x"))
        answers = [*pool.map(lambda _: ask(server, Question(HELLO))[0], range(16))]
    assert answers == ["Hello there"] * 16


# Keys, and where they go.


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SERVER_KEY", KEY)
    return "SERVER_KEY"


def shown(error: BaseException) -> str:
    """Everything that could be printed of an error, with all that led to it."""
    return "".join(format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize(
    "script",
    [
        [document({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401)],
        [head(403, "text/plain"), f"no {KEY}".encode()],
        [document({"detail": [{"loc": ["header", KEY], "msg": KEY}]}, 422)],
        [head(302, None, f"Location: /elsewhere/{KEY}")],
        [head(), event({"error": {"message": f"key {KEY}"}})],
        [head(), *SAID, event({"error": {"message": f"key {KEY}"}})],
        [head(), *SAID, delta(reason="abort"), f"data: {KEY}\n\n".encode()],
        [f"HTTP/1.1 {KEY}\r\n\r\n".encode()],
        [head(200, f"text/{KEY}")],
        [head(429, None, f"Retry-After: {KEY}")],
        [RESET],
    ],
)
def test_no_error_shows_the_key(script: Script, key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with standing_in(script) as stand_in, pytest.raises(LlamachatError) as caught:
        server = Server(Address(stand_in.url, "x", key))
        ask(server, Question(HELLO))
    assert stand_in.requests[0].headers["authorization"] == f"Bearer {KEY}"
    everything = shown(caught.value) + repr(server) + repr(server.address) + caplog.text
    assert KEY.lower() not in everything.lower()


def test_no_redirect_is_followed(key: str) -> None:
    with (
        standing_in(WHOLE_SCRIPT) as other,
        standing_in([head(307, None, f"Location: {other.url}/v1/chat/completions")]) as stand_in,
        pytest.raises(ServerError, match=r"points to .*, which is not followed"),
    ):
        ask(Server(Address(stand_in.url, "x", key)), Question(HELLO))
    assert other.requests == []


@pytest.mark.parametrize("value", ["", "two words", "line\n", "kéy", "\x00x", " "])
def test_a_key_that_is_none_is_not_sent_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" in value:
        monkeypatch.setattr("os.environ", {"SERVER_KEY": value})
    else:
        monkeypatch.setenv("SERVER_KEY", value)
    with standing_in(WHOLE_SCRIPT) as stand_in, pytest.raises(UsageError, match=r"^SERVER_KEY ") as caught:
        ask(Server(Address(stand_in.url, "x", "SERVER_KEY")), Question(HELLO))
    assert stand_in.requests == [] and (not value.strip() or value not in shown(caught.value))


def test_a_key_is_of_the_moment_and_nothing_else_is_taken_from_the_environment(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {KEY}")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with standing_in(WHOLE_SCRIPT) as proxy, standing_in(WHOLE_SCRIPT) as stand_in:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        server, bare = Server(Address(stand_in.url, "x", key)), Server(Address(stand_in.url, "x"))
        ask(server, Question(HELLO))
        monkeypatch.setenv(key, "other")
        ask(server, Question(HELLO))
        ask(bare, Question(HELLO))
    sent = [request.headers.get("authorization") for request in stand_in.requests]
    assert sent == [f"Bearer {KEY}", "Bearer other", None] and proxy.requests == []


def test_a_key_does_not_go_over_an_open_line(key: str) -> None:
    for url in ("http://host.example", "http://10.0.0.1:8000/v1", "http://0.0.0.0", "http://localhost.example"):
        with pytest.raises(UsageError, match="for everybody to read"):
            Server(Address(url, "x", key))
        Server(Address(url, "x"))
    Server(Address("https://host.example", "x", key))


def test_a_key_in_place_of_its_variables_name_is_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        Server(Address("https://host.example", "x", KEY))
    assert KEY not in shown(caught.value)


def test_offline_there_is_only_this_machine() -> None:
    for url in ("http://localhost:1", "http://127.1.2.3", "http://[::1]:1"):
        Server(Address(url), offline=True)
    for url in ("https://host.example", "http://192.168.0.1", "http://localhost.example", "http://[::2]"):
        with pytest.raises(ServerError, match="--offline forbids asking it"):
            Server(Address(url), offline=True)


def test_localhost_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with standing_in(WHOLE_SCRIPT) as stand_in:
        monkeypatch.setattr("socket.gethostbyname", None)
        server = Server(Address(stand_in.url.replace("127.0.0.1", "localhost"), "x"), offline=True)
        assert ask(server, Question(HELLO))[0] == "Hello there"


# TLS.


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Path]]:
    """A server with a certificate that it made itself, for localhost and 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with standing_in(WHOLE_SCRIPT, tls=lambda each: context.wrap_socket(each, server_side=True)) as stand_in:
        yield stand_in, certificate


def test_a_certificate_is_looked_at(certified: tuple[StandIn, Path], key: str) -> None:
    stand_in, before = certified[0], len(certified[0].requests)
    with pytest.raises(
        ServerError, match=r"certificate of .* is not trusted: self.signed certificate; nothing was asked"
    ):
        ask(Server(Address(stand_in.url, "x", key)), Question(HELLO))
    assert len(stand_in.requests) == before


def test_a_certificate_may_be_named(certified: tuple[StandIn, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certified[1]))
    assert ask(Server(Address(certified[0].url, "x")), Question(HELLO))[0] == "Hello there"
    monkeypatch.setenv("SSL_CERT_FILE", str(certified[1].with_name("none.pem")))
    with pytest.raises(UsageError, match="certificates of SSL_CERT_FILE"):
        ask(Server(Address(certified[0].url, "x")), Question(HELLO))


def test_insecure_is_for_loopback(certified: tuple[StandIn, Path]) -> None:
    assert ask(Server(Address(certified[0].url, "x", insecure=True)), Question(HELLO))[0] == "Hello there"
    with pytest.raises(UsageError, match="--insecure is for this machine only"):
        Server(Address("https://host.example", insecure=True))


def test_tls_where_there_is_none() -> None:
    def plain(connection: socket.socket) -> socket.socket:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        return connection

    with standing_in([], tls=plain) as stand_in, pytest.raises(ServerError, match="does not speak TLS"):
        ask(Server(Address(stand_in.url, "x", insecure=True)), Question(HELLO))


def test_an_interrupt_is_heard_while_tls_begins() -> None:
    """The server takes the connection, and says nothing."""
    reached, hold = threading.Event(), threading.Event()
    with standing_in([], tls=lambda each: (reached.set(), hold.wait(10), each)[2]) as stand_in:
        interrupted, since = clock(reached.is_set)
        (ended,) = Server(Address(stand_in.url, "x", insecure=True)).ask(Question(HELLO), interrupted)
        took = time.monotonic() - since[0]
        hold.set()
    assert isinstance(ended, Ended) and ended.reason == "interrupt" and took < SOON


def test_an_interrupt_is_heard_behind_tls(certified: tuple[StandIn, Path]) -> None:
    stand_in = certified[0]
    stand_in.scripts[:0] = [[head(), *SAID, WAIT]]
    interrupted, since = clock(stand_in.waiting.is_set)
    *_, ended = Server(Address(stand_in.url, "x", insecure=True)).ask(Question(HELLO), interrupted)
    assert isinstance(ended, Ended) and ended.reason == "interrupt" and time.monotonic() - since[0] < SOON
