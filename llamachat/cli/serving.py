"""From flags to a model that runs here or on a server: which, and what does not go together with the latter."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llamachat.cli.defaults import source_of
from llamachat.cli.loading import check_options, note
from llamachat.cli.options import Options
from llamachat.errors import LlamachatError, UsageError
from llamachat.system.web_address import is_loopback, server_url

if TYPE_CHECKING:
    from llamachat.models.catalog import ModelEntry
    from llamachat.models.sources import ServerSource
    from llamachat.remote.server import Server

# Which go their own way with these:
NOT_FOR_SERVERS = ("lora", "kv_bits", "device", "engine", "dtype", "threads", "tensor_parallel", "pack_cache", "force")


def chosen(ctx: Any, options: Options, *own: str) -> "ModelEntry":
    """What is to answer: with --server that, else what the catalog knows. Raises LlamachatError, for bad settings too.

    A key that was not named together with the address is not sent to it. `own`: parameters of the command that are, beside
    NOT_FOR_SERVERS, for models alone that run here.
    """
    from llamachat.models import catalog
    from llamachat.models.sources import ServerSource

    check_options(options)
    _require_together(ctx, options)
    entry = catalog.on_server(_source(options)) if options.server else catalog.resolve(options.model)
    if isinstance(entry.source, ServerSource):
        _refuse_typed(ctx, (*NOT_FOR_SERVERS, *own), entry.source)
    return entry


def connect(source: "ServerSource", offline: bool) -> "Server":
    """Raises LlamachatError for an address that may not be used so; asks nothing yet."""
    from llamachat.remote.asking import Address
    from llamachat.remote.server import Server

    return Server(Address(source.server, source.model, source.key_env, source.insecure), offline=offline)


def tell_configured(ctx: Any, options: Options, source: "ServerSource") -> None:
    """Say where a prompt goes that was typed without naming a server: to another machine, or past a model that runs here."""
    named, remedy = ("server", "--server ''") if options.server else ("model", "-m NAME")
    if source_of(ctx, named) == "COMMANDLINE":
        return
    if not is_loopback(source.server) or (options.server and _is_here(options.model)):
        host = urlsplit(server_url(source.server)).netloc
        note(f"note: {host} is sent what is asked, as it is configured; {remedy} asks a model that runs here")


def _is_here(model: str | None) -> bool:
    """Whether a model that was named for a server is also what the catalog, or a path, calls one."""
    from llamachat.models import catalog
    from llamachat.models.sources import ServerSource

    try:
        return model is not None and not isinstance(catalog.resolve(model).source, ServerSource)
    except LlamachatError:
        return False


def as_saved(options: Options, reference: str | None) -> Options:
    """With the model that a saved dialog or a persona names; its server is the configured one, with its key, if the addresses
    are the same."""
    from llamachat.models.sources import SERVER

    if reference is None:
        return options
    address, _, model = reference.removeprefix(SERVER).partition("#")
    if reference.startswith(SERVER) and options.server and server_url(options.server) == address:
        return replace(options, model=model or None)
    return replace(options, model=reference, server=None, key_env=None, insecure=False)


def _source(options: Options) -> "ServerSource":
    from llamachat.models.sources import SERVER, ServerSource

    if options.model and options.model.startswith(SERVER):
        raise UsageError("--server and -m server:… both name a server", "nothing was sent", "give one of them")
    return ServerSource(options.server or "", options.model, options.key_env, options.insecure)


def _require_together(ctx: Any, options: Options) -> None:
    """Raises UsageError for a key or a certificate that is of no server, or of one that was named elsewhere."""
    typed = source_of(ctx, "server") == "COMMANDLINE" and bool(options.server)
    if source_of(ctx, "key_env") == "COMMANDLINE" and not typed:
        raise UsageError(
            "--key-env is of a --server, and none was typed", "nothing was sent", "type both, or configure both"
        )
    if source_of(ctx, "insecure") == "COMMANDLINE" and options.insecure and not options.server:
        raise UsageError("--insecure is of a --server, and there is none", "nothing was sent", "leave it out")
    if options.server and options.key_env is None and source_of(ctx, "key_env") != "DEFAULT":
        note("note: the configured key-env is of another server; none is sent to this one without --key-env")


def _refuse_typed(ctx: Any, names: Iterable[str], source: "ServerSource") -> None:
    """Raises UsageError for one of these; what is configured is for models that run here."""
    for name in names:
        if source_of(ctx, name) == "COMMANDLINE":
            cause = f"--{name.replace('_', '-')} is for a model that runs here"
            raise UsageError(cause, "nothing was asked", f"leave it out: {source.server} goes its own way")
