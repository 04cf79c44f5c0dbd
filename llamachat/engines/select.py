"""ENGINES: what can run a checkpoint, the first that can does. Which it is on this machine, and whether memory holds it.

An engine is a row: what it can do, what it would take, how it is made. Whatever lists engines reads the rows. Imports
nothing heavy.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from llamachat.checks import require_choice
from llamachat.core.spec import Dtype, KvBits
from llamachat.engines import memory
from llamachat.engines.native.build import BuildError, is_compiled
from llamachat.errors import UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats import Checkpoint

if TYPE_CHECKING:
    from llamachat.core.engine import Engine
    from llamachat.core.tensors import Tensor
    from llamachat.engines.native.pack import Packable
    from llamachat.engines.native.packed_file import PackedWeights
    from llamachat.formats.parts import Parts

Report = Callable[[str], None]
ToPack = Callable[
    [], Iterator[tuple[str, "Packable"]]
]  # what is to be packed, as it lies in the files where that can be
Packer = Callable[[Checkpoint, ToPack, Report], "PackedWeights"]


class Tensors(Protocol):
    """Reads a checkpoint's weights, or only these parts of them."""

    def __call__(self, parts: "Parts | None" = None) -> Iterator[tuple[str, "Tensor"]]: ...


@dataclass(frozen=True)
class Wish:
    """A checkpoint, and how it is to run. `tensors` reads its weights; `pack` packs them, or has them packed already; `opening`
    (JSON) is what other processes open it by."""

    checkpoint: Checkpoint
    tensors: Tensors
    slots: int
    device: str
    dtype: Dtype | None
    bits: KvBits | None
    threads: int | None
    say: Report
    pack: Packer
    beside: int = 0  # bytes of adapters
    processes: int = 1
    opening: Any = None

    def plan(self, weights: int, kv: int, workspace: int = memory.WORKSPACE, active: int | None = None) -> memory.Plan:
        """In bytes, beside what this machine, or the device, has."""
        place, free = _free(self.device)
        return memory.Plan(weights + self.beside, kv, workspace, free, self.slots, self.bits or 16, active, place)


@dataclass(frozen=True)
class EngineKind:
    """An engine's row.

    `own_types`: it computes in types of its own, so no dtype can be asked of it. `parallel`: one model can run over several
    processes. `supports`: what of a checkpoint it cannot run, in words, or None; raises BuildError where it cannot be had here.
    `plan`: of the memory that `build` will take.
    """

    devices: tuple[str, ...]
    own_types: bool
    parallel: bool
    supports: Callable[[Checkpoint], str | None]
    plan: Callable[[Wish], memory.Plan]
    build: Callable[[Wish], "Engine"]

    def refuses(self, device: str, dtype: Dtype | None, processes: int = 1) -> str | None:
        """What of these it cannot do, in words."""
        if device not in self.devices:
            return f"runs on the {' and '.join(self.devices).upper()} only"
        if processes > 1 and not self.parallel:
            return "runs a model in one process only"
        return "computes in its own types only" if self.own_types and dtype is not None else None


def packed(checkpoint: Checkpoint, tensors: ToPack, say: Report) -> "PackedWeights":
    """Packed into memory."""
    from llamachat.engines.native.packed_file import PackedWeights

    return PackedWeights.build(tensors())


def build_engine(
    checkpoint: Checkpoint,
    tensors: Tensors,
    *,
    slots: int,
    engine: str = "auto",
    device: str = "auto",
    dtype: Dtype | None = None,
    bits: KvBits | None = None,
    threads: int | None = None,
    force: bool = False,
    remedies: memory.Remedies = memory.FLAGS,
    say: Report,
    pack: Packer = packed,
    beside: int = 0,
    processes: int = 1,
    opening: Any = None,
) -> "Engine":
    """The first of ENGINES that can, or the one that is asked for; `say` is told when a wish could not be met.

    A dtype is torch's: the native engine computes in types of its own. So it does where the model's configuration names
    types, which are those of another machine's accelerator; `say` and Engine.describe tell. --engine torch keeps to them.
    `pack` packs the weights, or has them packed already; `beside` is what adapters take beside them. Over several `processes`,
    `opening` is told to the others. `remedies`: what can be changed where it does not fit. Raises UsageError for what cannot be
    combined, DoesNotFitError, LostError.
    """
    require_choice("engine", engine, ("auto", *ENGINES), UsageError)
    where = _device(device, processes)
    wish = Wish(checkpoint, tensors, slots, where, dtype, bits, threads, say, pack, beside, processes, opening)
    kind = next(kind for name, kind in ENGINES.items() if engine in (name, "auto") and _can(name, engine == name, wish))
    memory.check(kind.plan(wish), force, remedies)
    return kind.build(wish)


def _can(name: str, asked: bool, wish: Wish) -> bool:
    """Whether this engine can do what is wished; where it was asked for and cannot, UsageError."""
    kind = ENGINES[name]
    if what := kind.refuses(wish.device, wish.dtype, wish.processes):
        if asked:
            raise UsageError(f"the {name} engine {what}", "the model was not loaded", f"use --engine {LAST}")
        return False
    try:
        reason = kind.supports(wish.checkpoint)
    except BuildError as error:
        if asked:
            raise UsageError(f"the {name} engine cannot be had ({error})", remedy="install a C compiler") from error
        wish.say(_not_had(name, error))
        return False
    if reason is not None and asked:
        raise UsageError(f"the {name} engine cannot run this model ({reason})", remedy=f"use --engine {LAST}")
    if reason is not None:
        wish.say(f"the {name} engine cannot run this model ({reason}); {LAST} answers instead, slower")
    return reason is None


def passed_over(checkpoint: Checkpoint, dtype: Dtype | None, engine: str, device: str, processes: int) -> str | None:
    """What to tell whoever asks for a dtype with which an engine of own types, that would have answered, does not."""
    if dtype is None or engine != "auto" or not is_compiled():  # nobody waits for a compiler to be told so
        return None
    where = _device(device, processes)
    able = (name for name, kind in ENGINES.items() if kind.own_types and kind.refuses(where, None, processes) is None)
    name = next((name for name in able if _runs(ENGINES[name], checkpoint)), None)
    return name and f"{LAST} computes in {dtype}, slower than the {name} engine, which has types of its own"


def _runs(kind: EngineKind, checkpoint: Checkpoint) -> bool:
    try:
        return kind.supports(checkpoint) is None
    except BuildError:
        return False


def _not_had(name: str, error: BuildError) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"the {name} engine cannot be had ({first}); {LAST} answers instead, slower"


def prepare_native(say: Report) -> None:
    """Compile the native engine if that is still to be done; `say` is told of that, and where it cannot be had."""
    from llamachat.engines.native.abi import native_library
    from llamachat.engines.native.build import compiler

    if not is_compiled() and compiler():
        say("compiling the native engine, once …")
    try:
        native_library()
    except BuildError as error:
        if not _has_driver():
            say(_not_had("native", error))


def _native_supports(checkpoint: Checkpoint) -> str | None:
    from llamachat.engines.native.engine import supports

    return supports(checkpoint.config, checkpoint.index())


def _native_plan(wish: Wish) -> memory.Plan:
    from llamachat.engines.native.engine import KV_TYPES, planned_bytes
    from llamachat.engines.native.pack import packed_bytes

    config, index, kv = wish.checkpoint.config, wish.checkpoint.index(), KV_TYPES[wish.bits or 16]
    weights, cache, workspace = planned_bytes(config, index, wish.slots, kv, wish.threads)
    active = memory.active_bytes(config, {name: packed_bytes(info) for name, info in index.items()})
    return wish.plan(weights, cache, max(memory.WORKSPACE, memory.WORKSPACE // 2 + workspace), active)


def _native(wish: Wish) -> "Engine":
    from llamachat.engines.native.engine import KV_TYPES, NativeEngine
    from llamachat.engines.native.pack import as_stored

    config, kv = wish.checkpoint.config, KV_TYPES[wish.bits or 16]
    weights = wish.pack(wish.checkpoint, partial(as_stored, wish.checkpoint.index(), wish.tensors), wish.say)
    engine = NativeEngine(config, weights, slots=wish.slots, kv=kv, threads=wish.threads)
    if (asked := config.dtypes.compute) not in (None, engine.types):
        wish.say(f"computing in {engine.types}; the configuration asks for {asked}, which --engine torch keeps to")
    return engine


def _torch_settings(wish: Wish) -> dict[str, Any]:
    return {"slots": wish.slots, "device": wish.device, "dtype": wish.dtype, "kv_bits": wish.bits}


def _torch_plan(wish: Wish) -> memory.Plan:
    """Of all processes together, which share a machine's memory; or of the one that takes most, where each has a GPU."""
    from llamachat.engines.shards import local_indices, local_spec
    from llamachat.engines.torch import encoder_decoder, engine

    config, count, settings = wish.checkpoint.config, wish.processes, _torch_settings(wish)
    plans = list[tuple[int, int]]()
    for rank, index in enumerate(local_indices(config, wish.checkpoint.index(), count)):
        local = local_spec(config, rank, count)
        if isinstance(local, EncoderDecoderSpec):
            plans.append(encoder_decoder.planned_bytes(local, index, **settings))
        else:
            plans.append(engine.planned_bytes(local, index, **settings))
    if wish.device != "cpu":
        return wish.plan(*max(plans, key=sum))
    weights, kv = (sum(each) for each in zip(*plans, strict=True))
    return wish.plan(weights, kv, count * memory.WORKSPACE)


def _torch(wish: Wish) -> "Engine":
    from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine
    from llamachat.engines.torch.engine import TorchEngine

    config, settings = wish.checkpoint.config, _torch_settings(wish)
    kind = EncoderDecoderEngine if isinstance(config, EncoderDecoderSpec) else TorchEngine
    with memory.no_room_is_memory_error():
        if wish.processes > 1:
            return _torch_processes(wish)
        return kind.build(config, wish.tensors(), threads=wish.threads, **settings)


def _torch_processes(wish: Wish) -> "Engine":
    from llamachat.engines.torch.ranks import start

    threads = max(1, (wish.threads or os.cpu_count() or 1) // wish.processes)
    settings = {**_torch_settings(wish), "threads": threads}
    return start(wish.checkpoint.config, wish.tensors, wish.processes, wish.opening, settings)


ENGINES = {
    "native": EngineKind(("cpu",), True, False, _native_supports, _native_plan, _native),
    "torch": EngineKind(("cpu", "cuda"), False, True, lambda checkpoint: None, _torch_plan, _torch),
}
LAST = [*ENGINES][-1]  # runs all that a family can say


def _free(device: str) -> tuple[str, int]:
    """Whose memory a model on this device takes, in words, and how many bytes of it can be had."""
    if device == "cpu":
        return "memory", memory.available_memory()
    from llamachat.engines.torch.engine import free_memory

    return "the GPU's memory", free_memory(device)


def _device(wanted: str, processes: int = 1) -> str:
    """cuda or cpu; torch is only asked, and so imported, where there is an NVIDIA driver. Each process has a GPU of its own."""
    if wanted == "cpu" or (wanted == "auto" and not _has_driver()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        if 1 < processes > (count := torch.cuda.device_count()):
            cause = f"{processes} processes need a GPU each, there {'is one' if count == 1 else f'are {count}'}"
            raise UsageError(cause, "the model was not loaded", f"use --tensor-parallel {count}, or --device cpu")
        return "cuda"
    if wanted == "cuda":
        raise UsageError("torch finds no CUDA device", "the model was not loaded", "use --device cpu")
    return "cpu"


def _has_driver() -> bool:
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
