"""One model over several processes, as an engine: rank 0 is whoever asks, the others do after it what it does.

Rank 0 has the cache's plan and the sampler; it tells the others ids and steps, and their shards meet in each layer's sums
(parallel.py). What it saves of keys and values is put together to what one process would save, and cut again when loaded.
"""

import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.engine import Outputs
from llamachat.core.generate import never
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Tensor
from llamachat.engines.memory import no_room_is_memory_error
from llamachat.engines.saved import Saved
from llamachat.engines.shards import Shard, require_size, shards
from llamachat.engines.torch.encoder_decoder import EncoderDecoderEngine
from llamachat.engines.torch.engine import TorchEngine
from llamachat.engines.torch.links import (
    Arrays,
    BrokenLinkError,
    Links,
    hear,
    receive_arrays,
    receive_message,
    send_arrays,
    send_message,
    tell,
)
from llamachat.engines.torch.parallel import build_shard
from llamachat.engines.torch.workers import Launched, Workers, join
from llamachat.engines.world import launched
from llamachat.errors import (
    ConfigError,
    DoesNotFitError,
    FormatError,
    LlamachatError,
    LostError,
    ModelError,
    UsageError,
    no_memory,
)
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.adapter import Adapter, LowRank, Scaled
from llamachat.formats.parts import Part

Floats = NDArray[np.float32]
Matrices = Mapping[str, LowRank]  # of an adapter, by module
Tensors = Callable[[Mapping[str, Part]], Iterator[tuple[str, Tensor]]]  # reads only these parts
HEADS = {"kv": 2, "scale": 2, "master": 1, "attentions": 1}  # the axis of heads


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of a step, as the others cannot be told to leave one; the third is not kept waiting."""
    if current_thread() is not main_thread():
        yield
        return
    seen: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        seen.append((number, frame))
        if len(seen) > 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for each in seen:
        if callable(before):
            before(*each)


class Others(Protocol):
    """The other processes, from where rank 0 stands."""

    def failure(self) -> str:
        """What ended one of them, in words; it ends the rest."""
        ...

    def first_ended(self) -> tuple[int, int] | None:
        """Rank and exit code of one that has ended, and not because another had."""
        ...

    def end(self) -> None:
        """None of them is left then."""
        ...


class Bond:
    """What holds rank 0 and the others together, until one of them ends."""

    def __init__(self, links: Links, others: Others) -> None:
        self.links, self.others = links, others
        self.lost: LostError | None = None

    @contextmanager
    def asking(self, what: str, **told: Any) -> Iterator[None]:
        """The others do this as well. What breaks off here cannot be gone on with there, so it ends them. Raises LostError."""
        if self.lost:
            raise self.lost
        with _undisturbed():
            try:
                tell({"do": what, **told}, self.links)
                yield
                if self.others.first_ended():  # what was summed may lack its part
                    raise BrokenLinkError("a process has ended")
            except BrokenLinkError as error:
                self.lost = LostError(self.others.failure(), "the model cannot go on without it", "start again")
                raise self.lost from error
            except BaseException:
                self.lost = LostError("a step was broken off", "the model cannot go on", "start again")
                self.others.end()
                raise

    def close(self) -> None:
        """End the others."""
        if self.lost is None:
            self.lost = LostError("the model's processes were ended", "nothing more can be computed", "load it again")
            with suppress(BrokenLinkError):
                tell({"do": "close"}, self.links)
                self.links.close()
        self.others.end()


class ParallelEngine:
    """See engine.Engine. A process that ends is a LostError now and in everything that is asked from then on."""

    batch_invariant = False

    def __init__(self, config: ModelSpec, engine: TorchEngine, links: Links, others: Others) -> None:
        """`engine` has the first shard."""
        self.config, self.engine, self.links = config, engine, links
        self.slots, self.weight_bytes, self.kv_bytes = engine.slots, engine.weight_bytes, engine.kv_bytes
        self.shards = [Shard(config, rank, links.size) for rank in range(links.size)]
        self.bond = Bond(links, others)
        self.close = weakref.finalize(self, self.bond.close)  # also where nobody holds it any more

    def forward(
        self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"], outputs: Outputs = "logits"
    ) -> Floats:
        self.engine.check_outputs(outputs)
        with self.bond.asking("forward", ids=_whole(ids), step=described(step), logits=logits, outputs=outputs):
            rows = self.engine.forward(ids, step, logits, outputs)
            if outputs != "attentions":
                return rows
            return self._joined({"attentions": rows}, "heads")["attentions"]

    def forward_many(
        self, ids: Sequence[Sequence[int]], steps: Sequence[CacheStep], outputs: Literal["logits", "hidden"] = "logits"
    ) -> Floats:
        self.engine.check_outputs(outputs)
        told = {"ids": [_whole(text) for text in ids], "steps": [described(step) for step in steps]}
        with self.bond.asking("forward_many", **told, outputs=outputs):
            return self.engine.forward_many(ids, steps, outputs)

    def save_kv(self, slots: Integers) -> Saved:
        with self.bond.asking("save_kv", slots=slots.tolist()):
            return self._joined(self.engine.save_kv(slots), "groups")

    def load_kv(self, slots: Integers, positions: Integers, saved: Saved) -> None:
        replace(self.engine.keys_values.layout, config=self.config).check(saved, slots)
        with self.bond.asking("load_kv", slots=slots.tolist(), positions=positions.tolist()):
            pieces = [_cut(saved, shard.groups) for shard in self.shards]
            self._deal(pieces)
            self.engine.load_kv(slots, positions, pieces[0])

    def adapt(self, adapters: Sequence[Scaled]) -> None:
        """See TorchEngine."""
        pieces = [[_cut_matrices(*each, shard) for each in adapters] for shard in self.shards]
        self.engine.adapt([*map(_adapter, pieces[0])])  # which refuses what cannot be
        scales = [{module: low.scale for module, low in each.items()} for each in pieces[0]]
        with self.bond.asking("adapt", scales=scales):
            self._deal([*map(_arrays, pieces)])

    def describe(self) -> str:
        return f"{self.engine.describe()}; each in {self.links.size} processes"

    def _deal(self, pieces: Sequence[Arrays]) -> None:
        """To each its own."""
        for rank, piece in enumerate(pieces[1:], 1):
            send_arrays(piece, self.links, rank)

    def _joined(self, own: Arrays, heads: Literal["heads", "groups"]) -> dict[str, NDArray[Any]]:
        """Everyone's arrays along the axis of heads; those without one are the same everywhere."""
        pieces = [own, *(receive_arrays(self.links, rank) for rank in range(1, self.links.size))]
        places = [getattr(shard, heads) for shard in self.shards]
        whole = {name: array for name, array in own.items() if name not in HEADS}
        for name in own.keys() & HEADS.keys():
            found, axis = own[name], HEADS[name]
            shape = (*found.shape[:axis], places[-1].stop, *found.shape[axis + 1 :])
            whole[name] = np.empty(shape, found.dtype)
            for place, piece in zip(places, pieces, strict=True):
                whole[name][_at(axis, place)] = piece[name]
        return whole


class ParallelEncoder(ParallelEngine):
    """See engines.encoding.Encoding."""

    config: EncoderDecoderSpec
    engine: EncoderDecoderEngine

    def encode(self, first: int, ids: Sequence[int], interrupted: Callable[[], bool] = never) -> None:
        """See Encoding. Once begun, it is not interrupted."""
        self.release(first)
        if len(ids) > (room := self.source_room()):
            raise DoesNotFitError(
                f"the source has {len(ids)} tokens, there is room for {room}", "nothing was computed", "shorten it"
            )
        with self.bond.asking("read", first=first, ids=_whole(ids)):
            self.engine.read(first, ids)

    def release(self, first: int) -> None:
        """See Encoding."""
        with self.bond.asking("release", first=first):
            self.engine.release(first)

    def source_room(self) -> int:
        """See Encoding."""
        return self.engine.source_room()


def start(config: ModelSpec, tensors: Tensors, size: int, opening: Any, settings: Mapping[str, Any]) -> ParallelEngine:
    """The engine, with the other processes started, or called where torchrun has started them; `opening` and `settings` (those of
    TorchEngine.build) are told to them. Raises UsageError, LostError, and what any of them cannot do."""
    require_size(config, size)
    device = settings["device"]
    workers = Launched(size, device) if launched() else Workers(size, device)
    try:
        return load(config, tensors, opening, settings, join(workers, device), workers)
    except BrokenLinkError as error:
        raise LostError(workers.failure(), "the model was not loaded", "start again") from error
    except BaseException:
        workers.end()
        raise


def load(
    config: ModelSpec, tensors: Tensors, opening: Any, settings: Mapping[str, Any], links: Links, others: Others
) -> ParallelEngine:
    """Have everyone load a shard, and the engine of all of them. Raises BrokenLinkError, and what any of them cannot do."""
    tell({"opening": opening, "settings": settings}, links)
    engine = build_shard(config, tensors(shards(config, 0, links.size)), links, **settings)
    for rank in range(1, links.size):
        _check_answer(receive_message(links, rank))
    kind = ParallelEncoder if isinstance(config, EncoderDecoderSpec) else ParallelEngine
    return kind(config, engine, links, others)


def _check_answer(answer: Mapping[str, str]) -> None:
    """Raises what a process has found that cannot load its shard."""
    kinds: list[type[LlamachatError]] = [UsageError, FormatError, ConfigError, ModelError, DoesNotFitError]
    if answer:
        raise next((kind for kind in kinds if kind.__name__ == answer["kind"]), ModelError)(answer["error"])


# The other ranks -------------------------------------------------------------------------------------------------------


def follow(links: Links, device: str, opened: Callable[[Any], tuple[ModelSpec, Tensors]]) -> None:
    """A rank other than 0: load the shard that rank 0 tells of, `opened` by what it is told, and do after rank 0 what that does,
    until it is over. Raises BrokenLinkError where rank 0 has gone without a word."""
    told = hear(links)
    try:
        config, tensors = opened(told["opening"])
        settings = {**told["settings"], "device": device}
        with no_room_is_memory_error():
            engine = build_shard(config, tensors(shards(config, links.rank, links.size)), links, **settings)
    except (LlamachatError, MemoryError) as error:
        found = error if isinstance(error, LlamachatError) else no_memory("for the model")
        send_message({"kind": type(found).__name__, "error": str(found)}, links, 0)
        return
    send_message({}, links, 0)
    Follower(engine, links).run()


class Follower:
    """What a rank other than 0 does: all that it is told, until it is told to close."""

    def __init__(self, engine: TorchEngine, links: Links) -> None:
        self.engine, self.links = engine, links
        self.actions: Mapping[str, Callable[..., None]] = {
            "forward": self._forward,
            "forward_many": self._forward_many,
            "save_kv": self._save_kv,
            "load_kv": self._load_kv,
            "adapt": self._adapt,
            "read": self._read,
            "release": self._release,
        }

    def run(self) -> None:
        """Raises BrokenLinkError where rank 0 has gone without a word."""
        while (what := (told := hear(self.links)).pop("do")) != "close":
            self.actions[what](**told)

    def _forward(
        self, ids: list[int], step: Mapping[str, Any], logits: Literal["last", "all"], outputs: Outputs
    ) -> None:
        rows = self.engine.forward(ids, step_of(step), logits, outputs)
        if outputs == "attentions":
            send_arrays({outputs: rows}, self.links, 0)

    def _forward_many(
        self, ids: list[list[int]], steps: list[Mapping[str, Any]], outputs: Literal["logits", "hidden"]
    ) -> None:
        self.engine.forward_many(ids, [*map(step_of, steps)], outputs)

    def _save_kv(self, slots: list[int]) -> None:
        send_arrays(self.engine.save_kv(np.array(slots, np.int64)), self.links, 0)

    def _load_kv(self, slots: list[int], positions: list[int]) -> None:
        saved = receive_arrays(self.links, 0)
        self.engine.load_kv(np.array(slots, np.int64), np.array(positions, np.int64), saved)

    def _adapt(self, scales: list[dict[str, float]]) -> None:
        arrays = receive_arrays(self.links, 0)
        self.engine.adapt([*map(_adapter, _adapted(arrays, scales))])

    def _read(self, first: int, ids: list[int]) -> None:
        assert isinstance(self.engine, EncoderDecoderEngine)
        self.engine.read(first, ids)

    def _release(self, first: int) -> None:
        assert isinstance(self.engine, EncoderDecoderEngine)
        self.engine.release(first)


# As JSON and arrays ----------------------------------------------------------------------------------------------------


def described(step: CacheStep) -> dict[str, Any]:
    """As JSON."""
    pinned = step.pinned and [step.pinned[0].start, step.pinned[0].stop, step.pinned[1]]
    visible = [[run.start, run.stop] for run in step.visible]
    return {
        "slots": step.slots.tolist(), "positions": step.positions.tolist(), "visible": visible, "pinned": pinned,
    }  # fmt: skip


def step_of(told: Mapping[str, Any]) -> CacheStep:
    """The inverse of `described`."""
    pinned = told["pinned"] and (range(*told["pinned"][:2]), told["pinned"][2])
    slots, positions = (np.array(told[name], np.int64) for name in ("slots", "positions"))
    return CacheStep(slots, positions, tuple(range(*run) for run in told["visible"]), pinned or None)


def _whole(ids: Sequence[int]) -> list[int]:
    """numpy's numbers are none of JSON's."""
    return [int(token) for token in ids]


def _at(axis: int, which: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, which)


def _cut(saved: Saved, groups: slice) -> dict[str, NDArray[Any]]:
    """Of keys and values, those of some heads."""
    return {name: array[_at(HEADS[name], groups)] if name in HEADS else array for name, array in saved.items()}


def _cut_matrices(adapter: Adapter, scale: float, shard: Shard) -> Matrices:
    """What a process has of an adapter."""
    matrices = adapter.matrices.items()
    return {module: low.part(shard.part(f"{module}.weight")).times(scale) for module, low in matrices}


def _adapter(matrices: Matrices) -> Scaled:
    return Adapter(Path(), (), matrices, {}), 1.0


def _arrays(adapters: Sequence[Matrices]) -> dict[str, NDArray[Any]]:
    return {
        f"{number} {module} {side}": getattr(low, side)
        for number, matrices in enumerate(adapters)
        for module, low in matrices.items()
        for side in ("a", "b")
    }


def _adapted(arrays: Arrays, scales: Sequence[Mapping[str, float]]) -> list[Matrices]:
    """The inverse of `_arrays`."""
    return [
        {
            module: LowRank(arrays[f"{number} {module} a"], arrays[f"{number} {module} b"], scale)
            for module, scale in each.items()
        }
        for number, each in enumerate(scales)
    ]
