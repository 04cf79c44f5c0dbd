"""`llamachat quantize`: a model of any format to int8 or int4, and what that cost."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.evaluate import Text, Windows
from llamachat.cli.loading import note
from llamachat.cli.options import one_of
from llamachat.errors import UsageError
from llamachat.formats.prequantized.schemes import CODEBOOKS, SCHEMES

if TYPE_CHECKING:
    from llamachat.formats import Checkpoint
    from quantize.convert import Progress
    from quantize.recipe import Recipe

    SchemeName = StrEnum
    Codebook = StrEnum
else:
    SchemeName = one_of("SchemeName", SCHEMES)
    Codebook = one_of("Codebook", CODEBOOKS)
CALIBRATED = " and ".join(name for name, scheme in SCHEMES.items() if scheme.calibrated)


def quantize_model(
    source: Annotated[str, typer.Argument(help="A model by name or path, in any format that llamachat reads.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    scheme: Annotated[SchemeName | None, typer.Option(help="Default: int4.", show_default=False)] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale.")] = None,
    codebook: Annotated[
        Codebook | None, typer.Option(help="Values of int4. Default: gauss.", show_default=False)
    ] = None,
    double_quant: Annotated[bool, typer.Option("--double-quant", help="bitsandbytes' 8-bit scales.")] = False,
    head: Annotated[str | None, typer.Option(help="Scheme of the output head, or float. Default: int8.")] = None,
    embedding: Annotated[str | None, typer.Option(help="Scheme of the embedding, or float. Default: int8.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="E.g. '*.down_proj=int8' (repeatable); int4:64 for groups of 64.", metavar="PATTERN=SCHEME"),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            "--target-bpw",
            help="Bits a weight: what each matrix becomes is chosen by what it costs.",
            metavar="BITS",
        ),
    ] = None,
    fits: Annotated[
        str | None, typer.Option("--fits", help="The same, by the bytes of all weights.", metavar="SIZE")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", help="Adapter that is merged into the weights first (repeatable).", metavar="PATH[:SCALE]"
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help=f"Text for {CALIBRATED} and for --target-bpw and --fits. Default: the docstrings of Python's library."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="All options as JSON: ours, Hugging Face's or MindFormers' quant_config.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure perplexity and KL divergence from the source.")
    ] = False,
    text: Text = None,
    windows: Windows = 8,
    layers: Annotated[bool, typer.Option("--layers", help="Show each tensor, not each kind.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted conversion.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Convert a model to int8 or int4, and say what it cost."""
    from llamachat.cli.progress import shown_progress
    from llamachat.families.t5 import EncoderDecoderSpec
    from llamachat.formats.detect import open_checkpoint
    from llamachat.models import catalog, fetch
    from llamachat.models.adapters import Adapters
    from quantize import report as reports
    from quantize.convert import convert

    room = _room(target_bpw, fits)
    entry = fetch.unquantized(catalog.resolve(source))
    given = {
        "scheme": scheme and scheme.value,
        "group_size": group_size,
        "codebook": codebook and codebook.value,
        "double_quant": double_quant,
        "head": head,
        "embedding": embedding,
        "overrides": tuple(override or ()),
    }
    recipe = _recipe(config, entry.quant_config, {key: value for key, value in given.items() if value})
    with shown_progress() as fetching:
        path = fetch.fetch(entry, fetching, offline)
    opened = open_checkpoint(path)
    if report and isinstance(opened.config, EncoderDecoderSpec):
        cause = "--report measures how a model goes on with a text, and this one answers a source"
        raise UsageError(cause, "nothing was converted", "leave it out: the table of errors comes all the same")
    adapters = Adapters.opened(opened, [*entry.adapters, *(lora or ())])
    checkpoint = adapters.merged(opened)
    for line in entry.notes:
        note(f"note: {line}")
    if any(info.packing for info in checkpoint.index().values()):
        note(f"note: {source} is quantized already; the loss of this conversion comes on top of that")
    if report and checkpoint.config.head != "next_token":
        raise UsageError("--report compares predicted tokens, and this model predicts none", remedy="leave it out")
    recipe.check(checkpoint.config)
    ids = _calibration(checkpoint, calibration) if recipe.calibrated or room else None
    if ids and room:
        recipe = _fitting(checkpoint, recipe, room, ids, threads)
    with _resumable(), _bar() as progress:
        done = convert(checkpoint, out, recipe, calibration=ids, resume=resume, progress=progress, threads=threads)
    done = replace(done, merged=adapters.describe())
    quality = _quality(out, path, text, windows, threads, [*entry.adapters, *(lora or ())]) if report else None
    if html:
        html.write_text(reports.html(done, quality), encoding="utf-8")
    if as_json:
        from llamachat.generation.perplexity import as_json as plain

        typer.echo(json.dumps(done.as_json() | ({"quality": plain(quality)} if quality else {}), indent=2))
        return
    reports.show(done, layers)
    if quality:
        from llamachat.cli.evaluate import print_statistics

        print_statistics(quality)


def _recipe(file: Path | None, of_entry: Any, given: dict[str, Any]) -> "Recipe":
    """The file's options, else the catalog's, else int4; flags go before both."""
    from quantize.recipe import Recipe, from_config, read_recipe

    if file:
        return replace(read_recipe(file), **given)
    return replace(from_config(of_entry), **given) if of_entry and "scheme" not in given else Recipe(**given)


def _room(bits: float | None, fits: str | None) -> Callable[[int], int] | None:
    """The bytes that so many weights may take; None: nothing was said of it."""
    from llamachat.system.amounts import parse_size

    if bits is not None and fits is not None:
        raise UsageError("--target-bpw and --fits were both given", remedy="give one of them")
    if bits is not None and not 1 <= bits <= 16:
        raise UsageError(f"--target-bpw is {bits:g}", "nothing was converted", "give bits from 1 to 16")
    if bits is not None:
        return lambda weights: int(bits * weights / 8)
    if fits is None:
        return None
    room = parse_size(fits)
    if room is None:
        raise UsageError(f"--fits {fits!r:.40} is no size", "nothing was converted", "write it like 6GB or 900MB")
    return lambda weights: room


def _fitting(
    checkpoint: "Checkpoint",
    recipe: "Recipe",
    room: Callable[[int], int],
    ids: list[list[int]],
    threads: int | None,
) -> "Recipe":
    """The recipe, with what each matrix is to be so that the whole has room."""
    from quantize.mixing import Mixing

    mixing = Mixing(checkpoint, recipe)
    with _bar() as progress:
        recipe = mixing.fitting(room(mixing.weights), ids, threads, progress)
    note(f"chosen: {mixing.described(recipe)}")
    return recipe


def _calibration(checkpoint: "Checkpoint", file: Path | None) -> list[list[int]]:
    from llamachat.generation.prompts import read_text
    from quantize.texts import calibration_windows

    return calibration_windows(checkpoint.tokenizer(), read_text(file) if file else None)


def _quality(
    out: Path, source: Path, text: Path | None, windows: int, threads: int | None, adapters: list[str]
) -> dict[str, Any]:
    """Of what was written, against the source with its adapters."""
    from llamachat.cli.evaluate import measure
    from llamachat.generation.perplexity import WINDOW

    return measure(str(out), str(source), text, WINDOW, windows, threads, against_lora=adapters)[0]


@contextmanager
def _resumable() -> Iterator[None]:
    """Says what can be done after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        note("interrupted; the same command with --resume goes on from here")
        raise


@contextmanager
def _bar() -> Iterator["Progress"]:
    """Tensor, share, speed and time left on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        from quantize.convert import silent

        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from llamachat.system.sanitise import sanitise_line

    text = TextColumn("{task.description}", markup=False)
    speed = TextColumn("{task.fields[speed]}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, speed="")

        def show(name: str, done: int, total: int) -> None:
            bars.update(task, description=sanitise_line(name), completed=done, total=total)
            rate = bars.tasks[0].speed
            bars.update(task, speed=f"{rate / 1e6:.0f} M weights/s" if rate else "")

        yield show
