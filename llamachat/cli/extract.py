"""`llamachat extract`: the answer to a question, as a span of a text, on stdout."""

from pathlib import Path
from typing import Annotated

import typer

from llamachat.cli.loading import note
from llamachat.cli.options import Loading, with_options
from llamachat.cli.reading import AsJson, Output, Reading, Resume, TextFile, check_batch, print_json
from llamachat.cli.tables import extent_end, print_table
from llamachat.errors import UsageError


@with_options
def extract(
    options: Loading,
    question: Annotated[str | None, typer.Argument(help="The question; the text is stdin's, or --file's.")] = None,
    file: TextFile = None,
    window: Annotated[int, typer.Option(min=16, help="Tokens of question and text that are seen together.")] = 512,
    overlap: Annotated[int, typer.Option(min=0, help="Tokens of the text that two windows share.")] = 128,
    longest: Annotated[int, typer.Option("--max-answer", min=1, help="Tokens of an answer at most.")] = 30,
    null_threshold: Annotated[
        float, typer.Option(help="By how much the score of having no answer must be higher to be believed.")
    ] = 0.0,
    always: Annotated[bool, typer.Option("--always", help="Answer even what the text seems not to answer.")] = False,
    top: Annotated[int, typer.Option(min=1, help="The N best answers.", metavar="N")] = 1,
    as_json: AsJson = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(help='Batch: {"question": ..., "text": ...} a line; one result a line. -: stdin.'),
    ] = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Find the answer to a question in a text of any length, with a model that has a head for that."""
    from llamachat.generation.extractor import HEADS, Extractor, Question, parse_question
    from llamachat.generation.jsonl import utf8
    from llamachat.generation.prompts import open_lines
    from llamachat.generation.texts import read_one

    check_batch(jsonl, output, resume, question, file)
    if not jsonl and not question:
        raise UsageError("there is no question", remedy="give it as an argument, and the text with --file or on stdin")
    lines = open_lines(jsonl) if jsonl else None
    asked = Question(utf8(question or "", "the question"), read_one(None, file) if lines is None else "")
    reading = Reading.begin(options, HEADS, "all", several=False)
    extractor = Extractor(reading.model, window, overlap, longest, None if always else null_threshold, top)
    if lines is not None:
        reading.batch(
            lines, lambda line, number: extractor.job(parse_question(line, number)), extractor.result, output, resume
        )
        return
    (done,) = reading.outcomes([extractor.job(asked)])
    if as_json:
        print_json(extractor.result(done))
        return
    found = extractor.extraction(done)
    if found["answer"] is None:
        note("the text has no answer, as the model sees it; --always shows the best one nevertheless")
        return
    rows = [
        (str(each["start"]), extent_end(each), f"{each['probability']:.4f}",
         each["text"])
        for each in found["answers"]
    ]  # fmt: skip
    print_table(("start", "end", "probability", "answer"), rows, ("start", "end", "probability"))
