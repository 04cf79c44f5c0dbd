"""What commands do alike: from their flags to a model; of chat and complete its settings and a system prompt."""

import shutil
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import typer

from llamachat.cli.options import Loading, Options
from llamachat.errors import LlamachatError, UsageError, trace
from llamachat.models.heads import PREDICTS

if TYPE_CHECKING:
    from llamachat.core.spec import HeadKind
    from llamachat.events import Progress
    from llamachat.generation.completion import AnswerSettings
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.load import LoadedModel


def find(options: Loading) -> "ModelEntry":
    """The model's entry in the catalog; but first refuse bad settings."""
    from llamachat.models import catalog

    check_options(options)
    return catalog.resolve(options.model)


def check_options(options: Loading) -> None:
    """Raises UsageError for settings that no model takes."""
    from llamachat.core.detokenize import StopMatcher
    from llamachat.core.sampling import SamplingParams
    from llamachat.models import load
    from llamachat.models.adapters import reference

    for each in options.lora:
        reference(each)
    if isinstance(options, Options):
        SamplingParams().replace(**options.sampling())
        StopMatcher(options.stop)
    load.check_options(
        options.ctx_size, options.kv_bits, None, options.threads, options.tensor_parallel, options.pack_cache
    )


def obtain(options: Loading, entry: "ModelEntry") -> None:
    """Download the model with a progress bar, if it is not here."""
    from llamachat.cli.progress import shown_progress
    from llamachat.models import load
    from quantize.prepare import prepare

    with shown_progress() as progress:
        load.obtain(
            entry, options.ctx_size, options.kv_bits, options.offline, options.force, progress, prepare, progress.note
        )
    if options.compiles:
        from llamachat.engines.select import prepare_native

        prepare_native(note)


def load_model(
    options: Loading,
    entry: "ModelEntry",
    parallel: int = 1,
    report: Callable[[str], None] | None = None,
    heads: "Collection[HeadKind]" = PREDICTS,
    progress: "Progress | None" = None,
) -> "LoadedModel":
    from llamachat.models.load import load
    from quantize.prepare import prepare

    return load(
        entry,
        prepare=prepare,
        adapters=options.lora,
        ctx_size=options.ctx_size,
        parallel=parallel,
        kv_bits=options.kv_bits,
        device=options.device.value,
        engine=options.engine.value,
        dtype=options.dtype_asked,
        threads=options.threads,
        tensor_parallel=options.tensor_parallel,
        pack_cache=options.pack_cache,
        progress=progress,
        offline=options.offline,
        force=options.force,
        report=(report or note) if options.verbose else None,
        heads=heads,
    )


def load_shown(
    options: Loading, entry: "ModelEntry", parallel: int = 1, heads: "Collection[HeadKind]" = PREDICTS
) -> "LoadedModel":
    """With how far that is, where it takes long; its copy is written when the command has done all else."""
    from llamachat.cli.keeping import behind
    from llamachat.cli.progress import late_progress

    with late_progress() as progress:
        model = load_model(options, entry, parallel, heads=heads, progress=progress)
    if model.copy:
        behind.append(model.copy)
    return model


def answer_settings(
    options: Options, model: "LoadedModel", logprobs: int | None = None, echo: bool = False, raw: bool = False
) -> "AnswerSettings":
    """`raw`: what is answered is a plain text to go on with."""
    from llamachat.generation.completion import AnswerSettings

    return AnswerSettings(
        model.sampling.replace(**options.sampling()),
        model.text_stop_ids if raw else model.stop_ids,
        options.stop,
        options.max_tokens,
        logprobs,
        score_prompt=echo and logprobs is not None,
        think_budget=None if raw else options.think_budget,
        allow_loops=options.allow_loops,
    )


def think_of(options: Options, entry: "ModelEntry") -> str:
    """Whether to think, of THINKING: as given, else as the catalog has it for this model."""
    return options.think.value if options.think else entry.think or "auto"


def given_system(options: Options) -> str | None:
    """The system prompt that was given, if one was."""
    if options.system is not None and options.system_file is not None:
        raise UsageError("--system and --system-file were both given", remedy="give one of them")
    if options.system_file is not None:
        from llamachat.generation.prompts import read_text

        return read_text(options.system_file)
    return options.system


def note(line: str) -> None:
    """One line on stderr; a terminal that is too narrow for it gets it broken between words."""
    from llamachat.system.sanitise import sanitise_line

    safe = sanitise_line(line)
    typer.echo(_broken(safe) if sys.stderr.isatty() else safe, err=True)


def _broken(line: str) -> str:
    width = shutil.get_terminal_size().columns
    if len(line) < width // 2:  # in whatever letters
        return line
    from rich.text import Text

    from llamachat.ui.cells import wrap

    return "\n".join(part.plain for part in wrap(Text(line), width))


def explain(error: LlamachatError) -> None:
    """Where an error that `reading` made comes from, for --verbose."""
    from llamachat.system.sanitise import sanitise

    typer.echo(sanitise(trace(error)), err=True, nl=False)
