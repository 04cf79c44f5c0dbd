"""Does a model of the catalog fit, before any of it is here?"""

from llamachat.engines.memory import (
    DEFAULT_CONTEXT,
    FLAGS,
    WORKSPACE,
    Plan,
    Remedies,
    available_memory,
    check,
    plan,
    size,
)
from llamachat.errors import DoesNotFitError
from llamachat.formats.prequantized.schemes import SCHEMES
from llamachat.models.catalog import ModelEntry
from llamachat.models.sources import StorePath, WheelSource


def entry_plan(
    entry: ModelEntry,
    ctx: int | None = None,
    kv_bits: int | None = None,
    available: int | None = None,
    weights: int | None = None,
) -> Plan | None:
    """The plan from what the catalog knows, before any download; None when it does not know the model's shape. `weights`: their
    bytes, where they are known."""
    shape, quant = entry.shape, entry.quant_config
    if shape is None:
        return None
    slots = ctx or min(entry.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    bits = kv_bits or (quant.kv_bits if quant else None) or 16
    held = entry_weights(entry) if weights is None else weights
    return plan(held, shape.layers, shape.kv_heads, shape.head_dim, slots, bits, available=available)


def entry_weights(entry: ModelEntry) -> int:
    """Bytes of weights in memory: of a file that is here, or GGUF, its own; else the embedding in 16 bits, the rest quantized."""
    assert entry.shape is not None
    if isinstance(entry.source, WheelSource):
        return entry.source.member_bytes
    if isinstance(entry.source, StorePath):
        return entry.source.nbytes
    if entry.format == "gguf" and entry.download_bytes:
        return entry.download_bytes
    embedding = entry.shape.vocab * entry.shape.hidden
    bits = SCHEMES[entry.quant_config.scheme].bits_a_weight if entry.quant_config else 16
    return int(embedding * 2 + (entry.shape.params - embedding) * bits / 8)


def file_fits(nbytes: int, available: int | None = None) -> bool:
    """Whether a GGUF model of so many bytes, of which nothing else is known, would fit with a cache of a quarter of that."""
    free = available_memory() if available is None else available
    return nbytes + nbytes // 4 + WORKSPACE <= free


def require(
    entry: ModelEntry,
    ctx: int | None = None,
    kv_bits: int | None = None,
    force: bool = False,
    remedies: Remedies = FLAGS,
) -> None:
    """Raises DoesNotFitError for a model that plainly will not fit, unless forced."""
    if known := entry_plan(entry, ctx, kv_bits):
        check(known, force, remedies)
    elif fits(entry) is False and not force:
        cause = f"{entry.name} has {size(entry.download_bytes or 0)} of weights, and {size(available_memory())} of memory is free"
        forced = remedies.force and f"{remedies.force} to try all the same"
        remedy = ", or ".join(filter(None, ["choose a smaller quant or model", forced]))
        raise DoesNotFitError(cause, "it was not fetched", remedy)


def fits(entry: ModelEntry) -> bool | None:
    """Whether the model would fit in memory; None where neither its shape nor its file's size is known."""
    if known := entry_plan(entry):
        return known.fits
    return file_fits(entry.download_bytes) if entry.format == "gguf" and entry.download_bytes else None
