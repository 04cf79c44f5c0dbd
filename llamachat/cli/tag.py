"""`llamachat tag`: the labelled spans of a text on stdout."""

from pathlib import Path
from typing import Annotated

import typer

from llamachat.cli.loading import note
from llamachat.cli.options import Loading, with_options
from llamachat.cli.reading import AsJson, OneText, Output, Reading, Resume, TextFile, check_batch, print_json
from llamachat.cli.tables import extent_end, print_table


@with_options
def tag(
    options: Loading,
    text: OneText = None,
    file: TextFile = None,
    words: Annotated[
        bool, typer.Option("--words", help="Label whole words by their first tokens, as many models are trained to.")
    ] = False,
    as_json: AsJson = False,
    jsonl: Annotated[
        Path | None, typer.Option(help='Batch: {"text": ...} a line; one result a line. -: stdin.')
    ] = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Find names, or whatever a model's head labels, in a text of any length."""
    from llamachat.generation.prompts import open_lines
    from llamachat.generation.tagger import HEADS, Tagger
    from llamachat.generation.texts import Text, parse, read_one

    check_batch(jsonl, output, resume, text, file)
    lines = open_lines(jsonl) if jsonl else None
    given = read_one(text, file) if lines is None else ""
    reading = Reading.begin(options, HEADS, "all", several=False)
    tagger = Tagger(reading.model, words)
    if lines is not None:
        reading.batch(lines, lambda line, number: tagger.job(parse(line, number)), tagger.result, output, resume)
        return
    (done,) = reading.outcomes([tagger.job(Text(given))])
    if as_json:
        print_json(tagger.result(done))
        return
    found = tagger.spans(done)
    if not found:
        note("nothing in the text has a label")
    rows = [
        (str(span["start"]), extent_end(span), span["label"],
         f"{span['probability']:.4f}", span["text"])
        for span in found
    ]  # fmt: skip
    print_table(("start", "end", "label", "probability", "text"), rows, ("start", "end", "probability"))
