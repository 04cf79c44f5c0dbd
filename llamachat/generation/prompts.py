"""What is asked: prompts from the command line, files and pipes, and what their answers must follow."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from llamachat.errors import DoesNotFitError, UsageError, reason
from llamachat.generation.jsonl import utf8
from llamachat.remote.asking import Format
from llamachat.system import textfile


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


def read_format(schema: str | None, regex: str | None, grammar: str | None) -> Format | None:
    """What --schema, --regex or --grammar asks for; schemas and grammars may be in files."""
    if sum(given is not None for given in (schema, regex, grammar)) > 1:
        raise UsageError("only one of --schema, --regex and --grammar can be followed", remedy="give one of them")
    if schema is not None:
        return Format("schema", schema if schema.lstrip().startswith(("{", "[")) else read_text(Path(schema)))
    if grammar is not None:
        inline = re.search(r"^\s*start\s*:", grammar, re.MULTILINE)
        return Format("lark", utf8(grammar, "--grammar") if inline else read_text(Path(grammar)))
    return None if regex is None else Format("regex", utf8(regex, "--regex"))


def open_lines(file: Path) -> BinaryIO:
    """A file of requests; "-" is stdin."""
    try:
        return sys.stdin.buffer if str(file) == "-" else textfile.opened(file, pipes=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {reason(error)}") from error
