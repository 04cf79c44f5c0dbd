"""`llamachat chat`: from its flags to a session on the screen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from llamachat.cli.asking import asked
from llamachat.cli.loading import given_system, load_model, obtain, think_of
from llamachat.cli.options import DIALOG, SCREEN, Options, ThemeName, Think, flag, with_options
from llamachat.cli.serving import as_saved, chosen
from llamachat.cli.shell_words import personas, sessions
from llamachat.errors import CatalogError, UsageError

if TYPE_CHECKING:
    from llamachat.chat.backend import Backend, Wanted
    from llamachat.chat.library import Library
    from llamachat.chat.persona import Persona
    from llamachat.chat.session import Session
    from llamachat.chat.store import Archive
    from llamachat.events import Exchange, Progress, SavedDialog
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.load import LoadedModel
    from llamachat.ui.app import Watch


@with_options
def chat(
    ctx: typer.Context,
    options: Options,
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Ask this at once. Off a terminal: with the text on stdin, alone."),
    ] = None,
    persona: Annotated[
        str | None,
        flag("--persona", help="A manner of answering: see /help persona.", panel=DIALOG, autocompletion=personas),
    ] = None,
    continued: Annotated[bool, flag("--continue", "-c", help="Go on with the latest dialog.", panel=DIALOG)] = False,
    session: Annotated[
        str | None,
        flag(
            "--session",
            help="Go on with this dialog, or begin one of this name.",
            panel=DIALOG,
            metavar="NAME",
            autocompletion=sessions,
        ),
    ] = None,
    no_history: Annotated[
        bool, flag("--no-history", help="Leave no trace of the dialog on disk.", panel=DIALOG)
    ] = False,
    plain: Annotated[bool, flag("--plain", help="Show answers as they come: no Markdown.", panel=SCREEN)] = False,
    theme: Annotated[ThemeName, flag("--theme", help="Colours; auto: what fits the terminal.", panel=SCREEN)] = (
        ThemeName.auto
    ),
    stats: Annotated[bool, flag("--stats", help="Show what each answer took, behind it.", panel=SCREEN)] = False,
    vi: Annotated[bool, flag("--vi", help="Edit with the keys of vi.", panel=SCREEN)] = False,
) -> None:
    """Chat in the terminal; `llamachat` alone and `llamachat "question"` do it, too."""
    from llamachat.chat.persona import load
    from llamachat.chat.places import dialogs, input_history
    from llamachat.chat.store import Archive
    from llamachat.system.mapped import guard
    from llamachat.ui import app as ui

    manner = load(persona) if persona else None
    if manner:
        options = as_persona(options, manner, ctx)
    archive = None if no_history else Archive(dialogs(), input_history())
    name = _dialog(archive, continued, session)
    if manner and archive and name and archive.exists(name):
        raise UsageError(
            "a persona begins a dialog", "this one is not opened", "leave out --persona, or /persona in the chat"
        )
    if archive and name and not _typed(ctx, "model"):
        options = _as_held(ctx, options, archive.model_of(name))
    system = given_system(options)
    first = asked(ctx, question or ())
    watch, behind = ui.Watch(), ui.redraws()
    entry = chosen(ctx, options)
    if not (behind or _host(entry)):
        obtain(options, entry)
    opened = _Opening(options, ctx, entry, watch, behind, archive, name, manner, system, keep=not no_history)

    guard()  # while the terminal is as it was found
    history = None if no_history else input_history()
    returned = _left_off(archive, name) if archive and name and archive.exists(name) else None
    try:
        code = ui.run(
            opened.start,
            model=_called(entry),
            question=first,
            watch=watch,
            history_file=history,
            returned=returned,
            library=opened.library,
            theme=theme.value,
            plain=plain,
            think=options.show_thinking,
            stats=stats,
            vi=vi,
            verbose=options.verbose,
        )
        raise typer.Exit(code)
    finally:
        if opened.session:
            opened.session.close()


@dataclass
class _Opening:
    """What a chat is opened with; `start` may run in another thread, behind the prompt."""

    options: Options
    ctx: typer.Context
    entry: "ModelEntry"
    watch: "Watch"
    behind: bool  # the prompt, which is there while the model loads
    archive: "Archive | None"
    name: str | None  # of a saved dialog
    manner: "Persona | None"
    system: str | None
    keep: bool  # keys and values on disk
    session: "Session | None" = None

    def start(self) -> "Session":
        """Load the model and open the dialog. Raises LlamachatError."""
        from llamachat.chat.backend import Wanted, opened
        from llamachat.chat.session import Session
        from llamachat.chat.settings import Settings

        options = self.options
        wanted = Wanted(
            self.entry,
            self._load,
            options.overflow.value,
            snapshots=self.keep,
            context=options.ctx_size,
            offline=options.offline,
            asks=self.behind,
        )
        if _host(self.entry):
            self.watch.line = f"asking {_host(self.entry)} …"
        backend = opened(wanted)
        self.session = chat = Session(
            backend,
            Settings(
                backend.sampling.replace(**options.sampling()),
                options.max_tokens,
                options.stop,
                think_of(options, self.entry),
                options.think_budget,
                options.allow_loops,
            ),
            backend.system if self.system is None else self.system,
            archive=self.archive,
            another=partial(self._another, wanted, backend if _host(self.entry) else None),
        )
        if self.name:
            chat.open(self.name)
            _typed_again(chat, options, self.system, self.ctx)
        if self.manner and self.manner.messages and all(turn.role == "system" for turn in chat.turns()):
            chat.begin(self.manner.said)
        self._welcome()
        return chat

    def _welcome(self) -> None:
        """At the first starts, at a terminal, what the default model is."""
        from llamachat.chat import first_starts
        from llamachat.ui.app import at_terminal

        if at_terminal() and not self.name and (line := first_starts.hint(self.entry, self.library, self.keep)):
            self.watch.notes.append(line)

    @cached_property
    def library(self) -> "Library":
        """What /model and its kin know; a model that is fetched for them is made what is to run, as at the start."""
        from llamachat.chat.library import Library

        options = self.options
        room = options.ctx_size, options.kv_bits
        return Library(self._obtain, *room, offline=options.offline, force=options.force)

    def _obtain(self, entry: "ModelEntry", progress: "Progress") -> None:
        from llamachat.models.load import obtain as obtain_files
        from quantize.prepare import prepare

        options = self.options
        given = options.ctx_size, options.kv_bits, options.offline, options.force
        obtain_files(entry, *given, progress, prepare)

    def _another(self, wanted: "Wanted", server: "Backend | None", name: str, progress: "Progress") -> "Backend":
        """The backend of a model by name. What no catalog knows may be another model of the server that the chat began with. A
        model that ran here is not held: its memory and its processes go with it."""
        from llamachat.chat import first_starts
        from llamachat.chat.backend import opened
        from llamachat.models import catalog

        try:
            entry = catalog.resolve(name)
        except CatalogError:
            if (sibling := server and server.sibling(name)) is None:
                raise
            return sibling
        backend = opened(replace(wanted, entry=entry, context=None, load=partial(self._load_next, progress)))
        if self.keep:
            first_starts.settle()
        return backend

    def _load(self, entry: "ModelEntry") -> "LoadedModel":
        return _watched(self.options, entry, self.watch) if self.behind else load_model(self.options, entry)

    def _load_next(self, progress: "Progress", entry: "ModelEntry") -> "LoadedModel":
        """--lora is of the first model alone."""
        return load_model(replace(self.options, lora=[]), entry, progress=progress)


def _host(entry: "ModelEntry") -> str:
    """Where a model runs; nothing for here."""
    from llamachat.models.sources import ServerSource

    return urlsplit(entry.source.server).netloc if isinstance(entry.source, ServerSource) else ""


def _called(entry: "ModelEntry") -> str:
    """What a model is called before it is there."""
    from llamachat.models.sources import ServerSource

    named = entry.source.model if isinstance(entry.source, ServerSource) else entry.name
    return " on ".join(filter(None, (named, _host(entry))))


def _as_held(ctx: typer.Context, options: Options, reference: str | None) -> Options:
    """With the model that a saved dialog was held with, but for a typed server, of which only the model may be the saved one."""
    held = as_saved(options, reference)
    return options if _typed(ctx, "server") and held.server is None else held


def _dialog(archive: "Archive | None", continued: bool, session: str | None) -> str | None:
    """The name of the saved dialog that was asked for."""
    if not continued and session is None:
        return None
    if archive is None or (continued and session is not None):
        raise UsageError("--continue, --session and --no-history exclude each other", remedy="give one of them")
    name = archive.latest() if session is None else session
    if name is None:
        raise UsageError("there is no dialog to continue", remedy="start one without --continue")
    from llamachat.chat.store import check_name

    check_name(name)
    return name


def _left_off(archive: "Archive", name: str) -> "tuple[SavedDialog, Sequence[Exchange]]":
    """What is shown of a saved dialog before its model is there. Raises UsageError, FormatError."""
    from llamachat.chat.tree import exchanges

    try:
        about, history = archive.look(name)
    except OSError as error:
        raise UsageError(f"the dialog {name} cannot be opened: {error.strerror}") from error
    return about, exchanges(history.tree.active)


def _typed_again(chat: "Session", options: Options, system: str | None, ctx: typer.Context) -> None:
    """What was typed goes before what a saved dialog was held with."""
    if _typed(ctx, "system") or _typed(ctx, "system_file"):
        chat.set_system(system)
    own = {name: getattr(options, name) for name in ("max_tokens", "think", "think_budget", "allow_loops")}
    for name, value in {**options.sampling(), **own}.items():
        if _typed(ctx, name):
            chat.set_parameter(name, str(value))


def _watched(options: Options, entry: "ModelEntry", watch: "Watch") -> "LoadedModel":
    """Download and load behind a prompt that shows how far that is."""
    from llamachat.engines import memory
    from llamachat.engines.select import prepare_native
    from llamachat.models import fit
    from llamachat.models.load import obtain as obtain_files
    from llamachat.ui.progress_line import late
    from quantize.prepare import prepare

    if plan := fit.entry_plan(entry, options.ctx_size, options.kv_bits):
        watch.plan = memory.describe(plan)
    given = options.ctx_size, options.kv_bits, options.offline, options.force
    obtain_files(entry, *given, watch.progress, prepare, watch.note)
    if options.compiles:
        prepare_native(watch.note)
    watch.line = ""
    return load_model(options, entry, report=watch.note, progress=late(watch.progress))


def as_persona(options: Options, persona: "Persona", ctx: typer.Context) -> Options:
    """Its model, system prompt, sampling and thinking: after what was typed, before the environment and the config file."""
    if persona.model and not (_typed(ctx, "model") or _typed(ctx, "server")):
        options = as_saved(options, persona.model)
    changes: dict[str, Any] = {**persona.sampling}
    changes |= {"think": Think(persona.think)} if persona.think else {}
    if persona.system is not None and not (_typed(ctx, "system") or _typed(ctx, "system_file")):
        changes |= {"system": persona.system, "system_file": None}
    return replace(options, **{name: value for name, value in changes.items() if not _typed(ctx, name)})


def _typed(ctx: typer.Context, name: str) -> bool:
    return str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")
