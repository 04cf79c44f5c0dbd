"""What each of several processes has of a model: Meta's way (Llama's ColumnParallel and RowParallel; Megatron-LM, arXiv
1909.08053). Imports nothing heavy.

Matrices that make a layer's inner values (queries, keys, values, gates) are cut in rows, those that take them in columns, whose
products the processes add up. So attention is split by heads and every feed-forward part, of each expert too, by its inner
values. The embedding, and a head that predicts tokens, are split by the vocabulary. Norms, routers, tables of positions and
heads that classify are whole everywhere; a bias that is added to a sum is the first process's, and zeros elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import TensorInfo
from llamachat.errors import UsageError
from llamachat.families.t5 import RELATIVE
from llamachat.formats.parts import WHOLE, Part, cut_info

UNITS = (128, 64, 32)  # that shares are multiples of: groups of codes, and what kernels take
UNEVEN = 1.05  # how much larger than the average the largest share may be for the sake of larger units


@cache
def share(total: int, rank: int, size: int) -> slice:
    """The rank's part of so many: nearly equal parts in whole units, as far as each then has one."""
    unit = next((unit for unit in UNITS if -(-total // unit // size) * unit * size <= UNEVEN * total), UNITS[-1])
    unit = unit if total >= unit * size else 1
    units = -(-total // unit)
    return slice(*(min(total, units * number // size * unit) for number in (rank, rank + 1)))


def require_size(spec: ModelSpec, size: int) -> None:
    """Raises UsageError for a number of processes that a model cannot be split over."""
    heads, groups = spec.num_attention_heads, spec.num_key_value_heads
    if size > (least := _narrowest(spec)):
        cause = f"a model that is {least} wide cannot be split over {size} processes"
        raise UsageError(cause, "nothing was loaded", f"use 1 to {least}")
    if 1 <= size <= heads and (size <= groups or size % groups == 0):
        return
    more = [] if groups == 1 else [str(number) for number in range(2 * groups, heads + 1, groups)]
    fitting = ", ".join([f"1 to {heads if groups == 1 else groups}", *more[:-1]]) + "".join(
        f" or {last}" for last in more[-1:]
    )
    cause = f"a model of {heads} heads, {groups} of keys and values, cannot be split over {size} processes"
    raise UsageError(cause, "nothing was loaded", f"use {fitting}")


def _narrowest(spec: ModelSpec) -> int:
    """Of what is shared out beside heads, that of which there is least: each process must have some."""
    inner = [spec.intermediate_size] + ([spec.experts.intermediate_size] if spec.experts else [])
    return min(spec.vocab_size, *inner)


@dataclass(frozen=True)
class Shard:
    """One of `size` processes. Raises UsageError for a number that cannot be."""

    spec: ModelSpec
    rank: int
    size: int

    def __post_init__(self) -> None:
        require_size(self.spec, self.size)

    @cached_property
    def groups(self) -> slice:
        """Its heads of keys and values: whole groups; or one, which several processes have."""
        count = self.spec.num_key_value_heads
        if self.size <= count:
            return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
        mine = self.rank * count // self.size
        return slice(mine, mine + 1)

    @cached_property
    def heads(self) -> slice:
        """Its heads of queries, which look at those."""
        count, each = self.spec.num_key_value_heads, self.spec.num_attention_heads // self.spec.num_key_value_heads
        if self.size <= count:
            return slice(self.groups.start * each, self.groups.stop * each)
        sharing = self.size // count
        place, first = self.rank % sharing, self.groups.start * each
        return slice(first + each * place // sharing, first + each * (place + 1) // sharing)

    def inner(self, width: int) -> slice:
        """Of a feed-forward part's inner values."""
        return share(width, self.rank, self.size)

    @property
    def vocabulary(self) -> slice:
        """Rows of the embedding, and of a head that predicts tokens."""
        return share(self.spec.vocab_size, self.rank, self.size)

    def part(self, name: str) -> Part:
        """Of a tensor by its name."""
        owner, _, kind = name.rpartition(".")
        module = owner.rpartition(".")[2] if kind in ("weight", "bias") else kind
        if module in ("o_proj", "down_proj"):
            columns = self._in_elements(self.heads) if module == "o_proj" else self._inner(name)
            return Part(columns=columns) if kind == "weight" else Part(zero=self.rank > 0)
        if module == RELATIVE:
            return Part(columns=self.heads)
        rows = self._rows(module, name)
        return WHOLE if rows is None else Part(rows)

    def _rows(self, module: str, name: str) -> slice | None:
        """Of a tensor that is cut in rows; None of those that are not cut."""
        match module:
            case "q_proj":
                return self._in_elements(self.heads)
            case "k_proj" | "v_proj":
                return self._in_elements(self.groups)
            case "q_norm" | "k_norm" if self.spec.qk_norm == "projection":
                return self._in_elements(self.heads if module == "q_norm" else self.groups)
            case "sinks":
                return self.heads
            case "gate_proj" | "up_proj":
                return self._inner(name)
            case "embed_tokens" | "lm_head":
                return self.vocabulary
        return None

    def _inner(self, name: str) -> slice:
        experts = self.spec.experts
        return self.inner(experts.intermediate_size if experts and ".experts." in name else self.spec.intermediate_size)

    def _in_elements(self, heads: slice) -> slice:
        return slice(heads.start * self.spec.head_dim, heads.stop * self.spec.head_dim)

    def local_spec(self) -> ModelSpec:
        """The model as its layers are here: fewer heads and narrower feed-forward parts. The vocabulary is the whole model's."""
        spec, experts = self.spec, self.spec.experts
        return replace(
            spec,
            num_attention_heads=_length(self.heads),
            num_key_value_heads=_length(self.groups),
            intermediate_size=_length(self.inner(spec.intermediate_size)),
            experts=replace(experts, intermediate_size=_length(self.inner(experts.intermediate_size)))
            if experts
            else None,
        )


def _length(which: slice) -> int:
    return int(which.stop - which.start)


def shards(spec: ModelSpec, rank: int, size: int) -> dict[str, Part]:
    """What a rank has of each of the model's tensors. Raises UsageError for a number of ranks that cannot be."""
    shard = Shard(spec, rank, size)
    return {name: shard.part(name) for name in spec.tensor_shapes()}


def local_spec(spec: ModelSpec, rank: int, size: int) -> ModelSpec:
    """See Shard.local_spec. Raises UsageError for a number of ranks that cannot be."""
    return Shard(spec, rank, size).local_spec()


def local_indices(spec: ModelSpec, index: Mapping[str, TensorInfo], size: int) -> Iterator[dict[str, TensorInfo]]:
    """What headers would say of the parts of each rank."""
    for rank in range(size):
        shard = Shard(spec, rank, size)
        yield {name: cut_info(info, shard.part(name)) for name, info in index.items()}
