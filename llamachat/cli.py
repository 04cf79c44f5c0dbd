"""The `llamachat` command. Nothing heavy is imported before a command has its arguments: --help must be instant."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typer.exceptions import TyperException

from llamachat.errors import LlamachatError, UsageError
from llamachat.models_cmd import models_app
from llamachat.options import EngineName, Options, with_options

if TYPE_CHECKING:
    from llamachat.answer import AnswerSettings
    from llamachat.catalog import ModelEntry
    from llamachat.load import LoadedModel
    from llamachat.session import Session

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
        return Session(model, _settings(options, model), model.system if system is None else system, options.overflow.value)

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
    from llamachat.complete import Completer, read_prompt, write_json

    if logprobs is not None and not (as_json or jsonl):
        raise UsageError("--logprobs needs --json or --jsonl", "plain text has no place for them")
    if jsonl and (prompt is not None or file is not None):
        raise UsageError("--jsonl brings its own prompts", remedy="give no other prompt")
    text = read_prompt(prompt, file) if jsonl is None else ""
    lines = _open_lines(jsonl) if jsonl else None
    system = _system(options)
    entry = _obtain(options)
    interrupted = _count_interrupts()
    model = _load(options, entry)
    settings = _settings(options, model, logprobs, echo)
    system = model.system if system is None else system
    completer = Completer(model, settings, system, raw, echo, lambda: bool(interrupted))
    good = True
    if lines is not None:
        with lines:
            good = completer.batch(lines, sys.stdout)
    elif as_json:
        write_json(completer.result(completer.dialog(text)), sys.stdout)
    else:
        answer = completer.stream(text, sys.stdout)
        if options.verbose:
            stats = answer.stats()
            typer.echo(f"{stats.completion_tokens} tokens, {stats.decode_tok_s:.1f} tok/s, {answer.reason}", err=True)
    if interrupted:
        raise typer.Exit(130)
    if not good:
        raise typer.Exit(UsageError.exit_code)


@app.command(epilog=EPILOG)
def bench(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name or path.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 256,
    decode: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens in the cache before decoding; 0: the prompt.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Medians are of so many.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Which engine runs it.")] = EngineName.auto,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the engine's choice.")] = None,
    vs_gguf: Annotated[Path | None, typer.Option(help="Run llama.cpp on this file beside it.")] = None,
    vs_transformers: Annotated[Path | None, typer.Option(help="Run transformers on this GGUF file beside it.")] = None,
) -> None:
    """Measure speed, beside peers in the same run; the last line is JSON."""
    from llamachat import bench as b
    from llamachat.load import load

    threads = threads or len(os.sched_getaffinity(0))
    context = max(prompt, depth) + decode + 8
    ours = load(model, ctx_size=context, threads=threads, engine=engine.value, dtype=dtype)
    runners: list[b.Runner] = [b.Ours(ours.engine)]
    if vs_gguf:
        runners.append(b.LlamaCpp(vs_gguf, context, threads))
    if vs_transformers:
        runners.append(b.Transformers(vs_transformers, threads))
    times = b.measure(runners, prompt, decode, depth, repeats, ours.engine.config.vocab_size)
    rows = [(runner.name, result.medians()) for runner, result in zip(runners, times, strict=True)]
    facts = {"model": ours.name, "engine": ours.engine.describe(), "load_s": round(ours.load_s, 3), "threads": threads}
    work = {"prompt": prompt, "decode": decode, "depth": depth, "repeats": repeats}
    b.report(rows, {**facts, **work, "read_gb_s": round(b.read_bandwidth(threads) / 1e9, 1), "versions": b.versions()})


def _open_lines(path: Path) -> Any:
    try:
        return sys.stdin if str(path) == "-" else path.open(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _count_interrupts() -> list[int]:
    """Ctrl-C ends the answer after the current token; a second one ends the process at once."""
    seen: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    signal.signal(signal.SIGINT, handle)
    return seen


def _obtain(options: Options) -> "ModelEntry":
    """Find the model, and download it with a progress bar if it is not here; but bad settings are refused before."""
    from llamachat import catalog
    from llamachat.config import SamplingParams
    from llamachat.detokenize import StopMatcher
    from llamachat.load import obtain
    from llamachat.models_cmd import shown_progress

    SamplingParams().replace(**options.sampling())
    StopMatcher(options.stop)
    entry = catalog.resolve(options.model)
    with shown_progress() as progress:
        obtain(entry, options.ctx_size, options.kv_bits, options.offline, options.force, progress)
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
        report=(lambda line: typer.echo(line, err=True)) if options.verbose else None,
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
    try:
        raise SystemExit(app(standalone_mode=False) or 0)
    except LlamachatError as error:
        raise SystemExit(_fail(str(error), error.exit_code)) from None
    except TyperException as error:
        raise SystemExit(_fail(error.format_message(), UsageError.exit_code)) from None


def _fail(message: str, code: int) -> int:
    from llamachat.ui.sanitise import sanitise_line

    typer.echo(f"llamachat: {sanitise_line(message)}", err=True)
    return code
