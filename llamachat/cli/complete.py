"""`llamachat complete`: from its flags to answers on stdout."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli.interrupts import INTERRUPTED, at_once, count_interrupts
from llamachat.cli.loading import answer_settings, given_system, load_model, note, obtain, think_of
from llamachat.cli.options import Options, with_options
from llamachat.cli.reading import AsJson, Output, Resume
from llamachat.cli.serving import chosen
from llamachat.errors import UsageError

if TYPE_CHECKING:
    from llamachat.generation.completer import Completer
    from llamachat.generation.completion import Answer
    from llamachat.models.load import LoadedModel


@with_options
def complete(
    ctx: typer.Context,
    options: Options,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; text on stdin follows it.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text: no dialog format.")] = False,
    as_json: AsJson = False,
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
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Answer one prompt on stdout; all else goes to stderr."""
    if schema or regex or grammar:  # its process imports while we do
        from llamachat.generation.grammars import process

        process().start()
    from llamachat.core.thoughts import THINKING
    from llamachat.generation.completer import (
        PARALLEL,
        Completer,
        open_lines,
        read_grammar,
        read_prompt,
        read_text,
        write_json,
    )
    from llamachat.generation.jsonl import Lines, open_results

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
    system = given_system(options)
    entry = chosen(ctx, options, "ctx_size", "think_budget", "cache_prefix")
    obtain(options, entry)
    model = load_model(options, entry, (parallel or PARALLEL) if jsonl else 1)
    if model.reads:
        _require_source(model.name, system, before)
    raw = raw or model.reads is not None
    thinking = None if raw else THINKING[think_of(options, entry)]
    _tell_notes(model, thinking)
    interrupted = count_interrupts()
    settings = answer_settings(options, model, logprobs, echo, raw)
    system = model.system if system is None else system
    completer = Completer(model, settings, system, raw, echo, lambda: bool(interrupted), followed, thinking)
    if before is not None:
        text = _behind(before, text, completer)
    good = True
    if lines is not None:
        results, done = open_results(output, resume) if output else (nullcontext(sys.stdout), 0)
        with lines, results as out:
            good = completer.batch(Lines(lines, at_once), out, parallel or PARALLEL, done)
    elif as_json:
        write_json(completer.result(completer.dialog(text)), sys.stdout)
    else:
        answer = completer.stream(text, sys.stdout, sys.stderr if options.show_thinking else None)
        _tell_end(answer, options.verbose)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not good:
        raise typer.Exit(UsageError.exit_code)


def _require_source(name: str, system: str | None, prefix: str | None) -> None:
    """Raises UsageError for what a model that answers a source cannot be given."""
    if system is not None:
        cause = f"{name} answers a source text, it has no system prompt"
        raise UsageError(cause, "nothing was computed", "put it into the prompt")
    if prefix is not None:
        cause = f"{name} reads a source as a whole: of a --cache-prefix nothing could be kept"
        raise UsageError(cause, "nothing was computed", "put it into the prompt")


def _tell_notes(model: "LoadedModel", thinking: bool | None) -> None:
    """What a person should know before the answer."""
    from llamachat.generation.thinking import unheard

    unknown = None if thinking is None else unheard(model.name, model.dialog, thinking)
    for line in [*model.notes, *([unknown] if unknown else [])]:
        note(f"note: {line}")


def _tell_end(answer: "Answer", verbose: bool) -> None:
    if answer.all_thought and answer.reason == "length":
        note("note: the tokens ended within the thought; raise --max-tokens, or give a --think-budget below it")
    if verbose:
        stats = answer.stats()
        note(f"{stats.completion_tokens} tokens, {stats.decode_tok_s:.1f} tok/s, {answer.reason}")


def _behind(prefix: str, text: str, completer: "Completer") -> str:
    """The prompt with --cache-prefix before it, whose keys and values the cache holds then."""
    from llamachat.generation.prefix import hold, joined

    try:
        hold(completer.model, completer.cache, prefix, completer.ids, completer.interrupted, note)
    except OSError as error:
        note(f"--cache-prefix cannot be kept on disk ({error.strerror}); it is computed anew at every run")
    return joined(prefix, text)
