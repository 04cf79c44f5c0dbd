"""What is asked: prompts from the command line, files and pipes, and what their answers must follow."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llamachat.errors import DoesNotFitError, UsageError, reason
from llamachat.generation.jsonl import utf8
from llamachat.system import textfile

if TYPE_CHECKING:
    from llamachat.remote.asking import Format


def read_prompt(argument: str | None, file: Path | None, what: str = "prompt") -> str:
    """The prompt: the argument or the file's text, followed by stdin's where stdin is not a terminal."""
    if argument is not None and file is not None:
        raise UsageError(f"a {what} and --file were both given", remedy="give one of them")
    given = argument if file is None else read_text(file)
    parts = [given] if given is not None else []
    if not sys.stdin.isatty():
        piped = read_given(lambda: textfile.read_all(sys.stdin.buffer), "standard input")
        parts += [piped] if piped else []
    if not any(parts):
        raise UsageError(f"there is no {what}", remedy="give it as an argument, with --file, or on stdin")
    return "\n\n".join(parts)


def read_text(file: Path) -> str:
    """A user's text file, or what comes through a pipe: see read_given."""
    return read_given(lambda: textfile.read(file, pipes=True), str(file))


def read_given(read: Callable[[], bytearray], where: str) -> str:
    """A text, from wherever it comes: without a byte-order mark and the last line's end. All else stays, CRLF too.

    Raises UsageError; DoesNotFitError for what no context holds.
    """
    try:
        text = read().decode().removeprefix("\ufeff")
    except textfile.TooLargeError as error:
        raise DoesNotFitError(f"{where} cannot be read: {error}", "it was not sent", "give a part of it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8", "it was not sent", "convert it") from error
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, too
        raise UsageError(f"{where} cannot be read: {reason(error)}") from error
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def read_format(schema: str | None, regex: str | None, grammar: str | None) -> "Format | None":
    """What --schema, --regex or --grammar asks for; schemas and grammars may be in files."""
    if sum(given is not None for given in (schema, regex, grammar)) > 1:
        raise UsageError("only one of --schema, --regex and --grammar can be followed", remedy="give one of them")
    if schema is regex is grammar is None:
        return None
    for name, given in (("--schema", schema), ("--grammar", grammar)):
        if given is not None and not given.strip():
            raise UsageError(f"{name} is empty", "nothing was generated", "give it or its file's name")
    from llamachat.remote.asking import Format

    if schema is not None:
        inline = schema.lstrip().startswith(("{", "["))
        return Format("schema", schema_text(schema if inline else read_text(Path(schema))))
    if grammar is not None:
        inline = re.search(r"^\s*start\s*:", grammar, re.MULTILINE) is not None
        return Format("lark", utf8(grammar, "--grammar") if inline else read_text(Path(grammar)))
    return Format("regex", utf8(regex or "", "--regex"))


def schema_text(schema: object) -> str:
    """A JSON schema, parsed or as text, as text. Raises UsageError for what is none."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        parsed = json.loads(text, parse_int=_exact, parse_float=_finite, parse_constant=_finite)
        if not isinstance(parsed, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise unusable("JSON schema", reason(error)) from error
    return text


def unusable(what: str, why: str) -> UsageError:
    """The error for what no answer can follow."""
    return UsageError(f"the {what} cannot be used: {why}", "nothing was generated")


def _exact(digits: str) -> int:
    """Raises ValueError for what llguidance, which computes with float64, would change."""
    if abs(number := int(digits)) > 2**53:
        raise ValueError(f"{number} is too large")
    return number


def _finite(digits: str) -> float:
    """Raises ValueError for what float64 cannot hold: 1e400, Infinity and NaN."""
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is no finite number")
    return number


def open_lines(file: Path) -> BinaryIO:
    """A file of requests; "-" is stdin."""
    try:
        return sys.stdin.buffer if str(file) == "-" else textfile.opened(file, pipes=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {reason(error)}") from error
