"""The `llamachat` command. Nothing heavy is imported before a command has its arguments: --help must be instant."""

import io
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer
from typer.exceptions import TyperException

from llamachat.cli import epilogs
from llamachat.cli.group import ChatByDefault
from llamachat.cli.interrupts import INTERRUPTED
from llamachat.cli.keeping import keep_copies
from llamachat.cli.loading import explain, note
from llamachat.cli.options import Told
from llamachat.cli.shell_words import join_at_colons
from llamachat.cli.wording import shows_help, worded
from llamachat.engines.world import launched
from llamachat.errors import LlamachatError, UsageError, lacking

PIPE_CLOSED = 141  # as shells have it: 128 and the number of the signal
app = typer.Typer(
    cls=ChatByDefault,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Private local chat with Llama-family models. Without a command: chat.",
    epilog=epilogs.ROOT,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from llamachat.cli.version import lines

        typer.echo("\n".join(lines()))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print version, engine and system, and exit.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Private local chat with Llama-family models. Without a command: chat."""


def main() -> None:
    """Console entry point: runs the command and turns errors of the user's into one line and an exit code."""
    _prepare_streams()
    join_at_colons(os.environ)
    told = Told()
    try:
        code = app(prog_name="llamachat", standalone_mode=False, obj=told) or 0
        sys.stdout.flush()
    except TyperException as error:
        code = UsageError.exit_code if shows_help(error) else _fail(worded(error), told)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        failure = error if isinstance(error, LlamachatError) else lacking(error)
        if failure is None:
            raise
        code = _fail(failure, told)
    except SystemExit as exit:  # typer's 1 when the reader of a pipe has gone; nobody is there to be told
        code = PIPE_CLOSED if exit.code == 1 else exit.code
    _let_go_of_stdout()
    if code == 0:
        keep_copies(note, told.verbose)
    _dismiss_others()
    raise SystemExit(code)


def _prepare_streams() -> None:
    """Make all three usable: a closed one is the null device, and an encoding shows "?" for what it lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # refused where it is read


def _dismiss_others() -> None:
    """Those that torchrun has started may still wait to be called."""
    if launched():
        from llamachat.engines.torch.workers import dismiss

        dismiss()


def _let_go_of_stdout() -> None:
    """What a full disk or a closed pipe did not take would raise once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: LlamachatError, told: Told) -> int:
    with suppress(OSError):  # stderr itself may be what is full
        note(f"error: {error}")
        if told.verbose:
            explain(error)
    return error.exit_code
