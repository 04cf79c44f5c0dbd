"""The address of a server as people write it, and the name of the variable that holds its key: what is right is known before
anything is sent."""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from llamachat.checks import shown
from llamachat.errors import UsageError

LONGEST = 2000  # characters
VERSION = "/v1"  # of the interface, where the path names none
ENDPOINTS = ("/chat/completions", "/completions", "/models")  # of an address that was copied whole
PATH = re.compile(r"(/[A-Za-z0-9._~%:+,=-]+)*/?", re.ASCII)
PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:]*)(:[0-9]*)?", re.ASCII)  # urlsplit drops what is around brackets
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}", re.ASCII)  # not what a key looks like
NAMED = re.compile(r"v\d+\w*", re.ASCII)
EXAMPLE = "write one like http://127.0.0.1:8080/v1"


def server_url(text: str) -> str:
    """A server's address (of OpenAI's kind), in one spelling: up to and with the version, as https://host/v1; no slash behind it.

    Raises UsageError, which never shows a password.
    """
    parts = _parts(text)
    host, port = parts.hostname or "", _port(parts)
    schemed = parts.scheme in ("http", "https")
    if not (schemed and host):
        bare = not schemed and "://" not in text and HOST.fullmatch(text.partition("/")[0].partition(":")[0])
        raise refusal(f"{shown(text)} is no address of a server", f"write http://{text[:100]}" if bare else EXAMPLE)
    if not (HOST.fullmatch(host) or _is_ip(host)):
        raise refusal(f"{shown(host)} is no host", "write its name in plain letters, or its number")
    path = _base(parts.path)
    if parts.query or parts.fragment or not PATH.fullmatch(path) or {".", ".."} & {*path.split("/")}:
        raise refusal("the server's address has more than a scheme, a host, a port and a path")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{path}"


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine itself: "localhost", or a number that can be of no other."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def check_key_name(name: str, where: str = "--key-env") -> None:
    """Raises UsageError for what names no environment variable. It may be a key, so that it is not shown."""
    if not VARIABLE.fullmatch(name):
        cause = f"{where} is not the name of an environment variable"
        raise UsageError(cause, "nothing was sent", "write one in capitals, such as OPENAI_API_KEY, not the key itself")


def refusal(cause: str, remedy: str = EXAMPLE) -> UsageError:
    return UsageError(cause, "nothing was sent", remedy)


def _parts(text: str) -> SplitResult:
    if len(text) > LONGEST or not text.isascii() or not text.isprintable() or any(mark in text for mark in " \\"):
        raise refusal("the server's address is too long, or has characters that no address has")
    if "@" in text:
        raise refusal("the server's address holds a user or a password", "name the variable of its key with --key-env")
    try:
        parts = urlsplit(text)
        if parts.port == 0 or not PLACE.fullmatch(parts.netloc):  # a port raises where it is none
            raise ValueError("its host or port is none")
    except ValueError as error:
        raise refusal(f"the server's address cannot be read: {error}") from error
    return parts


def _base(path: str) -> str:
    path = path.rstrip("/")
    path = next((path.removesuffix(each) for each in ENDPOINTS if path.endswith(each)), path)
    return path if any(NAMED.fullmatch(part) for part in path.split("/")) else path + VERSION


def _port(parts: SplitResult) -> str:
    return "" if parts.port is None else f":{parts.port}"


def _is_ip(host: str) -> bool:
    try:
        return bool(ip_address(host)) and "%" not in host
    except ValueError:
        return False
