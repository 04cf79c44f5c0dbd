"""Whatever a server does wrong is the line that docs/server_faults.md has for it, with what came before it kept."""

import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from stand_in import DONE, PAUSE, RESET, SAID, WAIT, WHOLE, Script, delta, document, event, head, standing_in

from llamachat.core.dialog import Message
from llamachat.remote.asking import Address, Piece, Question, ServerError, TooLongError
from llamachat.remote.connection import Waits
from llamachat.remote.faults import retry_after, said
from llamachat.remote.server import Server

TABLE = Path(__file__).parents[2] / "docs" / "server_faults.md"
USUAL = Waits(10, 10, 10, 0.06)
WAITS = {
    "it says nothing": Waits(10, 0.06, 10),
    "it stalls in the middle": Waits(10, 10, 0.06),
    "headers a byte at a time": Waits(10, 0.06, 10),
}
HELLO = Question([Message("user", "Hello")])
FULL = b"x" * (1 << 16)
DRIP: Script = [b"x", PAUSE] * 3000  # for six seconds at least, if nobody goes
NESTED = b"[" * 100_000
TOO_LONG = "This model's maximum context length is 512 tokens. However, you requested 639 tokens (631 in the messages)."

# What the server does, each behind a question; where a list of scripts is given, one a connection.
FAULTS: Mapping[str, Script | list[Script]] = {
    "it closes the connection": [],
    "it resets the connection": [RESET],
    "it says nothing": [WAIT],
    "it resets the connection in the middle": [head(), *SAID, PAUSE, RESET],
    "it stalls in the middle": [head() + b"".join(SAID), WAIT],
    "half an event at the end": [head(), *SAID, b'data: {"choices": [{"del'],
    "no reason to end": [head(), *SAID],
    "[DONE] without a reason to end": [head(), *SAID, DONE],
    "a body cut short": [head(200, "text/event-stream", "Content-Length: 9999"), *SAID],
    "a broken chunk": [head(200, "text/event-stream", "Transfer-Encoding: chunked"), b"zz\r\n"],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "headers without end": [b"HTTP/1.1 200 OK\r\n", *[b"X: " + FULL + b"\r\n"] * 2],
    "headers a byte at a time": [b"HTTP/1.1 200 OK\r\nX: ", *DRIP],
    "preliminary answers without end": [b"HTTP/1.1 100 Continue\r\n\r\n" * 100],
    "a web page": [head(200, "text/html"), b"<html>Welcome</html>"],
    "no content type": [head(200, None), b"Hi"],
    "compressed": [head(200, "text/event-stream", "Content-Encoding: gzip"), b"\x1f\x8b"],
    "an event of 10 MB": [head(), *SAID, b"data: ", *[FULL] * 160],
    "an event that is no JSON": [head(), *SAID, b"data: {nonsense}\n\n"],
    "an event that is no object": [head(), *SAID, b"data: [1]\n\n"],
    "JSON nested 100,000 deep": [head(), *SAID, b"data: " + NESTED + b"\n\n"],
    "an answer that is no JSON": [head(200, "application/json"), b"{"],
    "an error in the stream": [head(), *SAID, event({"error": {"message": "out of memory", "code": 500}})],
    "an error as a text": [head(), *SAID, event({"error": "CUDA error"})],
    "an error event": [head(), *SAID, b'event: error\ndata: {"message": "overloaded"}\n\n'],
    "an error in its own field": [head(), *SAID, b'error: {"message": "slot failed"}\n\n'],
    "an error in place of the stream": [head(), event({"error": {"message": "no slot"}})],
    "an answer that the server gave up": [head(), *SAID, delta(reason="abort")],
    "301": [head(301, None, "Location: http://user:secret@elsewhere.example/v1?token=secret#x")],
    "400": [document({"error": {"message": "max_tokens must be at least 1", "param": "max_tokens"}}, 400)],
    "400, too long": [document({"error": {"message": TOO_LONG, "code": "context_length_exceeded"}}, 400)],
    "401": [document({"error": {"message": "Invalid API key"}}, 401)],
    "404, of a model": [
        [document({"error": {"message": "The model `x` does not exist."}}, 404)],
        [document({"data": [{"id": "llama"}, {"id": "qwen"}]})],
    ],
    "404, of a path": [head(404, "text/plain"), b"404 page not found"],
    "422": [document({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "unknown role"}]}, 422)],
    "429, with seconds": [document({"error": {"message": "Rate limit reached"}}, 429, "Retry-After: 7")],
    "429": [document({"detail": "busy"}, 429)],
    "500": [head(500, "text/plain"), b"Internal Server Error"],
    "502, of a proxy": [head(502, "text/html"), b"<html><h1>Bad Gateway</h1></html>"],
    "503, while it loads": [document({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503)],
    "an error that never ends": [head(500, "text/plain"), *[b"\x1b[2J\r\n" + FULL] * 4],
}  # fmt: skip
WITHOUT_SERVER = {"it is not there", "its host is not known"}


def rows() -> Iterator[tuple[str, str]]:
    """What goes wrong, and what people read."""
    for line in TABLE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith(("| what ", "|--")):
            fault, text = line.strip("|").split("|", 1)
            yield fault.strip(), text.strip().replace("\\|", "|")


LINES = dict(rows())


def scripts(fault: str) -> list[Script]:
    found = FAULTS[fault]
    return found if found and isinstance(found[0], list) else [found]  # type: ignore[list-item,return-value]


def asked(server: Server, question: Question = HELLO) -> tuple[str, ServerError]:
    """The text that came, and the error behind it."""
    text = ""
    with pytest.raises(ServerError) as caught:
        for piece in server.ask(question, lambda: False):
            assert isinstance(piece, Piece)
            text += piece.text
    return text, caught.value


def test_the_table_has_a_row_for_each_fault() -> None:
    assert [*LINES] == [*FAULTS, *sorted(WITHOUT_SERVER)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_what_came_is_kept(fault: str) -> None:
    with standing_in(*scripts(fault)) as stand_in:
        text, error = asked(Server(Address(stand_in.url, "x"), waits=WAITS.get(fault, USUAL)))
        line = str(error).replace(stand_in.url, "SERVER")
    assert line == LINES[fault]
    assert len(line.splitlines()) == 1 and line.isprintable()
    assert text == (
        "Hello there" if any(SAID[0] in step for step in scripts(fault)[0] if isinstance(step, bytes)) else ""
    )


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    _, error = asked(Server(Address(url, "x"), waits=USUAL))
    assert str(error).replace(url, "SERVER") == LINES["it is not there"]


def test_a_dead_address_of_a_host_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where IPv6 leads nowhere: a connect to it takes for ever, as to one whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as dead, standing_in([WHOLE]) as stand_in:
        full = [socket.socket() for _ in range(4)]
        for each in full:
            each.setblocking(False)
            each.connect_ex(dead.getsockname())
        places = [dead.getsockname(), dead.getsockname(), ("127.0.0.1", int(stand_in.url.rpartition(":")[2]))]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
        *_, ended = Server(Address("http://host.example", "x"), waits=Waits(connect=0.6)).ask(HELLO, lambda: False)
        assert not isinstance(ended, Piece) and ended.reason == "stop"
        for each in full:
            each.close()


def test_a_host_that_is_not_known() -> None:
    _, error = asked(Server(Address("http://nowhere.invalid", "x"), waits=USUAL))
    assert str(error).replace("http://nowhere.invalid", "SERVER") == LINES["its host is not known"]


def test_when_to_ask_again_is_a_number() -> None:
    with standing_in(*scripts("429, with seconds")) as stand_in:
        _, error = asked(Server(Address(stand_in.url, "x")))
    assert error.retry_after == 7
    with standing_in(*scripts("429")) as stand_in:
        _, error = asked(Server(Address(stand_in.url, "x")))
    assert error.retry_after is None


def test_seconds_and_dates() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after("0.5") == 0.5 and 80 < (retry_after(soon) or 0) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nonsense in ("", "soon", "-1", "1e9", "nan", "٣", "Wed, 99 Oct 2015", "9" * 5000):
        assert retry_after(nonsense) is None


@pytest.mark.parametrize(
    ("body", "prompt", "context"),
    [
        ({"error": {"message": TOO_LONG}}, 639, 512),
        ({"error": {"message": "This model's maximum context length is 2048 tokens. However, your request has 8 input tokens plus 2045 'max_tokens'"}}, 8, 2048),  # noqa: E501
        ({"error": {"message": "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 4391, "n_ctx": 4096}}, 4391, 4096),  # noqa: E501
        ({"error": {"message": "Requested tokens (757) exceed context window of 512"}}, 757, 512),
        ({"object": "error", "message": "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens: 4000 tokens from the input messages"}, 5000, 4096),  # noqa: E501
        ({"error": "Context size has been exceeded."}, None, None),
        ({"error": {"message": "a proxy says: " * 20 + TOO_LONG}}, 639, 512),
        ({"error": {"message": "too long", "type": "exceed_context_size_error", "n_prompt_tokens": 10**400, "n_ctx": -5}}, None, None),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_too_long_says_by_how_much(body: object, prompt: int | None, context: int | None) -> None:
    with standing_in([document(body, 400)]) as stand_in:
        _, error = asked(Server(Address(stand_in.url, "x")))
    assert isinstance(error, TooLongError)
    assert (error.prompt, error.context) == (prompt, context)


def test_a_server_that_tells_only_without_a_stream_is_asked_without() -> None:
    """As llama-cpp-python, whose stream breaks off before it begins."""
    with standing_in([head()], [document({"error": {"message": TOO_LONG}}, 400)]) as stand_in:
        _, error = asked(Server(Address(stand_in.url, "x")))
        assert isinstance(error, TooLongError)
        assert [request.body["stream"] for request in stand_in.requests] == [True, False]
        assert "stream_options" not in stand_in.requests[1].body


def test_what_follows_the_end_is_no_fault() -> None:
    wrong = b"data: {nonsense}\n\n"
    for rest in ([], [RESET], [WAIT], [b"data: {"], [b": bye\n\n"], [wrong], [event({"error": "the counts"})]):
        with standing_in([head(), *SAID, delta(reason="stop"), PAUSE, *rest]) as stand_in:
            *_, ended = Server(Address(stand_in.url, "x"), waits=USUAL).ask(HELLO, lambda: False)
            assert not isinstance(ended, Piece) and ended.reason == "stop"


def test_a_stall_counts_since_the_last_byte() -> None:
    slow: Script = [step for part in SAID * 3 for step in (part, *[PAUSE] * 50)]
    with standing_in([head(), *slow, delta(reason="stop")]) as stand_in:
        started = time.monotonic()
        pieces = [*Server(Address(stand_in.url, "x"), waits=Waits(between=0.5)).ask(HELLO, lambda: False)]
    assert len(pieces) == 7 and time.monotonic() - started > 0.5


def test_what_drips_for_ever_behind_all_that_matters_is_not_waited_for() -> None:
    """The rest behind an end, an error's own words, a list of models: none holds a question up for long."""
    started, waits = time.monotonic(), Waits(after=0.06)
    with standing_in([head(), *SAID, delta(reason="stop"), b": ", *DRIP]) as stand_in:
        *_, ended = Server(Address(stand_in.url, "x"), waits=waits).ask(HELLO, lambda: False)
        assert not isinstance(ended, Piece) and ended.reason == "stop"
    with standing_in([head(500, "text/plain"), *DRIP]) as stand_in:
        assert "fails (500): x" in str(asked(Server(Address(stand_in.url, "x"), waits=waits))[1])
    assert time.monotonic() - started < 4


def test_a_list_that_drips_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.remote.client.LISTING_S", 0.06)
    for begin in (b"HTTP/1.1 200 OK\r\nX: ", head(200, "application/json")):
        with standing_in([begin, *DRIP]) as stand_in, pytest.raises(ServerError, match="takes too long"):
            Server(Address(stand_in.url)).models()


def test_a_servers_words_are_short_and_harmless() -> None:
    assert said("\x1b[31mred\r\nand \u202eback\x00") == "[31mred and back"
    assert said("x" * 10**7) == "x" * 199 + "…"
    assert said("the key sk-1 is wrong", "sk-1") == "the key *** is wrong"
    for blanks in range(3980, 4000):  # of which one is shown
        assert said("x" + " " * blanks + "sk-S3cretS3cretS3cret", "sk-S3cretS3cretS3cret") in (
            "x ***",
            "x **",
            "x *",
            "x",
        )
