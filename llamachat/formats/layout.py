"""Where a file's tensors go: a layer's joined or stacked matrices -> our own, each read on its own and from where it lies."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Array, FloatTensor, Tensor, half_split_rows
from llamachat.families.family import Layout
from llamachat.families.t5 import EncoderDecoderSpec, our_name
from llamachat.formats.lazy import LazyTensor, reordered
from llamachat.formats.parts import Part, taken, within

IN_LAYER = re.compile(r"(?P<prefix>model\.layers\.\d+\.)(?P<part>.+?)(?P<kind>\.weight|\.bias|_bias|)")
EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
BARE = ("self_attn.sinks",)  # which has no kind at its end


@dataclass(frozen=True)
class Cut:
    """Some rows of a tensor, or of the one with a number in a stack of them; `turned`: that is [in, out] there."""

    rows: slice
    number: int | None = None
    turned: bool = False


@dataclass(frozen=True)
class Places:
    """Where tensors of a layer go, by a layout and the sizes that the model has."""

    layout: Layout
    spec: ModelSpec

    def of(self, prefix: str, part: str, kind: str, stack: int) -> Iterator[tuple[str, Cut]]:
        """Of a layer's module and "weight" or "bias": our names, and what of the tensor each is. Unknown ones stay.

        `stack`: the length of the first axis, of which a stack of experts has one each.
        """
        found = EXPERT.search(part)
        targets = self.layout.parts.get(EXPERT.sub("{}", part), (part,))
        if not any("{}" in target for target in targets):
            yield from self._rows(prefix, targets, kind, None, None)
        elif found:
            yield from self._rows(prefix, targets, kind, found[0], None)
        elif self.spec.experts and stack == self.spec.experts.count:
            for number in range(stack):
                yield from self._rows(prefix, targets, kind, str(number), number)
        else:
            yield _name(prefix, part, kind), Cut(slice(None))

    def _rows(
        self, prefix: str, targets: tuple[str, ...], kind: str, expert: str | None, number: int | None
    ) -> Iterator[tuple[str, Cut]]:
        names = [_name(prefix, target.replace("{}", expert or "{}"), kind) for target in targets]
        turned, start = self.layout.transposed and number is not None and kind == "weight", 0
        for place, name in enumerate(names):
            if len(names) == 1:
                rows = slice(None)
            elif self.layout.alternating:
                rows = slice(place, None, len(names))
            else:
                rows = slice(start, start := start + self._height(name))
            yield name, Cut(rows, number, turned)

    def _height(self, name: str) -> int:
        """Rows of a matrix that may be joined with others."""
        spec, module = self.spec, name.split(".")[-2]
        if module in ("q_proj", "k_proj", "v_proj"):
            return spec.head_dim * (spec.num_attention_heads if module == "q_proj" else spec.num_key_value_heads)
        return spec.experts.intermediate_size if spec.experts and ".experts." in name else spec.intermediate_size


def _name(prefix: str, module: str, kind: str) -> str:
    return prefix + (module if module in BARE else f"{module}.{kind}")


def targets(name: str, layout: Layout, spec: ModelSpec, stack: int) -> Iterator[tuple[str, Cut]]:
    """Of a tensor as transformers calls it: our names, and what of it each is; `stack` as Places.of has it."""
    match = IN_LAYER.fullmatch(name)
    if match is None:
        yield our_name(name) if isinstance(spec, EncoderDecoderSpec) else name, Cut(slice(None))
        return
    kind = "bias" if match["kind"] in (".bias", "_bias") else "weight"  # stacks are called X and X_bias
    yield from Places(layout, spec).of(match["prefix"], match["part"], kind, stack)


def placed(entries: Mapping[str, LazyTensor], layout: Layout, spec: ModelSpec) -> dict[str, LazyTensor]:
    """Tensors as transformers has them, by our names."""
    ours = {
        ours: lazy if what == Cut(slice(None)) else cut(lazy, what)
        for name, lazy in entries.items()
        for ours, what in targets(name, layout, spec, lazy.info.shape[0])
    }
    return {name: half_split(name, lazy, spec) for name, lazy in ours.items()} if layout.interleaved else ours


def cut(lazy: LazyTensor, what: Cut) -> LazyTensor:
    """A part of a tensor."""
    inner = lazy.info.shape if what.number is None else lazy.info.shape[1:]
    inner = inner[::-1] if what.turned else inner
    shape = (len(range(*what.rows.indices(inner[0]))), *inner[1:])
    share = shape[0] / inner[0] / (1 if what.number is None else lazy.info.shape[0])
    return LazyTensor(
        replace(lazy.info, shape=shape, nbytes=round(lazy.info.nbytes * share)), partial(_read, lazy, what)
    )


def _read(lazy: LazyTensor, what: Cut, part: Part) -> Tensor:
    if what.number is None:
        return lazy.read(replace(part, rows=within(lazy.info.shape[0], what.rows, part.rows)))
    stack = lazy.read(Part(slice(what.number, what.number + 1)))
    assert isinstance(stack, FloatTensor)
    inner = stack.data[0].T if what.turned else stack.data[0]
    return FloatTensor(taken(inner, replace(part, rows=within(len(inner), what.rows, part.rows))))


def half_split(name: str, lazy: LazyTensor, spec: ModelSpec) -> LazyTensor:
    """A tensor whose rows rotate in interleaved pairs, if it is of queries or keys, in our order; others as they are."""
    order = rotated_rows(name, spec)
    return lazy if order is None else reordered(lazy, order, lazy.info)


def rotated_rows(name: str, spec: ModelSpec) -> Array | None:
    """The order of rows that `half_split` gives a tensor of queries or keys; None for others."""
    heads = {"q_proj": spec.num_attention_heads, "k_proj": spec.num_key_value_heads}.get(name.split(".")[-2])
    return None if heads is None else half_split_rows(heads, spec.head_dim, spec.rotary_dim)
