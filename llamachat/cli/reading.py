"""What the commands do alike that read texts instead of answering: one text, or a file of them, through a model to results."""

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamachat.cli.interrupts import INTERRUPTED, at_once, count_interrupts
from llamachat.cli.loading import find, load_shown, note, obtain
from llamachat.cli.options import Loading
from llamachat.errors import LlamachatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from llamachat.core.spec import HeadKind
    from llamachat.generation.texts import Job, Outcome, Runner
    from llamachat.models.load import LoadedModel

OneText = Annotated[str | None, typer.Argument(help="The text; or stdin, or --file.")]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut what is too long for the context.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="With --jsonl: write the results to a new file.")]
Resume = Annotated[bool, typer.Option("--resume", help="With --output: go on where a broken run left it.")]


@dataclass(frozen=True)
class Reading:
    """A loaded model, and what runs texts through it."""

    model: "LoadedModel"
    runner: "Runner"
    interrupted: list[int]

    @classmethod
    def begin(
        cls,
        options: Loading,
        heads: "Collection[HeadKind]",
        rows: "Literal['last', 'all'] | Callable[[LoadedModel], Literal['last', 'all']]",
        several: bool,
        **outputs: Any,
    ) -> "Reading":
        """Loads the model, which must have one of these heads; `several`: many texts are to come. `rows`, which may depend on
        the model, and `outputs`: see texts.Runner."""
        from llamachat.generation.texts import PARALLEL, Runner

        if options.model is None and "next_token" not in heads:
            raise UsageError("no model was named", "nothing was read", "give one with --model")
        entry = find(options)
        obtain(options, entry)
        model = load_shown(options, entry, PARALLEL if several else 1, heads=heads)
        for line in model.notes:
            note(f"note: {line}")
        interrupted = count_interrupts()
        wanted = rows if isinstance(rows, str) else rows(model)
        return cls(model, Runner(model, wanted, lambda: bool(interrupted), **outputs), interrupted)

    def outcomes(self, jobs: "Iterable[Job]") -> "list[Outcome]":
        """Of all jobs. Raises the first error, and typer.Exit when interrupted."""
        found = list(self.runner.run(iter(jobs)))
        if self.interrupted:
            raise typer.Exit(INTERRUPTED)
        for each in found:
            if isinstance(each, LlamachatError):
                raise each
        return found  # type: ignore[return-value]

    def batch(
        self,
        lines: Any,
        job: "Callable[[str, int], Job]",
        result: "Callable[[Outcome], dict[str, Any]]",
        output: Path | None,
        resume: bool,
    ) -> None:
        """A result a line for each line. Raises typer.Exit when interrupted, UsageError where a line was bad."""
        from llamachat.generation.jsonl import Lines, open_results
        from llamachat.generation.texts import jobs_of, write_all

        with lines:
            results, done = open_results(output, resume) if output else (nullcontext(sys.stdout), 0)
            with results as out:
                jobs = jobs_of(Lines(lines, at_once), self.runner, job, done)
                good = write_all(self.runner.run(jobs), result, out)
        if self.interrupted:
            raise typer.Exit(INTERRUPTED)
        if not good:
            raise without_results()


def without_results() -> UsageError:
    """A batch of which not every line could be answered: its results are mostly in a file that nobody has looked at yet."""
    return UsageError("not every line has a result", 'an {"error": ...} in the place of each says why')


def check_batch(jsonl: Path | None, output: Path | None, resume: bool, *others: object) -> None:
    """Raises UsageError for flags that do not go together; `others`: what gives one text."""
    if jsonl and any(each is not None for each in others):
        raise UsageError("--jsonl brings its own texts", remedy="give no other text")
    if not jsonl and output:
        raise UsageError("--output needs --jsonl", remedy="redirect one result with >")
    if resume and not output:
        raise UsageError("--resume needs --output", remedy="name the file to go on with")


def print_json(value: dict[str, Any]) -> None:
    from llamachat.generation.prompting import write_json

    write_json(value, sys.stdout)
