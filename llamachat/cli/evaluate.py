"""`llamachat eval`: perplexity of a model on a text, and with --against the KL divergence from another."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.loading import note
from llamachat.cli.options import EngineName
from llamachat.cli.tables import STAYS, print_beside
from llamachat.engines.memory import Remedies
from llamachat.errors import UsageError

if TYPE_CHECKING:
    from llamachat.generation.perplexity import Progress
    from llamachat.models.load import LoadedModel

Text = Annotated[
    Path | None, typer.Option("--text", help="A UTF-8 file. Default: Python's own manual.", show_default=False)
]
Window = Annotated[int, typer.Option("--window", min=8, help="Tokens that are seen together.")]
Windows = Annotated[int, typer.Option("--windows", min=1, help="At most so many windows.")]


def evaluate_model(
    model: Annotated[str, typer.Option("--model", "-m", help="Name from `llamachat models list`, or a path.")],
    lora: Annotated[
        list[str] | None, typer.Option("--lora", help="Adapter of --model (repeatable).", metavar="PATH[:SCALE]")
    ] = None,
    against: Annotated[str | None, typer.Option("--against", help="The model to be compared with.")] = None,
    text: Text = None,
    window: Window = 512,
    windows: Windows = 64,
    engine: Annotated[
        EngineName,
        typer.Option(help="Runs --model; torch in float32. --against runs in float32.", show_default="torch"),
    ] = EngineName("torch"),
    kv_bits: Annotated[int | None, typer.Option(help="Of the native engine: 4, 8, 16 or 32.")] = None,
    vs_gguf: Annotated[Path | None, typer.Option(help="Measure llama.cpp on this file beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: all cores.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Measure perplexity, and the distance from another model, or (--engine native) from exact arithmetic."""
    also: dict[str, Any] = {"lora": lora or (), "remedies": Remedies("--window {}", force=None)}
    found = measure(model, against, text, window, windows, threads, offline, engine.value, kv_bits, vs_gguf, **also)
    if as_json:
        from llamachat.generation.perplexity import as_json as plain

        names = ("", "llama.cpp")
        parts = [plain(part) if not name else {name: plain(part)} for name, part in zip(names, found, strict=False)]
        typer.echo(
            json.dumps({"model": model, "against": against, **parts[0], **(parts[1] if parts[1:] else {})}, indent=2)
        )
        return
    for name, statistics in zip((model, f"llama.cpp, {vs_gguf}"), found, strict=False):
        if vs_gguf:
            typer.echo(f"{name}:")
        print_statistics(statistics)


def measure(
    model: str,
    against: str | None,
    text: Path | None,
    window: int,
    windows: int,
    threads: int | None = None,
    offline: bool = False,
    engine: str = "torch",
    kv_bits: int | None = None,
    vs_gguf: Path | None = None,
    lora: Sequence[str] = (),
    against_lora: Sequence[str] = (),
    remedies: Remedies = Remedies(None, None, None),
) -> list[dict[str, Any]]:
    """What perplexity.summary gives for models by name, and behind it the same of llama.cpp on a GGUF file, if one is given.

    `lora` and `against_lora`: adapters of either model. `remedies`: what can be changed where one does not fit. Raises
    UsageError when the models do not read text alike, DoesNotFitError.
    """
    from llamachat.generation import perplexity as ev
    from llamachat.generation.prompts import read_text
    from llamachat.models.load import load
    from quantize.prepare import prepare

    def opened(name: str, adapters: Sequence[str], engine: str = "torch", bits: int | None = None) -> "LoadedModel":
        options: dict[str, Any] = {"engine": engine, "dtype": "float32" if engine == "torch" else None}
        options |= {"ctx_size": window, "kv_bits": bits, "threads": threads, "offline": offline}
        own = remedies if engine == "native" else replace(remedies, kv_bits=None)
        loaded = load(name, prepare=prepare, adapters=adapters, remedies=own, **options)
        loaded.require_continuing("eval")
        return loaded

    content = ev.manual() if text is None else read_text(text)
    first = opened(model, lora, engine, kv_bits)
    for line in first.entry.notes:
        note(f"note: {line}")
    second = None if against is None else opened(against, against_lora)
    ids = first.tokenizer.encode(content)
    if second is not None and second.tokenizer.encode(content) != ids:
        raise UsageError("the two models' tokenizers cut the text differently", "the models cannot be compared")
    cut = ev.windows(ids, window, windows, first.tokenizer.bos_id)
    engines: list[ev.Predictor] = [first.engine]
    if vs_gguf:
        from llamachat.bench.peer_logits import LlamaCppLogits

        engines.append(LlamaCppLogits(vs_gguf, window, threads))
    with _bar() as progress:
        return [ev.summary(each) for each in ev.evaluate_all(engines, cut, second.engine if second else None, progress)]


@contextmanager
def _bar() -> Iterator["Progress"]:
    """Windows on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        from llamachat.generation.perplexity import silent

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
    rows = {label: _figure(statistics[key]) for key, label in LABELS.items() if key in statistics}
    for name, label in (("kl", "KL divergence"), ("dp", "Δp")):
        marks = {key.partition("_p")[2]: value for key, value in statistics.items() if key.startswith(f"{name}_p")}
        if marks:
            rows[f"{label}, percentiles"] = "  ".join(f"{mark}%:{STAYS}{value:.3g}" for mark, value in marks.items())
    for label, figures in rows.items():
        print_beside(f"{label:30}", figures)


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace(" ", STAYS)
