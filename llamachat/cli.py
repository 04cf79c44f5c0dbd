"""The `llamachat` command. Nothing heavy is imported before a command has its arguments: --help must be instant."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from llamachat import epilogs
from llamachat.bench_cmd import bench
from llamachat.cli_group import ChatByDefault
from llamachat.config_cmd import config_app
from llamachat.errors import LlamachatError, UsageError
from llamachat.eval_cmd import evaluate_model
from llamachat.models_cmd import models_app
from llamachat.options import DIALOG, SCREEN, Options, ThemeName, flag, with_options
from llamachat.quantize_cmd import quantize_model
from llamachat.settings import Configured
from llamachat.shell_words import personas, sessions

if TYPE_CHECKING:
    from llamachat.answer import AnswerSettings
    from llamachat.catalog import ModelEntry
    from llamachat.complete import Completer
    from llamachat.load import LoadedModel
    from llamachat.persona import Persona
    from llamachat.session import Session
    from llamachat.store import Archive
    from llamachat.ui.app import Watch

INTERRUPTED, PIPE_CLOSED = 130, 141  # as shells have it: 128 and the number of the signal
app = typer.Typer(
    cls=ChatByDefault,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Private local chat with Llama-family models. Without a command: chat.",
    epilog=epilogs.ROOT,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.command(epilog=epilogs.BENCH)(bench)
app.command("quantize", epilog=epilogs.QUANTIZE)(quantize_model)
app.command("eval", epilog=epilogs.EVALUATE)(evaluate_model)


def _version(wanted: bool) -> None:
    if wanted:
        from llamachat.version import lines

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


@app.command(cls=Configured, epilog=epilogs.CHAT)
@with_options
def chat(
    ctx: typer.Context,
    options: Options,
    persona: Annotated[
        str | None,
        flag("--persona", help="A manner of answering: see /help persona.", panel=DIALOG, autocompletion=personas),
    ] = None,
    continued: Annotated[bool, flag("--continue", help="Go on with the latest dialog.", panel=DIALOG)] = False,
    session: Annotated[
        str | None,
        flag(
            "--session",
            help="Go on with this dialog, or begin one of this name.",
            panel=DIALOG,
            metavar="NAME",
            autocompletion=sessions,
        ),
    ] = None,
    no_history: Annotated[
        bool, flag("--no-history", help="Leave no trace of the dialog on disk.", panel=DIALOG)
    ] = False,
    think: Annotated[
        bool, flag("--think/--hide-thinking", help="Show what a model thinks before it answers.", panel=SCREEN)
    ] = False,
    plain: Annotated[bool, flag("--plain", help="Show answers as they come: no Markdown.", panel=SCREEN)] = False,
    theme: Annotated[ThemeName, flag("--theme", help="Colours; auto: what fits the terminal.", panel=SCREEN)] = (
        ThemeName.auto
    ),
    vi: Annotated[bool, flag("--vi", help="Edit with the keys of vi.", panel=SCREEN)] = False,
) -> None:
    """Chat in the terminal (also: `llamachat` alone)."""
    from llamachat import catalog, paths
    from llamachat.persona import Library, load
    from llamachat.store import Archive
    from llamachat.ui import app as ui

    manner = load(persona) if persona else None
    if manner:
        options = _as_persona(options, manner, ctx)
    archive = None if no_history else Archive(paths.data_dir() / "sessions")
    name = _dialog(archive, continued, session)
    if archive and name and not _typed(ctx, "model"):
        options = replace(options, model=archive.model_of(name) or options.model)
    system = _system(options)
    watch = ui.Watch() if ui.redraws() else None
    entry = _obtain(options, later=watch is not None)
    opened: list[Session] = []

    def start() -> "Session":
        from llamachat.session import Session

        model = _watched(options, entry, watch) if watch else _load(options, entry)
        settings, prompt = _settings(options, model), model.system if system is None else system
        chat = Session(
            model,
            settings,
            prompt,
            options.overflow.value,
            archive=archive,
            load_model=lambda name: _load(options, catalog.resolve(name)),
            snapshots=not no_history,
        )
        opened.append(chat)
        if name:
            chat.open(name)
            _typed_again(chat, options, system, ctx)
        if manner and manner.messages and all(turn.role == "system" for turn in chat.turns()):
            chat.begin(manner.said)
        return chat

    history = None if no_history else paths.state_dir() / "history"
    try:
        code = ui.run(
            start,
            model=entry.name,
            watch=watch,
            history_file=history,
            library=Library(),
            theme=theme.value,
            plain=plain,
            think=think,
            vi=vi,
        )
        raise typer.Exit(code)
    finally:
        for chat in opened:
            chat.close()


def _dialog(archive: "Archive | None", continued: bool, session: str | None) -> str | None:
    """The name of the saved dialog that was asked for."""
    if not continued and session is None:
        return None
    if archive is None or (continued and session is not None):
        raise UsageError("--continue, --session and --no-history exclude each other", remedy="give one of them")
    name = session or archive.latest()
    if name is None:
        raise UsageError("there is no dialog to continue", remedy="start one without --continue")
    from llamachat.store import check_name

    check_name(name)
    return name


def _typed_again(chat: "Session", options: Options, system: str | None, ctx: typer.Context) -> None:
    """What was typed goes before what a saved dialog was held with."""
    if _typed(ctx, "system") or _typed(ctx, "system_file"):
        chat.set_system(system)
    for name, value in {**options.sampling(), "max_tokens": options.max_tokens}.items():
        if _typed(ctx, name):
            chat.set_parameter(name, str(value))


@app.command(cls=Configured, epilog=epilogs.COMPLETE)
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
    cache_prefix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Put this file before the prompt; what the model computes of it is kept on disk for the next run.",
        ),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE|JSON", help="Answer in JSON that follows this JSON schema.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Answer in text that this regular expression matches whole.")
    ] = None,
    grammar: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="Answer in the language of this grammar (Lark).")
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            help='Batch: {"prompt": ...} or {"messages": [...]}, maybe with "schema", a line; one result a line. -: stdin.'
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="With --jsonl: requests run at once. Default: 32, or as many as fit."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --jsonl: write the results to a new file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --output: go on where a broken run left it.")] = False,
) -> None:
    """Answer one prompt on stdout; all else goes to stderr."""
    from llamachat.complete import PARALLEL, Completer, open_lines, read_grammar, read_prompt, read_text, write_json
    from llamachat.jsonl import Lines, open_results

    if logprobs is not None and not (as_json or jsonl):
        raise UsageError("--logprobs needs --json or --jsonl", "plain text has no place for them")
    if jsonl and (prompt is not None or file is not None):
        raise UsageError("--jsonl brings its own prompts", remedy="give no other prompt")
    if jsonl and cache_prefix is not None:
        raise UsageError("--cache-prefix is for one prompt", remedy="a batch computes a common beginning once anyway")
    if not jsonl and (output or parallel):
        raise UsageError("--output and --parallel need --jsonl", remedy="redirect one answer with >")
    if resume and not output:
        raise UsageError("--resume needs --output", remedy="name the file to go on with")
    followed = read_grammar(schema, regex, grammar)
    text = read_prompt(prompt, file) if jsonl is None else ""
    before = None if cache_prefix is None else read_text(cache_prefix)
    lines = open_lines(jsonl) if jsonl else None
    system = _system(options)
    entry = _obtain(options)
    model = _load(options, entry, (parallel or PARALLEL) if jsonl else 1)
    for line in model.notes:
        _note(f"note: {line}")
    interrupted = _count_interrupts()
    settings = _settings(options, model, logprobs, echo)
    system = model.system if system is None else system
    completer = Completer(model, settings, system, raw, echo, lambda: bool(interrupted), followed)
    if before is not None:
        text = _behind(before, text, completer)
    good = True
    if lines is not None:
        results, done = open_results(output, resume) if output else (nullcontext(sys.stdout), 0)
        with lines, results as out:
            good = completer.batch(Lines(lines, _at_once), out, parallel or PARALLEL, done)
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


def _behind(prefix: str, text: str, completer: "Completer") -> str:
    """The prompt with --cache-prefix before it, whose keys and values the cache holds then."""
    from llamachat.prefix import hold, joined

    try:
        hold(completer.model, completer.cache, prefix, completer.ids, completer.interrupted)
    except OSError as error:
        _note(f"--cache-prefix cannot be kept on disk ({error.strerror}); it is computed anew at every run")
    return joined(prefix, text)


def _count_interrupts() -> list[int]:
    """Ctrl-C ends the answer after the current token; a second one ends the process at once."""
    seen: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    signal.signal(signal.SIGINT, handle)
    return seen


@contextmanager
def _at_once() -> Iterator[None]:
    """Here Ctrl-C ends the process at once."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _obtain(options: Options, later: bool = False) -> "ModelEntry":
    """Find the model, and download it with a progress bar if it is not here, or later; but first refuse bad settings."""
    from llamachat import catalog
    from llamachat.config import SamplingParams
    from llamachat.detokenize import StopMatcher
    from llamachat.load import check_options, obtain
    from llamachat.models_cmd import shown_progress

    SamplingParams().replace(**options.sampling())
    StopMatcher(options.stop)
    check_options(options.ctx_size, options.kv_bits, None, options.threads)
    entry = catalog.resolve(options.model)
    if later:
        return entry
    with shown_progress() as progress:
        obtain(entry, options.ctx_size, options.kv_bits, options.offline, options.force, progress)
    if options.engine != "torch" and options.device != "cuda" and not options.verbose:  # verbose loading says it itself
        from llamachat.engines import prepare_native

        prepare_native(_note)
    return entry


def _watched(options: Options, entry: "ModelEntry", watch: "Watch") -> "LoadedModel":
    """Download and load behind a prompt that shows how far that is."""
    from llamachat import fit
    from llamachat.engines import prepare_native
    from llamachat.load import obtain

    if plan := fit.entry_plan(entry, options.ctx_size, options.kv_bits):
        watch.plan = fit.describe(plan)
    obtain(entry, options.ctx_size, options.kv_bits, options.offline, options.force, watch.progress)
    if options.engine != "torch" and options.device != "cuda" and not options.verbose:
        prepare_native(watch.note)
    watch.line = ""
    return _load(options, entry, report=watch.note)


def _load(
    options: Options, entry: "ModelEntry", parallel: int = 1, report: Callable[[str], None] | None = None
) -> "LoadedModel":
    from llamachat.load import load

    return load(
        entry,
        ctx_size=options.ctx_size,
        parallel=parallel,
        kv_bits=options.kv_bits,
        device=options.device.value,
        engine=options.engine.value,
        threads=options.threads,
        offline=options.offline,
        force=options.force,
        report=(report or _note) if options.verbose else None,
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


def _as_persona(options: Options, persona: "Persona", ctx: typer.Context) -> Options:
    """Its model, system prompt and sampling: after what was typed, before the environment and the config file."""

    changes: dict[str, Any] = {**persona.sampling} | ({"model": persona.model} if persona.model else {})
    if persona.system is not None and not (_typed(ctx, "system") or _typed(ctx, "system_file")):
        changes |= {"system": persona.system, "system_file": None}
    return replace(options, **{name: value for name, value in changes.items() if not _typed(ctx, name)})


def _typed(ctx: typer.Context, name: str) -> bool:
    return str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")


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
        code = app(prog_name="llamachat", standalone_mode=False) or 0
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
        code = PIPE_CLOSED if exit.code == 1 else exit.code
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
