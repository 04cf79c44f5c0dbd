"""What the torch engine keeps of every token, and how it rotates it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamachat.core.cache import CacheStep, Integers
from llamachat.core.model import Context, Mask, Memory, Precision, Rotation, rotate, rotation
from llamachat.core.rope import frequencies, query_scales
from llamachat.core.spec import KvBits, ModelSpec
from llamachat.engines.memory import kv_bytes
from llamachat.engines.saved import Layout, PinnedKeys, Saved
from llamachat.engines.torch.nibbles import hadamard, pack, unpack

Span = slice | Tensor  # slots of the cache: a run of them, or a list


class KeysValues:
    """Keys and values of `slots` tokens in float, or int8 with a scale per slot and head, or such keys and values in 4 bits, both
    rotated (see nibbles); and each slot's position."""

    def __init__(
        self, config: ModelSpec, slots: int, device: torch.device, precision: Precision, bits: KvBits | None = None
    ) -> None:
        self.config, self.slots, self.device, self.precision = config, slots, device, precision
        self.ropes = [config.rope(layer) for layer in range(config.num_hidden_layers)]
        self.frequencies = {rope: frequencies(config, slots, rope) for rope in set(self.ropes) if rope}
        kept = _kept(precision, bits)
        coded = kept in (torch.int8, torch.uint8)
        self.kind = "int8+int4" if bits == 4 else str(kept).removeprefix("torch.")
        master = str(torch.promote_types(torch.float32 if coded else kept, torch.float32)).removeprefix("torch.")
        self.layout = Layout.of(config, self.kind, master)
        shape = self.layout.shape(slots)
        self.data = torch.empty(shape, dtype=kept, device=device)  # [layer, key or value, G, slot, D], see saved
        self.scale = torch.empty((*shape[:-1], 1), device=device) if coded else None
        self.nbytes = self.planned(config, slots, precision, bits)
        self.windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        self.positions = np.full(slots, np.iinfo(np.int64).max)  # a slot not yet written is later than every query
        self.pinned = PinnedKeys[Tensor]()

    @staticmethod
    def planned(config: ModelSpec, slots: int, precision: Precision, bits: KvBits | None) -> int:
        """Bytes that it takes."""
        kept = 4 if bits == 4 else _kept(precision, bits).itemsize * 8
        return kv_bytes(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, slots, kept)

    def begin(self, steps: Sequence[CacheStep], whole: bool = False) -> Memory:
        """Note the positions of these texts' tokens, and give the memory that the model works on; `whole`: contexts have all
        slots that a step sees, also those that no query does."""
        slots = np.concatenate([step.slots for step in steps])
        self.positions[slots] = np.concatenate([step.positions for step in steps])
        self.pinned.written(slots.tolist())
        where, ends = _span(slots), np.cumsum([len(step.slots) for step in steps]).tolist()
        runs = [slice(end - len(step.slots), end) for end, step in zip(ends, steps, strict=True)]
        views = {window: [self._view(step, window, whole) for step in steps] for window in set(self.windows)}

        def memory(layer: int, keys: Tensor, values: Tensor) -> Iterator[Context]:
            self._write((layer, slice(None), slice(None), where), torch.stack((keys, values)).transpose(1, 2))
            for run, (spans, mask) in zip(runs, views[self.windows[layer]], strict=True):
                keys, values = self._read(layer, spans)
                yield Context(run, keys, values, mask)

        return memory

    def save_kv(self, slots: Integers) -> Saved:
        """See engine.saved."""
        where = (slice(None), slice(None), slice(None), _span(slots))
        saved = {"kv": _to_numpy(self.data[where])}
        if self.scale is not None:
            saved["scale"] = _to_numpy(self.scale[where][..., 0])
        return saved | self.pinned.saved(slots, _to_numpy)

    def load_kv(self, slots: Integers, positions: Integers, saved: Saved) -> None:
        """Raises FormatError."""
        block = self.layout.check(saved, slots)
        where = (slice(None), slice(None), slice(None), _span(slots))
        kv = torch.from_numpy(saved["kv"].view(np.int16) if self.data.dtype == torch.bfloat16 else saved["kv"])
        self.data[where] = kv.to(self.device).view(self.data.dtype)
        if self.scale is not None:
            self.scale[where] = torch.from_numpy(saved["scale"]).to(self.device)[..., None]
        self.positions[slots] = positions
        self.pinned.written(slots.tolist())
        if block is not None:
            self.pinned.hold(block, torch.from_numpy(saved["master"]).to(self.device))

    def rotations(self, positions: Integers) -> list[Rotation]:
        """For each layer, of x [T, heads, D]."""
        dtype = self.precision.rotary
        made = {rope: rotation(positions, *of, dtype, self.device) for rope, of in self.frequencies.items()}
        return [made[rope] if rope else None for rope in self.ropes]

    def query_scale(self, positions: Integers) -> Tensor | None:
        """See Model: [T, 1, 1]."""
        scales = query_scales(self.config, self.slots, positions)
        if scales is None:
            return None
        return torch.from_numpy(scales).to(self.device, self.precision.compute)[:, None, None]

    def _view(self, step: CacheStep, window: int | None, whole: bool) -> tuple[list[slice], Mask]:
        """Which slots this step reads, and which of those each query sees."""
        spans = [slice(span.start, span.stop) for span in step.visible]
        own, held = step.positions, np.concatenate([self.positions[span] for span in spans])
        if window is not None and own.max() - held.min() < window:
            window = None
        if window is None and np.array_equal(held, own) and np.all(np.diff(own) > 0):
            return spans, Mask(causal=len(own) > 1)
        seen = held <= own[:, None]
        if window is not None:
            seen &= held > own[:, None] - window
        if (
            len(spans) == 1 and not whole
        ):  # leave out what no query sees at both ends: with a sliding window, most of the cache
            used = np.flatnonzero(seen.any(0))
            spans = [slice(spans[0].start + used[0], spans[0].start + used[-1] + 1)]
            seen = seen[:, used[0] : used[-1] + 1]
        return spans, Mask() if seen.all() else Mask(torch.from_numpy(seen).to(self.device))

    def _write(self, where: tuple[int | Span, ...], x: Tensor) -> None:
        if self.scale is None:
            self.data[where] = x.to(self.data.dtype)
        elif self.layout.together:
            self._write_together(where, hadamard(x.float()))
        else:
            self.data[where], self.scale[where] = quantize(x)

    def _write_together(self, where: tuple[int | Span, ...], x: Tensor) -> None:
        """Rotated keys and values [2, G, n, D] of a layer; or keys alone [layers, G, n, D]: values stay."""
        alone = where[1] == 0
        codes, scale = quantize(x if alone else x[0])
        codes = codes.view(torch.uint8)
        if alone:
            self.data[(*where, slice(self.config.head_dim))] = codes
        else:
            self.data[where] = torch.cat((codes, pack(x[1])), -1)[None]
        assert self.scale is not None
        self.scale[where] = scale if alone else scale[None]

    def _read(self, layer: int, spans: Sequence[slice]) -> Tensor:
        """[2, G, S, D] in the compute dtype."""
        x = _gather(self.data[layer], spans)
        if self.scale is not None:
            x = self._dequantized(x, _gather(self.scale[layer], spans))
        return x.to(self.precision.compute)

    def _dequantized(self, x: Tensor, scale: Tensor) -> Tensor:
        """[2, G, S, D] of what is kept, and its scales."""
        if not self.layout.together:
            return x * scale
        size = self.config.head_dim
        keys = x[..., :size].view(torch.int8) * scale
        return hadamard(torch.cat((keys, unpack(x[..., size:], size))))

    def pin(self, block: range, start: int) -> None:
        """Rotate the keys of a block of slots to positions from `start` on.

        Always from the un-rotated keys that are made when the block is first rotated, so that rounding never adds up.
        """
        where = (slice(None), 0, slice(None), slice(block.start, block.stop))

        def unrotated() -> Tensor:
            keys = self._keys(where)
            return self._rotated(keys, -self.positions[block.start : block.stop])

        keys, positions = self.pinned.of(block, unrotated), np.arange(start, start + len(block))
        self._write(where, self._rotated(keys, positions))
        self.positions[block.start : block.stop] = positions

    def _keys(self, where: tuple[int | Span, ...]) -> Tensor:
        """[layers, G, n, D] of keys at these places."""
        if self.scale is None:
            return self.data[where]
        if not self.layout.together:
            return self.data[where] * self.scale[where]
        return hadamard(self.data[where][..., : self.config.head_dim].view(torch.int8) * self.scale[where])

    def _rotated(self, keys: Tensor, by: Integers) -> Tensor:
        """[layers, G, n, D], each rotated by its number of positions, in float32 at least."""
        keys = keys.to(torch.promote_types(keys.dtype, torch.float32), copy=True)
        made = {rope: rotation(by, of[0], 1.0, keys.dtype, self.device) for rope, of in self.frequencies.items()}
        for layer, rope in enumerate(self.ropes):
            if rope:
                keys[layer] = rotate(keys[layer].transpose(0, 1), *made[rope]).transpose(0, 1)
        return keys


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., D] -> int8 codes [..., D] and float32 scales [..., 1], so that x is about codes * scales."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).round().to(torch.int8), scale


def _gather(x: Tensor, spans: Sequence[slice]) -> Tensor:
    return x[:, :, spans[0]] if len(spans) == 1 else torch.cat([x[:, :, span] for span in spans], 2)


def _to_numpy(x: Tensor) -> NDArray[Any]:
    """A copy; bfloat16, which numpy has not, as its bits."""
    bits = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    out: NDArray[Any] = bits.cpu().numpy().copy()
    return out.view(np.uint16) if x.dtype == torch.bfloat16 else out


def _span(slots: Integers) -> Span:
    """A slice where that will do: it is read and written in place."""
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if np.array_equal(slots, np.arange(first, last + 1)) else torch.from_numpy(slots)


def _kept(precision: Precision, bits: KvBits | None) -> torch.dtype:
    sixteen = precision.compute if precision.compute.itemsize == 2 else torch.float16
    return {None: precision.compute, 32: torch.float32, 16: sixteen, 8: torch.int8, 4: torch.uint8}[bits]
