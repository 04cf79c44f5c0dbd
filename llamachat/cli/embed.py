"""`llamachat embed`: texts to vectors, for search and comparison."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from llamachat.cli.interrupts import at_once
from llamachat.cli.loading import note
from llamachat.cli.options import Loading, one_of, with_options
from llamachat.cli.reading import AsJson, OneText, Reading, Resume, TextFile, Truncate, check_batch, print_json
from llamachat.errors import LlamachatError, UsageError, reason

if TYPE_CHECKING:
    from enum import StrEnum as Pool

    from llamachat.generation.embedding import Vector
    from llamachat.generation.texts import Job
    from llamachat.models.load import LoadedModel
else:
    Pool = one_of("Pool", ("mean", "last"))


@with_options
def embed(
    options: Loading,
    text: OneText = None,
    file: TextFile = None,
    pool: Annotated[
        Pool | None,
        typer.Option(help="Tokens' vectors become one of the text. Default: as the model's files say, else mean."),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Make vectors of length 1: products are cosines.")
    ] = True,
    truncate: Truncate = False,
    as_json: AsJson = False,
    jsonl: Annotated[
        Path | None, typer.Option(help='Batch: {"text": ...} a line; one result a line. -: stdin.')
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a new file: FILE.npy has an array, a row a text; others lines."),
    ] = None,
    resume: Resume = False,
) -> None:
    """Print the vector of a text, or of each line of a file."""
    from llamachat.generation.embedding import Embedder, numbers, pool_of
    from llamachat.generation.prompts import open_lines
    from llamachat.generation.texts import parse, read_one
    from llamachat.models.heads import USES

    array = output if output is not None and output.suffix == ".npy" else None
    check_batch(jsonl, None if array else output, resume and not array, text, file)
    if array and resume:
        raise UsageError("--resume goes on with lines, an array is written whole", "nothing was run", "leave it out")
    if array and array.exists():
        raise UsageError(f"{array} exists", "nothing was run", "remove it, or give another --output")
    lines = open_lines(jsonl) if jsonl else None
    given = read_one(text, file) if lines is None else ""

    def embedder(model: "LoadedModel") -> Embedder:
        return Embedder(model, pool_of(model, None if pool is None else pool.value), normalize, truncate)

    reading = Reading.begin(options, [*USES], lambda model: embedder(model).rows, bool(lines), outputs="hidden")
    made = embedder(reading.model)

    def job(line: str, number: int) -> "Job":
        return made.job(parse(line, number).text)

    if array:
        jobs = [made.job(given)] if lines is None else _jobs(lines, job)
        _save([made.embedded(done).vector for done in reading.outcomes(jobs)], array)
    elif lines is not None:
        reading.batch(lines, job, made.result, output, resume)
    else:
        (done,) = reading.outcomes([made.job(given)])
        print_json(made.result(done)) if as_json else typer.echo(json.dumps(numbers(made.embedded(done).vector)))


def _jobs(lines: BinaryIO, job: "Callable[[str, int], Job]") -> "Iterator[Job]":
    """Of all lines, which must all be good: rows of an array are told apart by their number alone. Raises LlamachatError."""
    from llamachat.generation.jsonl import Lines, numbered

    with lines:
        for number, line in numbered(Lines(lines, at_once), lambda: True):
            try:
                if isinstance(line, LlamachatError):
                    raise line
                yield job(line or "", number)
            except LlamachatError as error:
                cause = f"line {number} has no vector ({str(error).partition('; ')[0]})"
                raise type(error)(cause, "nothing was written", "mend it or leave it out") from error


def _save(rows: "Sequence[Vector]", output: Path) -> None:
    import numpy as np

    from llamachat.system import private

    if not rows:
        raise UsageError("there are no texts", f"{output} was not written")
    try:
        with private.writing(output, new=True) as file:
            np.save(file, np.stack(rows))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {reason(error)}") from error
    note(f"{output}: {len(rows)} {'vector' if len(rows) == 1 else 'vectors'} of {len(rows[0])} numbers")
