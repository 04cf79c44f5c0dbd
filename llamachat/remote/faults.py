"""What goes wrong with a server, in a line each. What a server says is text from outside: bounded, and of one line."""

import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llamachat.checks import is_count
from llamachat.remote.asking import ServerError, TooLongError
from llamachat.remote.listing import some

LONGEST_SAYING = 200  # characters of a server's own words that are shown
LONGEST_READ = 20 * LONGEST_SAYING  # of which it is looked at what they say
LONGEST_WAIT = 7 * 86400.0  # seconds of a Retry-After that are believed
BUSY = (429, 503, 529)
AGAIN = "ask again, or see the server's log"
UNASKED = "nothing was asked"
TOO_LONG = re.compile(
    r"context.?length|context.?(window|size)|exceed_context|maximum.{0,20}\bcontext\b|prompt.{0,20}\btoo long\b", re.I
)
UNKNOWN = re.compile(
    r"un(known|expected|recognized|supported)|not (supported|allowed|permitted)|not support|\bextra\b", re.I
)
ROOM = re.compile(r"context (?:length|window|size)\D{0,20}(\d{1,9})", re.I)
ASKED = re.compile(r"(?:request|requested|resulted in|a total of)\b\D{0,12}(\d{1,9})", re.I)


def said(text: object, secret: str | None = None) -> str:
    """A server's words as they may be shown: at most 200 characters of one line, without the key."""
    words = str(text)
    if secret:  # before anything is cut, which might leave a part of it
        words = re.sub(re.escape(secret), "***", words, flags=re.I)
    words = words[:LONGEST_READ]
    line = " ".join("".join(each if each.isprintable() else " " for each in words).split()).rstrip(".")
    return line if len(line) <= LONGEST_SAYING else line[: LONGEST_SAYING - 1] + "…"


def unreachable(where: str, error: OSError) -> ServerError:
    """No connection came about."""
    import ssl

    match error:
        case ConnectionRefusedError():
            return ServerError(f"{where} refuses the connection", UNASKED, "start the server, or check the address")
        case socket.gaierror():
            return ServerError(f"the host of {where} is not known", UNASKED, "check the address and the network")
        case ssl.SSLCertVerificationError():
            why = said(error.verify_message)
            remedy = "name its issuer's certificate in SSL_CERT_FILE; for this machine alone there is --insecure"
            return ServerError(f"the certificate of {where} is not trusted: {why}", UNASKED, remedy)
        case ssl.SSLError():
            remedy = "check the address: is it http://, or another port?"
            return ServerError(f"{where} does not speak TLS", UNASKED, remedy)
        case TimeoutError():
            return ServerError(
                f"{where} cannot be reached: it took too long", UNASKED, "check the address and the network"
            )
    return ServerError(f"{where} cannot be reached: {said(error.strerror or error)}", UNASKED, "check the address")


class BrokenError(ServerError):
    """The connection ended where more should have come."""


def broken(where: str, begun: bool) -> BrokenError:
    """Before the answer, or in the midst of it."""
    if begun:
        return BrokenError(f"{where} broke off in the middle of the answer", "the answer is not whole", AGAIN)
    return BrokenError(f"{where} closed the connection without an answer", "there is no answer", AGAIN)


def stalled(where: str, seconds: float, begun: bool) -> ServerError:
    """Nothing came for so long."""
    consequence = "the answer is not whole" if begun else "there is no answer"
    return ServerError(f"{where} has sent nothing for {seconds:g} seconds", consequence, AGAIN)


def slow(where: str, begun: bool) -> ServerError:
    """Bytes come, and do not come to an end."""
    consequence = "the answer is not whole" if begun else "there is no answer"
    return ServerError(f"{where} takes too long from the first byte to the last", consequence, AGAIN)


def unfit(where: str, what: str, begun: bool = False) -> ServerError:
    """What came is not what such a server sends."""
    consequence = "the answer is not whole" if begun else "there is no answer"
    return ServerError(f"{where} {what}", consequence, "check that it is an OpenAI-compatible server")


class RefusedError(Exception):
    """Within `remote`: an error in place of an answer, before it is known whether a question without its cause would do."""

    def __init__(self, status: int, headers: Mapping[str, str], body: object) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body
        self.words = message_of(body)[:LONGEST_READ] if body else ""

    def named(self, keys: Collection[str]) -> set[str]:
        """Which of a question's keys it is about. What is too long is not a matter of any."""
        if self.status not in (200, 400, 422, 500, 501) or too_long(self.status, self.words, self.body):
            return set()
        param = details(self.body).get("param")
        return {key for key in keys if key == param or _names(self.words, key)}

    def others(self, keys: Collection[str], names: Mapping[str, str]) -> set[str]:
        """Which of them are to go by another name, which it tells."""
        return {
            key for key in self.named(keys) if key in names and _names(self.words, names[key]) and self.of_any_value
        }

    @property
    def of_any_value(self) -> bool:
        """Whether it is the key that is refused, not what it was to be."""
        return bool(UNKNOWN.search(self.words))


def _names(words: str, key: str) -> bool:
    """A word of English has to be marked as a name. ollama speaks of thinking where its key is `reasoning_effort`."""
    if key == "reasoning_effort" and "not support thinking" in words:
        return True
    mark = "" if "_" in key or key in ("logprobs", "temperature") else "['\"`]"
    found = re.search(rf"(?<![\w-]){mark}{re.escape(key)}{mark}(?![\w-])", words)
    return found is not None or re.search(rf"(^|; ){re.escape(key)}: ", words) is not None


def told(where: str, error: object, secret: str | None, begun: bool) -> ServerError:
    """An error in place of an answer, or in the midst of one."""
    consequence = "the answer is not whole" if begun else "there is no answer"
    return ServerError(f"{where} reports: {said(message_of(error), secret)}", consequence, AGAIN)


def message_of(body: object, depth: int = 5) -> str:
    """What an error says, in any of the shapes that servers give it; at most so deep in it."""
    if isinstance(body, str):
        return body
    if isinstance(body, list) and body and depth:
        return "; ".join(message_of(each, depth - 1) for each in body[:3])
    if not isinstance(body, dict) or not depth:
        return str(body) if isinstance(body, int | float) else "an error"
    if isinstance(places := body.get("loc"), list):  # FastAPI's {"loc": ["body", "top_k"], "msg": ...}
        names = [str(place) for place in places[1:8] if isinstance(place, str | int)]
        return f"{'.'.join(names)}: {message_of(body.get('msg'), depth - 1)}"
    more = next((body[key] for key in ("error", "message", "detail", "msg") if body.get(key)), None)
    return message_of(more, depth - 1)


def refusal(
    where: str, refused: RefusedError, key_env: str | None, secret: str | None, names: Sequence[str] = ()
) -> ServerError:
    """What people are told of it. `names`: the models that there are."""
    status, none = refused.status, "there is no answer"
    words = said(message_of(refused.body), secret) if refused.body else ""
    says = f": {words}" if words else ""
    if (tokens := too_long(status, refused.words, refused.body)) is not None:
        remedy = "shorten what is asked, or start the server with more context"
        return TooLongError(f"it is too long for {where}{says}", none, remedy, prompt=tokens[0], context=tokens[1])
    if status == 200:
        return told(where, refused.body, secret, begun=False)
    if status in (401, 403):
        if key_env:
            return ServerError(f"{where} does not take the key in {key_env} ({status}){says}", none, "check the key")
        return ServerError(f"{where} wants a key ({status}){says}", none, "name its variable with --key-env")
    if 300 <= status < 400:
        remedy = "give that address, if you trust it"
        return ServerError(f"{where} points to {_target(refused, secret)}, which is not followed", none, remedy)
    if status == 404:
        has = f"it has {said(some(names), secret)}" if names else "check the address and the model's name"
        return ServerError(f"{where} has no such model or path (404){says}", none, has)
    if status in BUSY:
        return _busy(where, refused, says)
    if status >= 500:
        return ServerError(f"{where} fails ({status}){says}", none, AGAIN)
    return ServerError(f"{where} refuses ({status}){says}", none, "change what is asked for, or see the server's log")


def _target(refused: RefusedError, secret: str | None) -> str:
    """Without what may be secret in it."""
    location = re.sub(r"//[^/@]*@", "//", refused.headers.get("location", "elsewhere"))
    return said(re.split("[?#]", location)[0], secret)


def _busy(where: str, refused: RefusedError, says: str) -> ServerError:
    wait = retry_after(refused.headers.get("retry-after", ""))
    when = "later" if wait is None else f"in {wait:.0f} seconds"
    what = "takes no more for now" if refused.status == 429 else "is not ready"
    error = ServerError(f"{where} {what} ({refused.status}){says}", "there is no answer", f"ask again {when}")
    error.retry_after = wait
    return error


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After: a number, or a date. None for anything else."""
    from email.utils import parsedate_to_datetime

    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip(), re.ASCII):
        return min(float(value), LONGEST_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), LONGEST_WAIT)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def too_long(status: int, words: str, body: object) -> tuple[int | None, int | None] | None:
    """Tokens asked for, and those that there is room for, of a refusal because of the context; None: of any other."""
    more = details(body)
    kinds = [kind for key in ("code", "type") if isinstance(kind := more.get(key), str)]
    if status not in (200, 400, 413, 422, 500) or not TOO_LONG.search(" ".join([words, *kinds])):
        return None
    asked, room = more.get("n_prompt_tokens"), more.get("n_ctx")
    return (
        asked if is_count(asked) else _count(ASKED, words),
        room if is_count(room) else _count(ROOM, words),
    )


def _count(pattern: re.Pattern[str], words: str) -> int | None:
    found = pattern.search(words)
    return int(found[1]) if found else None


def details(body: object) -> dict[str, Any]:
    """The part of an error's body that says more, as OpenAI has it."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {}
