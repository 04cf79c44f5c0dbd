"""`llamachat eval`: perplexity of a model on a text, and with --against the KL divergence from another."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.errors import UsageError

if TYPE_CHECKING:
    from llamachat.eval import Progress
    from llamachat.load import LoadedModel

Text = Annotated[
    Path | None, typer.Option("--text", help="A UTF-8 file. Default: Python's own manual.", show_default=False)
]
Window = Annotated[int, typer.Option("--window", min=8, help="Tokens that are seen together.")]
Windows = Annotated[int, typer.Option("--windows", min=1, help="At most so many windows.")]


def evaluate_model(
    model: Annotated[str, typer.Option("--model", "-m", help="Name from `llamachat models list`, or a path.")],
    against: Annotated[str | None, typer.Option("--against", help="The model to be compared with.")] = None,
    text: Text = None,
    window: Window = 512,
    windows: Windows = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: all cores.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Measure perplexity, and the distance from another model, in float32."""
    statistics = measure(model, against, text, window, windows, threads, offline)
    if as_json:
        from llamachat.eval import as_json as plain

        typer.echo(json.dumps({"model": model, "against": against, **plain(statistics)}, indent=2))
    else:
        print_statistics(statistics)


def measure(
    model: str,
    against: str | None,
    text: Path | None,
    window: int,
    windows: int,
    threads: int | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """What llamachat.eval.summary gives for models by name. Raises UsageError when they do not read text alike."""
    from llamachat import eval as ev
    from llamachat.complete import read_text
    from llamachat.load import load

    def opened(name: str) -> "LoadedModel":
        return load(name, ctx_size=window, dtype="float32", engine="torch", threads=threads, offline=offline)

    content = ev.manual() if text is None else read_text(text)
    first, second = opened(model), None if against is None else opened(against)
    ids = first.tokenizer.encode(content)
    if second is not None and second.tokenizer.encode(content) != ids:
        raise UsageError("the two models' tokenizers cut the text differently", "the models cannot be compared")
    cut = ev.windows(ids, window, windows, first.tokenizer.bos_id)
    with _bar() as progress:
        return ev.summary(ev.evaluate(first.engine, cut, second.engine if second else None, progress))


@contextmanager
def _bar() -> Iterator["Progress"]:
    """Windows on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        from llamachat.eval import silent

        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("evaluating", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


LABELS = {
    "tokens": "tokens predicted",
    "perplexity": "perplexity",
    "reference_perplexity": "perplexity of the reference",
    "perplexity_ratio": "ratio of the two",
    "kl_mean": "KL divergence, mean",
    "kl_max": "KL divergence, largest",
    "dp_mean": "Δp of the right token, mean",
    "dp_rms": "Δp, root mean square",
    "same_top": "same most likely token",
}


def print_statistics(statistics: dict[str, Any]) -> None:
    """A table for people; percentiles of one quantity share a line."""
    for key, label in LABELS.items():
        if key in statistics:
            typer.echo(f"{label:29} {statistics[key]}")
    for name, label in (("kl", "KL divergence"), ("dp", "Δp")):
        marks = {key.partition("_p")[2]: value for key, value in statistics.items() if key.startswith(f"{name}_p")}
        if marks:
            typer.echo(f"{label + ', percentiles':29} " + "  ".join(f"{mark}%: {v:.3g}" for mark, v in marks.items()))
