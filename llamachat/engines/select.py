"""Which engine runs a checkpoint on this machine, and whether memory holds it."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from llamachat.core.engine import Engine
from llamachat.core.spec import Dtype, KvBits
from llamachat.core.tensors import Tensor
from llamachat.engines import memory
from llamachat.engines.native.build import BuildError
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import UsageError
from llamachat.formats import Checkpoint

EngineName = Literal["auto", "native", "torch"]
Report = Callable[[str], None]
Tensors = Callable[[], Iterator[tuple[str, Tensor]]]
Packer = Callable[[Checkpoint, Tensors, Report], PackedWeights]


def packed(checkpoint: Checkpoint, tensors: Tensors, say: Report) -> PackedWeights:
    """Packed into memory."""
    return PackedWeights.build(tensors())


def build_engine(
    checkpoint: Checkpoint,
    tensors: Tensors,
    *,
    slots: int,
    engine: EngineName = "auto",
    device: str = "auto",
    dtype: Dtype | None = None,
    bits: KvBits | None = None,
    threads: int | None = None,
    force: bool = False,
    say: Report,
    pack: Packer = packed,
) -> Engine:
    """The native engine on a CPU where it can be had, else torch; `say` is told when a wish could not be met.

    A dtype is torch's: the native engine computes in types of its own. So it does where the model's configuration names
    types, which are those of another machine's accelerator; `say` and Engine.describe tell. --engine torch keeps to them.
    `pack` packs the weights, or has them packed already. Raises UsageError for what cannot be combined, DoesNotFitError.
    """
    place = _device(device)
    if engine == "native" and (place == "cuda" or dtype is not None):
        what = "runs on the CPU only" if place == "cuda" else "computes in its own types only"
        raise UsageError(f"the native engine {what}", "the model was not loaded", "use --engine torch")
    if engine != "torch" and place == "cpu" and dtype is None:
        try:
            reason = _unsupported(checkpoint)
            if reason is None:
                return _native(checkpoint, tensors, slots, bits, threads, force, say, pack)
        except BuildError as error:
            if engine == "native":
                raise UsageError(f"the native engine cannot be had ({error})", remedy="install a C compiler") from error
            say(_no_native(error))
        else:
            if engine == "native":
                raise UsageError(f"the native engine cannot run this model ({reason})", remedy="use --engine torch")
            say(f"the native engine cannot run this model ({reason}); torch answers instead, slower")
    return _torch(checkpoint, tensors, slots, place, dtype, bits, threads, force)


def prepare_native(say: Report) -> None:
    """Compile the native engine if that is still to be done; `say` is told of that, and where it cannot be had."""
    from llamachat.engines.native.abi import native_library
    from llamachat.engines.native.build import compiler, is_compiled

    if not is_compiled() and compiler():
        say("compiling the native engine, once …")
    try:
        native_library()
    except BuildError as error:
        if not _has_driver():
            say(_no_native(error))


def _no_native(error: BuildError) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"the native engine cannot be had ({first}); torch answers instead, slower"


def _unsupported(checkpoint: Checkpoint) -> str | None:
    from llamachat.engines.native.engine import supports

    return supports(checkpoint.config, checkpoint.index())


def _native(
    checkpoint: Checkpoint,
    tensors: Tensors,
    slots: int,
    bits: KvBits | None,
    threads: int | None,
    force: bool,
    say: Report,
    pack: Packer,
) -> Engine:
    from llamachat.engines.native.engine import KV_TYPES, NativeEngine, planned_bytes

    kv = KV_TYPES[bits or 16]
    weights, cache, workspace = planned_bytes(checkpoint.config, checkpoint.index(), slots, kv, threads)
    _check(weights, cache, slots, bits, force, max(memory.WORKSPACE, memory.WORKSPACE // 2 + workspace))
    engine = NativeEngine(checkpoint.config, pack(checkpoint, tensors, say), slots=slots, kv=kv, threads=threads)
    if (asked := checkpoint.config.dtypes.compute) not in (None, engine.types):
        say(f"computing in {engine.types}; the configuration asks for {asked}, which --engine torch keeps to")
    return engine


def _torch(
    checkpoint: Checkpoint,
    tensors: Tensors,
    slots: int,
    device: str,
    dtype: Dtype | None,
    bits: KvBits | None,
    threads: int | None,
    force: bool,
) -> Engine:
    from llamachat.engines.torch.engine import TorchEngine, planned_bytes

    config = checkpoint.config
    settings: dict[str, Any] = {"slots": slots, "device": device, "dtype": dtype, "kv_bits": bits}
    if device == "cpu":
        _check(*planned_bytes(config, checkpoint.index(), **settings), slots, bits, force)
    try:
        return TorchEngine.build(config, tensors(), threads=threads, **settings)
    except RuntimeError as error:
        if "memory" not in str(error):  # torch's allocator has no error of its own
            raise
        raise MemoryError from error


def _check(
    weights: int, kv: int, slots: int, bits: KvBits | None, force: bool, workspace: int = memory.WORKSPACE
) -> None:
    memory.check(memory.Plan(weights, kv, workspace, memory.available_memory(), slots, bits or 16), force)


def _device(wanted: str) -> str:
    """cuda or cpu; torch is only asked, and so imported, where there is an NVIDIA driver."""
    if wanted == "cpu" or (wanted == "auto" and not _has_driver()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UsageError("torch finds no CUDA device", "the model was not loaded", "use --device cpu")
    return "cpu"


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
