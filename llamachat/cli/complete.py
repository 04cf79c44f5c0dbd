"""`llamachat complete`: from its flags to answers on stdout."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.interrupts import INTERRUPTED, at_once, count_interrupts
from llamachat.cli.loading import answer_settings, given_system, load_shown, note, obtain, think_of
from llamachat.cli.options import Options, with_options
from llamachat.cli.reading import AsJson, Output, Resume, without_results
from llamachat.cli.serving import chosen, connect, tell_configured
from llamachat.errors import UsageError

if TYPE_CHECKING:
    from llamachat.generation.completer import Completer
    from llamachat.generation.prompting import Prompting, Reply
    from llamachat.generation.served import ServedCompleter
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.load import LoadedModel
    from llamachat.models.sources import ServerSource
    from llamachat.remote.asking import Format, Question


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
        typer.Option(
            min=1, max=256, help="With --jsonl: requests run at once. Default: 32, or as many as fit; 8 of a server."
        ),
    ] = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Answer one prompt on stdout; all else goes to stderr."""
    if (schema or regex or grammar) and not options.server:  # its process imports while we do
        from llamachat.generation.grammars import process

        process().start()
    from llamachat.generation.jsonl import Lines, open_results
    from llamachat.generation.prompting import PARALLEL, write_json
    from llamachat.generation.prompts import open_lines, read_format, read_prompt, read_text
    from llamachat.models.sources import ServerSource

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
    followed = read_format(schema, regex, grammar)
    text = read_prompt(prompt, file) if jsonl is None else ""
    before = None if cache_prefix is None else read_text(cache_prefix)
    lines = open_lines(jsonl) if jsonl else None
    entry = chosen(ctx, options, "ctx_size", "think_budget", "cache_prefix")
    wanted = _Wanted(options, entry, given_system(options), raw, echo, logprobs, followed)
    completer: Prompting[Any, Any, Any]
    if isinstance(entry.source, ServerSource):
        tell_configured(ctx, options, entry.source)
        completer = wanted.served(entry.source)
    else:
        completer = wanted.local(before, (parallel or PARALLEL) if jsonl else 1)
        text = text if before is None else _behind(before, text, completer)
    good = True
    if lines is not None:
        results, done = open_results(output, resume) if output else (nullcontext(sys.stdout), 0)
        with lines, results as out:
            good = completer.batch(Lines(lines, at_once), out, parallel or completer.at_once, done)
    elif as_json:
        write_json(completer.result(completer.dialog(text), lambda each: write_json(each, sys.stdout)), sys.stdout)
    else:
        reply = completer.stream(text, sys.stdout, sys.stderr if options.show_thinking else None)
        _tell_end(reply, options.verbose, served=isinstance(entry.source, ServerSource))
    if completer.interrupted():
        raise typer.Exit(INTERRUPTED)
    if not good:
        raise without_results()


@dataclass(frozen=True)
class _Wanted:
    """What the flags ask for of whatever is to answer."""

    options: Options
    entry: "ModelEntry"
    system: str | None
    raw: bool
    echo: bool
    logprobs: int | None
    followed: "Format | None"

    @property
    def thinking(self) -> bool | None:
        from llamachat.core.thoughts import THINKING

        return THINKING[think_of(self.options, self.entry)]

    def local(self, before: str | None, parallel: int) -> "Completer":
        """By a model that runs here, which is loaded. `before`: see _behind."""
        from llamachat.generation.completer import Completer
        from llamachat.generation.constraints import compiled

        grammar = compiled(self.followed) if self.followed else None
        obtain(self.options, self.entry)
        model = load_shown(self.options, self.entry, parallel)
        if model.reads:
            _require_source(model.name, self.system, before)
        raw = self.raw or model.reads is not None
        thinking = None if raw else self.thinking
        _tell_notes(model, thinking)
        interrupted = count_interrupts()
        settings = answer_settings(self.options, model, self.logprobs, self.echo, raw)
        system = model.system if self.system is None else self.system
        return Completer(model, settings, system, raw, self.echo, lambda: bool(interrupted), grammar, thinking)

    def served(self, source: "ServerSource") -> "ServedCompleter":
        """By a server, of which, at most, the names of its models are asked."""
        from llamachat.generation.prompting import check_stops
        from llamachat.generation.served import ServedCompleter

        if self.followed:
            check_stops(self.options.stop)
        if self.echo and not self.raw:
            cause = "how a dialog is written for the model, which --echo shows, only the server knows"
            raise UsageError(cause, "nothing was asked", "leave --echo out, or add --raw")
        server = connect(source, self.options.offline)
        asked = server.model_name()
        name = asked if self.entry.name == source.reference else self.entry.name
        interrupted = count_interrupts()
        system = self.entry.system if self.system is None else self.system
        settings = self._settings()
        return ServedCompleter(
            server,
            name,
            settings,
            system,
            self.raw,
            lambda: bool(interrupted),
            _say,
            self.followed,
            allow_loops=self.options.allow_loops,
        )

    def _settings(self) -> "Question":
        from llamachat.core.sampling import SamplingParams
        from llamachat.remote.asking import Question

        return Question(
            sampling=SamplingParams().replace(**{**self.entry.sampling, **self.options.sampling()}),
            max_tokens=self.options.max_tokens,
            stop=self.options.stop,
            thinking=None if self.raw else self.thinking,
            top_logprobs=self.logprobs,
            echo=self.echo,
        )


def _say(line: str) -> None:
    note(f"note: {line}")


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


def _tell_end(reply: "Reply", verbose: bool, served: bool) -> None:
    if reply.all_thought and reply.reason == "length":
        remedy = "try --think off" if served else "give a --think-budget below it"
        note(f"note: the tokens ended within the thought; raise --max-tokens, or {remedy}")
    if reply.reason == "repeat":
        note("note: the answer said the same over and over, and was ended; --allow-loops lets it go on")
    if verbose:
        stats = reply.stats()
        note(f"{stats.completion_tokens} tokens, {stats.decode_tok_s:.1f} tok/s, {reply.reason}")


def _behind(prefix: str, text: str, completer: "Completer") -> str:
    """The prompt with --cache-prefix before it, whose keys and values the cache holds then."""
    from llamachat.generation.prefix import hold, joined

    try:
        hold(completer.model, completer.cache, prefix, completer.ids, completer.interrupted, note)
    except OSError as error:
        note(f"--cache-prefix cannot be kept on disk ({error.strerror}); it is computed anew at every run")
    return joined(prefix, text)
