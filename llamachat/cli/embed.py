"""`llamachat embed`: texts to vectors, for search and comparison."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.complete import INTERRUPTED, at_once, count_interrupts
from llamachat.cli.loading import load_model, note, obtain
from llamachat.cli.options import Loading, one_of, with_options
from llamachat.errors import LlamachatError, UsageError, reason

if TYPE_CHECKING:
    from enum import StrEnum as Pool

    from llamachat.generation.embedding import Embedded, Embedder
else:
    Pool = one_of("Pool", ("mean", "last"))


@with_options
def embed(
    options: Loading,
    text: Annotated[str | None, typer.Argument(help="The text; text on stdin follows it.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file.")] = None,
    pool: Annotated[
        Pool | None,
        typer.Option(help="Tokens' vectors become one of the text. Default: as the model's files say, else mean."),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Make vectors of length 1: products are cosines.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object, not the vector alone.")] = False,
    jsonl: Annotated[
        Path | None, typer.Option(help='Batch: {"text": ...} a line; one object a line. -: stdin.')
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a new file: FILE.npy has an array, a row a text; others lines."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --output of lines: go on where a broken run left it.")
    ] = False,
) -> None:
    """Print the vector of a text, or of each line of a file."""
    from llamachat.generation.completer import read_prompt
    from llamachat.generation.embedding import Embedder, pool_of
    from llamachat.generation.texts import PARALLEL
    from llamachat.models.heads import USES

    array = output is not None and output.suffix == ".npy"
    _check(text is not None or file is not None, jsonl, output, resume, array)
    given = "" if jsonl else read_prompt(text, file, "text")
    model = load_model(options, obtain(options), PARALLEL if jsonl else 1, heads=[*USES])
    interrupted = count_interrupts()
    chosen = pool_of(model, None if pool is None else pool.value)
    embedder = Embedder(model, chosen, normalize, lambda: bool(interrupted))
    for line in model.notes:
        note(f"note: {line}")
    if array and output:
        good = _save(_lines(embedder, jsonl) if jsonl else embedder.run(iter([given])), output, interrupted)
    elif jsonl:
        good = _write_lines(embedder, jsonl, output, resume)
    else:
        good = _print(embedder, given, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not good:
        raise typer.Exit(UsageError.exit_code)


def _check(given: bool, jsonl: Path | None, output: Path | None, resume: bool, array: bool) -> None:
    if jsonl and given:
        raise UsageError("--jsonl brings its own texts", remedy="give no other text")
    if output and not jsonl and not array:
        raise UsageError("--output needs --jsonl, or a file that ends in .npy", remedy="redirect one vector with >")
    if resume and (not output or array):
        raise UsageError("--resume needs --output of lines", remedy="name the file to go on with")
    if array and output and output.exists():
        raise UsageError(f"{output} exists", "nothing was run", "remove it, or give another --output")


def _print(embedder: "Embedder", text: str, as_json: bool) -> bool:
    for found in embedder.run(iter([text])):
        if isinstance(found, LlamachatError):
            raise found
        numbers = _object(embedder, found) if as_json else _numbers(found)
        typer.echo(json.dumps(numbers))
    return True


def _lines(embedder: "Embedder", jsonl: Path, skip: int = 0) -> "Iterator[Embedded | LlamachatError]":
    """Of each line of a file, in order."""
    from llamachat.generation.completer import open_lines
    from llamachat.generation.jsonl import Lines
    from llamachat.generation.texts import Job, jobs_of, parse

    def job(line: str, number: int) -> Job:
        return embedder.job(parse(line, number).text)

    runner = embedder.runner()
    with open_lines(jsonl) as lines:
        for outcome in runner.run(jobs_of(Lines(lines, at_once), runner, job, skip)):
            yield outcome if isinstance(outcome, LlamachatError) else embedder.embedded(outcome)


def _write_lines(embedder: "Embedder", jsonl: Path, output: Path | None, resume: bool) -> bool:
    """True when no line was bad."""
    from llamachat.generation.completer import write_json
    from llamachat.generation.jsonl import open_results

    good = True
    results, done = open_results(output, resume) if output else (nullcontext(sys.stdout), 0)
    with results as out:
        for found in _lines(embedder, jsonl, done):
            bad = isinstance(found, LlamachatError)
            good = good and not bad
            write_json({"error": str(found)} if isinstance(found, LlamachatError) else _object(embedder, found), out)
    return good


def _save(found: "Iterator[Embedded | LlamachatError]", output: Path, interrupted: list[int]) -> bool:
    """All of them or none: rows are told apart by their number only."""
    import numpy as np

    from llamachat.system import private

    rows = list[Any]()
    for number, each in enumerate(found, 1):
        if isinstance(each, LlamachatError):
            raise UsageError(f"text {number} has no vector ({each})", f"{output} was not written", "leave it out")
        rows.append(each.vector)
    if interrupted:
        return True
    if not rows:
        raise UsageError("there are no texts", f"{output} was not written")
    try:
        with private.writing(output, new=True) as file:
            np.save(file, np.stack(rows))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {reason(error)}") from error
    note(f"{output}: {len(rows)} vectors of {len(rows[0])} numbers")
    return True


def _object(embedder: "Embedder", found: "Embedded") -> dict[str, Any]:
    usage = {"prompt_tokens": found.tokens}
    return {"model": embedder.model.name, "pool": embedder.pool, "embedding": _numbers(found), "usage": usage}


def _numbers(found: "Embedded") -> list[float]:
    """As short as float32 has them."""
    return [float(str(number)) for number in found.vector]
