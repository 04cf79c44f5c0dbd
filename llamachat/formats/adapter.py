"""What was trained beside a model's weights: low-rank additions to its matrices (LoRA, arXiv 2106.09685), and whole tensors in
place of its own. Either is added as the model runs, or merged into the weights."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from llamachat.core.spec import HEADS, HeadKind, ModelSpec
from llamachat.core.tensors import Array, FloatTensor, Tensor, TensorInfo, to_float32
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ModelError, UsageError
from llamachat.formats import Checkpoint
from llamachat.formats.labels import classifying, unnamed, with_head
from llamachat.formats.lazy import LazyTensor, listed
from llamachat.formats.parts import WHOLE, Part, Parts, taken

MAX_RANK = 4096
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
SLAB = 1 << 22  # weights that are added to at a time


@dataclass(frozen=True)
class LowRank:
    """`scale * b @ a` is added to a matrix [rows, columns]; also to the embedding's, whose rows are looked up.

    The arrays are float32, float16, or uint16 when bfloat16, as the adapter's file has them.
    """

    a: Array  # [rank, columns]
    b: Array  # [rows, rank]
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def part(self, part: Part) -> "LowRank":
        """What is added to a part of the matrix."""
        return replace(self, a=taken(self.a, Part(columns=part.columns)), b=taken(self.b, Part(part.rows)))

    def times(self, factor: float) -> "LowRank":
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one folder holds, by our names; `files` are all that it was read from."""

    path: Path
    files: tuple[Path, ...]
    matrices: Mapping[str, LowRank]  # module -> what is added to its weight
    replaced: Mapping[str, LazyTensor]  # whole tensors: a switch cannot undo them
    ignored: tuple[str, ...] = ()  # keys of its configuration that cannot change inference, for --verbose

    @property
    def rank(self) -> int:
        """The largest."""
        return max((each.rank for each in self.matrices.values()), default=0)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.matrices.values())

    def check_scale(self, scale: float) -> None:
        """Raises UsageError where it cannot have this one."""
        if self.replaced and scale != 1:
            cause = f"the adapter {self.path} has whole tensors of its own ({listed(sorted(self.replaced))})"
            raise UsageError(cause, f"it cannot be scaled by {scale:g}", "leave its scale at 1")


Scaled = tuple[Adapter, float]  # an adapter, and what all that it adds is multiplied by


class Changed:
    """A checkpoint with adapters' tensors in place of its own, and, if merged, with what they add. See formats.Checkpoint.

    A tied embedding of which the adapters change one use is untied. What is merged is float32.
    """

    def __init__(self, source: Checkpoint, adapters: Sequence[Scaled], merge: bool) -> None:
        """Raises UsageError for adapters that cannot be had together, ModelError where weights to be merged are quantized."""
        self.source = source
        self.path, self.sampling, self.ignored = source.path, source.sampling, source.ignored
        self.chat_template, self.tokenizer_files, self.layout = (
            source.chat_template, source.tokenizer_files, source.layout,
        )  # fmt: skip
        self.labels, self.pooling = source.labels, source.pooling
        self.files = (*source.files, *(file for adapter, _ in adapters for file in adapter.files))
        self.recipe = [source.recipe, merge, [scale for _, scale in adapters]]
        self._replaced = _together(adapters)
        self._added: dict[str, list[LowRank]] = {}
        for adapter, scale in adapters if merge else ():
            for module, low in adapter.matrices.items():
                self._added.setdefault(f"{module}.weight", []).append(low.times(scale))
        self.config = source.config
        self._brought = self._take_head()
        self._unties = self.config.tied_head and bool(
            {f"{EMBEDDING}.weight", f"{HEAD}.weight"} & {*self._replaced, *self._added}
        )
        if self._unties:
            self.config = replace(self.config, tie_word_embeddings=False)
        if packed := [name for name in self._added if self._source_info(name).packing is not None]:
            cause = f"{listed(sorted(packed))} of {source.path} are quantized already"
            raise ModelError(
                cause, "nothing can be merged into them", "merge into the float model that it was made from"
            )

    def index(self) -> Mapping[str, TensorInfo]:
        infos = dict(self.source.index())
        if self._unties:
            infos[f"{HEAD}.weight"] = infos[f"{EMBEDDING}.weight"]
        if self._brought:
            infos.pop(f"{HEAD}.weight", None)
        changed = {name: self._info(name, info) for name, info in infos.items()}
        return changed | {name: self._replaced[name].info for name in self._brought}

    def tensors(self, parts: Parts | None = None) -> Iterator[tuple[str, Tensor]]:
        """An embedding that is untied here has the same part as the head. Sums of parts may round otherwise than of the whole."""
        parts, head = parts or {}, None
        assert not self._unties or parts.get(f"{HEAD}.weight") == parts.get(f"{EMBEDDING}.weight")
        for name, tensor in self.source.tensors(parts):
            if self._unties and name == f"{EMBEDDING}.weight":
                head = tensor
            if not (self._brought and name == f"{HEAD}.weight"):
                yield name, self._changed(name, tensor, parts)
        for name in self._brought:
            yield name, self._replaced[name].read(parts.get(name, WHOLE))
        if head is not None:
            yield f"{HEAD}.weight", self._changed(f"{HEAD}.weight", head, parts)

    def _take_head(self) -> list[str]:
        """The tensors of a head that classifies, which an adapter has and the source has not; it is this model's then."""
        head = new_head(self.config, self._replaced)
        if head is None:
            return []
        name = HEADS[head][0]
        rows = self._replaced[f"{name}.weight"].info.shape[0]
        self.config, self.labels = with_head(self.config, head, rows), unnamed(head, rows)
        return [each for each in self._replaced if each.startswith(f"{name}.")]

    def tokenizer(self) -> Tokenizer:
        return self.source.tokenizer()

    def _source_info(self, name: str) -> TensorInfo:
        if name in self._replaced:
            return self._replaced[name].info
        index = self.source.index()
        return index[f"{EMBEDDING}.weight" if name not in index else name]

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        info = self._replaced[name].info if name in self._replaced else info
        return TensorInfo(info.shape, 4 * prod(info.shape)) if name in self._added else info

    def _changed(self, name: str, tensor: Tensor, parts: Parts) -> Tensor:
        part = parts.get(name, WHOLE)
        if name in self._replaced:
            tensor = self._replaced[name].read(part)
        if name not in self._added or part.zero:
            return tensor
        assert isinstance(tensor, FloatTensor)
        return FloatTensor(merged(to_float32(tensor.data), [low.part(part) for low in self._added[name]]))


def new_head(spec: ModelSpec, names: Collection[str]) -> HeadKind | None:
    """The head that classifies of which an adapter of such a model has the tensors; None where it brings none."""
    return classifying(names) if spec.head in ("next_token", "none") else None


def base_of(checkpoint: Checkpoint) -> Checkpoint:
    """The one from a file or folder, where adapters have changed it."""
    return checkpoint.source if isinstance(checkpoint, Changed) else checkpoint


def merged(weight: Array, added: Sequence[LowRank]) -> Array:
    """A matrix in float32 with what is added to it, computed in float32."""
    out = np.array(weight, np.float32)
    step = max(1, SLAB // out.shape[1])
    for low in added:
        a = to_float32(low.a) * np.float32(low.scale)
        for start in range(0, len(out), step):
            out[start : start + step] += to_float32(low.b[start : start + step]) @ a
    return out


def _together(adapters: Sequence[Scaled]) -> dict[str, LazyTensor]:
    """All that is replaced. Raises UsageError where two adapters replace the same tensor, or one is scaled."""
    replaced = dict[str, LazyTensor]()
    for adapter, scale in adapters:
        adapter.check_scale(scale)
        if both := sorted(replaced.keys() & adapter.replaced):
            cause = f"two adapters, {adapter.path} the later, have a {listed(both)} of their own"
            raise UsageError(cause, "they cannot be had together", "leave one out")
        replaced |= adapter.replaced
    return replaced
