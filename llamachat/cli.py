"""The `llamachat` command. Nothing heavy is imported before a command has its arguments: --help must be instant."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
import typer.core
from typer.exceptions import TyperException

from llamachat.bench_cmd import bench
from llamachat.errors import LlamachatError, UsageError
from llamachat.eval_cmd import evaluate_model
from llamachat.models_cmd import models_app
from llamachat.options import Options, with_options
from llamachat.quantize_cmd import quantize_model

if TYPE_CHECKING:
    from llamachat.answer import AnswerSettings
    from llamachat.catalog import ModelEntry
    from llamachat.load import LoadedModel
    from llamachat.session import Session

INTERRUPTED = 130
EPILOG = "Exit codes: 0 ok, 2 usage, 3 model or file error, 4 does not fit, 130 interrupted."


class ChatByDefault(typer.core.TyperGroup):
    """`llamachat` and `llamachat -m NAME` mean `llamachat chat ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in {"--help", "-h", "--version", *COMPLETION_FLAGS}):
            args = ["chat", *args]
        return super().parse_args(ctx, args)


COMPLETION_FLAGS = ("--install-completion", "--show-completion")
app = typer.Typer(
    cls=ChatByDefault,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Private local chat with Llama-family models. Without a command: chat.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.command(epilog=EPILOG)(bench)
app.command("quantize", epilog=EPILOG)(quantize_model)
app.command("eval", epilog=EPILOG)(evaluate_model)


def _version(wanted: bool) -> None:
    if wanted:
        from llamachat import __version__

        typer.echo(f"llamachat {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Private local chat with Llama-family models. Without a command: chat."""


@app.command(epilog=EPILOG)
@with_options
def chat(
    options: Options,
    no_history: Annotated[bool, typer.Option("--no-history", help="Keep no input history on disk.")] = False,
) -> None:
    """Chat in the terminal (also: `llamachat` alone)."""
    from llamachat import paths
    from llamachat.ui import app as ui

    system = _system(options)
    entry = _obtain(options)

    def start() -> "Session":
        from llamachat.session import Session

        model = _load(options, entry)
        return Session(
            model, _settings(options, model), model.system if system is None else system, options.overflow.value
        )

    history = None if no_history else paths.state_dir() / "history"
    raise typer.Exit(ui.run(start, model=entry.name, history_file=history))


@app.command(epilog=EPILOG)
@with_options
def complete(
    options: Options,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; text on stdin follows it.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text: no dialog format.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, help="With --json: logprobs with K alternatives, untempered and unfiltered.", metavar="K"
        ),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Put the prompt before the answer.")] = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(help='Batch: {"prompt": ...} or {"messages": [...]} a line; one result a line. -: stdin.'),
    ] = None,
) -> None:
    """Answer one prompt on stdout; all else goes to stderr."""
    from llamachat.complete import Completer, open_lines, read_prompt, write_json

    if logprobs is not None and not (as_json or jsonl):
        raise UsageError("--logprobs needs --json or --jsonl", "plain text has no place for them")
    if jsonl and (prompt is not None or file is not None):
        raise UsageError("--jsonl brings its own prompts", remedy="give no other prompt")
    text = read_prompt(prompt, file) if jsonl is None else ""
    lines = open_lines(jsonl) if jsonl else None
    system = _system(options)
    entry = _obtain(options)
    model = _load(options, entry)
    interrupted = _count_interrupts()
    settings = _settings(options, model, logprobs, echo)
    system = model.system if system is None else system
    completer = Completer(model, settings, system, raw, echo, lambda: bool(interrupted))
    good = True
    if lines is not None:
        with lines:
            good = completer.batch(_read_lines(lines), sys.stdout)
    elif as_json:
        write_json(completer.result(completer.dialog(text)), sys.stdout)
    else:
        answer = completer.stream(text, sys.stdout)
        if options.verbose:
            stats = answer.stats()
            _note(f"{stats.completion_tokens} tokens, {stats.decode_tok_s:.1f} tok/s, {answer.reason}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not good:
        raise typer.Exit(UsageError.exit_code)


def _count_interrupts() -> list[int]:
    """Ctrl-C ends the answer after the current token; a second one ends the process at once."""
    seen: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    signal.signal(signal.SIGINT, handle)
    return seen


def _read_lines(lines: TextIO) -> Iterator[str]:
    """Its lines; while one is waited for, Ctrl-C ends the process at once."""
    while True:
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = lines.readline()
        finally:
            signal.signal(signal.SIGINT, handler)
        if not line:
            return
        yield line


def _obtain(options: Options) -> "ModelEntry":
    """Find the model, and download it with a progress bar if it is not here; but bad settings are refused before."""
    from llamachat import catalog
    from llamachat.config import SamplingParams
    from llamachat.detokenize import StopMatcher
    from llamachat.load import check_options, obtain
    from llamachat.models_cmd import shown_progress

    SamplingParams().replace(**options.sampling())
    StopMatcher(options.stop)
    check_options(options.ctx_size, options.kv_bits, None, options.threads)
    entry = catalog.resolve(options.model)
    with shown_progress() as progress:
        obtain(entry, options.ctx_size, options.kv_bits, options.offline, options.force, progress)
    if options.engine != "torch" and options.device != "cuda" and not options.verbose:  # verbose loading says it itself
        from llamachat.engines import prepare_native

        prepare_native(_note)
    return entry


def _load(options: Options, entry: "ModelEntry") -> "LoadedModel":
    from llamachat.load import load

    return load(
        entry,
        ctx_size=options.ctx_size,
        kv_bits=options.kv_bits,
        device=options.device.value,
        engine=options.engine.value,
        threads=options.threads,
        offline=options.offline,
        force=options.force,
        report=_note if options.verbose else None,
    )


def _settings(
    options: Options, model: "LoadedModel", logprobs: int | None = None, echo: bool = False
) -> "AnswerSettings":
    from llamachat.answer import AnswerSettings

    return AnswerSettings(
        model.sampling.replace(**options.sampling()),
        model.stop_ids,
        options.stop,
        options.max_tokens,
        logprobs,
        score_prompt=echo and logprobs is not None,
    )


def _system(options: Options) -> str | None:
    """The system prompt that was given, if one was."""
    if options.system is not None and options.system_file is not None:
        raise UsageError("--system and --system-file were both given", remedy="give one of them")
    if options.system_file is not None:
        from llamachat.complete import read_text

        return read_text(options.system_file)
    return options.system


def main() -> None:
    """Console entry point: runs the command and turns errors of the user's into one line and an exit code."""
    _prepare_streams()
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except LlamachatError as error:
        code = _fail(str(error), error.exit_code)
    except TyperException as error:
        code = _fail(error.format_message(), UsageError.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # the machine's: a full disk, a folder that may not be read
        code = _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", LlamachatError.exit_code)
    except SystemExit as exit:  # typer's 1 when the reader of a pipe has gone; nobody is there to be told
        code = LlamachatError.exit_code if exit.code == 1 else exit.code
    _let_go_of_stdout()
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


def _let_go_of_stdout() -> None:
    """What a full disk or a closed pipe did not take would raise once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # stderr itself may be what is full
        _note(f"llamachat: {message}")
    return code


def _note(line: str) -> None:
    from llamachat.ui.sanitise import sanitise_line

    typer.echo(sanitise_line(line), err=True)
