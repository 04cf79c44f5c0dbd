"""Every error a user can meet: one line that says cause, consequence and remedy, and the process's exit code.

Anything else that escapes is a bug of ours, and is shown as one; but what is read from a file, the hub or a library of
others may be anything, so whatever goes wrong in a reader is an error of its text (`reading`).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from traceback import format_exception
from typing import Concatenate, ParamSpec, TypeVar

BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # where str.splitlines ends a line
P = ParamSpec("P")
Read = TypeVar("Read")
Place = TypeVar("Place")


class LlamachatError(Exception):
    """`str(error)` is one line: the cause, what it means for the user, what to do about it."""

    exit_code = 3

    def __init__(self, cause: str, consequence: str = "", remedy: str = "") -> None:
        text = "; ".join(part for part in (cause, consequence, remedy) if part)
        super().__init__(BREAKS.sub(lambda found: ascii(found[0])[1:-1], text))  # a name in a file may hold any of them


class UsageError(LlamachatError):
    """The command, a flag, a parameter or a prompt is wrong."""

    exit_code = 2


class ModelError(LlamachatError):
    """A model, or a file of one, cannot be used."""


class FormatError(ModelError):
    """A checkpoint's bytes are damaged, dishonest or of a kind that is not read."""


class ConfigError(ModelError):
    """A configuration names something unknown, contradictory or unsupported."""


class CatalogError(ModelError):
    """A model name is unknown, or its files could not be fetched."""


class LostError(LlamachatError):
    """What answers has gone, for good: nothing can be asked of it any more."""


class DoesNotFitError(LlamachatError):
    """The weights, the context or the prompt need more than there is."""

    exit_code = 4


@contextmanager
def reading(
    what: object,
    kind: type[LlamachatError] = FormatError,
    consequence: str = "it is not read",
    remedy: str = "",
    passing: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """The boundary of a reader: whatever it raises on `what` (a file, as people know it) becomes a `kind` that names it.

    Errors of ours pass as they are, and so do `passing` and what ends a program (KeyboardInterrupt). Too little memory is a
    DoesNotFitError. The new error's __cause__ is the old one, whose traceback `--verbose` shows.
    """
    try:
        yield
    except (LlamachatError, ImportError):  # no file is to blame for a library that cannot be loaded
        raise
    except passing:
        raise
    except MemoryError as error:
        raise no_memory(f"for {what}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, which is none
            raise
        raise kind(f"{what}: {reason(error)}", consequence, remedy) from error


def reader(read: Callable[Concatenate[Place, P], Read]) -> Callable[Concatenate[Place, P], Read]:
    """Makes `reading` the boundary of a function whose first argument is what it reads."""

    @wraps(read)
    def bounded(place: Place, /, *rest: P.args, **options: P.kwargs) -> Read:
        with reading(place):
            return read(place, *rest, **options)

    return bounded


def no_memory(purpose: str) -> DoesNotFitError:
    """The error for memory that cannot be had."""
    return DoesNotFitError(
        f"there is too little memory {purpose}",
        "it was not loaded",
        "close other programs, or take a smaller model or context",
    )


def trace(error: BaseException) -> str:
    """The traceback of what went wrong where `reading` made an error of it; "" for an error of our own making."""
    cause = error.__cause__
    return "" if cause is None or isinstance(cause, LlamachatError) else "".join(format_exception(cause))


def lacking(error: BaseException) -> LlamachatError | None:
    """The error for what the machine cannot give, anywhere: memory, files, threads, libraries. None for a bug of ours."""
    match error:
        case MemoryError():
            return DoesNotFitError("there is too little memory", "nothing goes on", "close other programs")
        case OSError():
            return LlamachatError(f"{error.filename or 'standard output'}: {error.strerror or error}")
        case ImportError() if not (error.name or "").startswith("llamachat"):
            return LlamachatError(
                f"a library cannot be loaded: {reason(error)}",
                "nothing goes on",
                "see whether memory or open files are limited (ulimit -a), or install llamachat again",
            )
        case RuntimeError() if "start new thread" in str(error):
            return LlamachatError("no thread can be started", "nothing goes on", "see what limits them (ulimit -a)")
    return None


def reason(error: BaseException) -> str:
    """What an exception says, in at most 200 characters of one line; its type where that says more to people."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    tells = isinstance(error, (OSError, ValueError, RuntimeError, ImportError)) and said
    return (said if tells else f"{type(error).__name__} {said}".strip())[:200]
