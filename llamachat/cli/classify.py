"""`llamachat classify`: the labels of a text, or the scores of documents, on stdout."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.loading import note
from llamachat.cli.options import Loading, with_options
from llamachat.cli.reading import AsJson, OneText, Output, Reading, Resume, TextFile, Truncate, check_batch, print_json
from llamachat.cli.tables import print_table
from llamachat.errors import LlamachatError, UsageError

if TYPE_CHECKING:
    from llamachat.generation.classifier import Classification, Classifier, Label

SHOWN = 10  # labels of a table, unless asked otherwise


@with_options
def classify(
    options: Loading,
    text: OneText = None,
    file: TextFile = None,
    pair: Annotated[str | None, typer.Option(help="A second text, read behind the first.")] = None,
    documents: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One a line: rank them by their score as --pair.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="With --documents: rank by this one of several labels.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the N best.", metavar="N")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="From which probability on a label holds, where several may.")
    ] = 0.5,
    truncate: Truncate = False,
    as_json: AsJson = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(help='Batch: {"text": ...}, maybe with "pair", a line; one result a line. -: stdin.'),
    ] = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Label a text, or score a pair, with a model that has a head for that."""
    from llamachat.generation.classifier import HEADS, Classifier
    from llamachat.generation.prompts import open_lines, read_text
    from llamachat.generation.texts import Text, parse, read_one

    check_batch(jsonl, output, resume, text, file, pair, documents)
    if pair is not None and documents:
        raise UsageError("--pair and --documents were both given", remedy="give one of them")
    if label is not None and not documents:
        raise UsageError("--label needs --documents", "nothing was ranked", "--top shows a text's likeliest labels")
    lines = open_lines(jsonl) if jsonl else None
    given = read_one(text, file) if lines is None else ""
    ranked = _lines(read_text(documents)) if documents else {}
    if documents and not ranked:
        raise UsageError(f"{documents} has no documents", "nothing was ranked", "write one a line")
    reading = Reading.begin(options, HEADS, "last", several=bool(lines or ranked))
    classifier = Classifier(reading.model, top, threshold, truncate)
    if lines is not None:
        reading.batch(
            lines,
            lambda line, number: classifier.job(parse(line, number, pairs=True)),
            classifier.result,
            output,
            resume,
        )
    elif documents:
        _rank(reading, classifier, given, ranked, classifier.ranking_label(label), as_json)
    else:
        (done,) = reading.outcomes([classifier.job(Text(given, pair))])
        print_json(classifier.result(done)) if as_json else _show(classifier, classifier.classification(done))


def _show(classifier: "Classifier", found: "Classification") -> None:
    """Of a text that may have several labels, or none, those that hold."""
    labels = found["labels"]
    if classifier.several and len(labels) > 1 and classifier.top is None:
        labels = [each for each in labels if each["probability"] >= classifier.threshold]
        if not labels:
            note(f"no label has a probability of {classifier.threshold:g}; --top 3 shows the likeliest")
    shown = labels if classifier.top or classifier.gives_numbers else labels[:SHOWN]
    number = "value" if classifier.gives_numbers else "probability"
    print_table(("label", number), [(each["label"], _number(each)) for each in shown], (number,))


def _number(label: "Label") -> str:
    return f"{label['probability']:.4f}" if "probability" in label else f"{label['value']:.6g}"


def _rank(
    reading: Reading, classifier: "Classifier", text: str, documents: dict[int, str], label: str, as_json: bool
) -> None:
    from llamachat.generation.classifier import ranked
    from llamachat.generation.texts import Text

    jobs, lines = [], [*documents.items()]
    for number, document in lines:
        try:
            jobs.append(classifier.job(Text(text, document)))
        except LlamachatError as error:
            raise type(error)(f"line {number} of the documents: {error}") from error
    scores = [classifier.score(done, label) for done in reading.outcomes(jobs)]
    order = ranked(scores)[: classifier.top]
    if not as_json:
        rows = [(_number(scores[at]), str(lines[at][0]), lines[at][1]) for at in order]
        print_table(("score", "line", "document"), rows, ("score", "line"), cut="document")
        return
    found: list[dict[str, Any]] = [{"line": lines[at][0], **scores[at], "text": lines[at][1]} for at in order]
    usage = {"prompt_tokens": sum(len(ids) for job in jobs for ids in job.sequences)}
    print_json({"model": reading.model.name, "text": text, "ranking": found, "usage": usage})


def _lines(text: str) -> dict[int, str]:
    """The lines that are not blank, by their numbers."""
    lines = enumerate(text.split("\n"), 1)
    return {number: line.removesuffix("\r") for number, line in lines if line.strip()}
