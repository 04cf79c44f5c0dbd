"""A PEFT folder: adapter_config.json, and adapter_model.safetensors or .bin, in the names of the class that it was trained on.

What counts is which tensors are there; the configuration gives their scales. A key that would change what is computed in another
way than LoRA is refused. Source: https://github.com/huggingface/peft, 0.21.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import regex

from llamachat.checks import is_number, is_whole, shown
from llamachat.core.spec import HEADS, ModelSpec
from llamachat.core.tensors import Array, to_float32
from llamachat.errors import ConfigError, FormatError, reader
from llamachat.families.family import Layout
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import EMBEDDING, HEAD, MAX_RANK, Adapter, LowRank, new_head
from llamachat.formats.adapter_base import CONFIG
from llamachat.formats.hf import of_text
from llamachat.formats.labels import MOST as MOST_LABELS
from llamachat.formats.labels import with_head
from llamachat.formats.layout import placed, rotated_rows, targets
from llamachat.formats.lazy import FLOATS, LazyTensor, float_entry
from llamachat.formats.pickled import read_pickled
from llamachat.formats.safetensors_file import read_safetensors
from llamachat.system.metadata import Fields, names, read_json

CALLED = {"transformer.": "model.", "layers.": "model.layers.", "embed_tokens": "model.embed_tokens", "norm.": "model.norm.",
          "classifier.": "score."}  # fmt: skip
WEIGHTS = (("adapter_model.safetensors", read_safetensors), ("adapter_model.bin", read_pickled))
PREFIX = "base_model.model."
PART = regex.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
COPIED = ".base_layer"  # what PEFT calls the module that it put an adapter around
NEUTRAL: dict[str, tuple[object, ...]] = {  # keys of what is not LoRA, or changes the base, with the values that do not
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora"), (False,)),
    **dict.fromkeys(
        ("use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "layer_replication",
         "megatron_config", "trainable_token_indices", "enable_lora"), ()
    ),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
}  # fmt: skip
NO_EFFECT = names(
    """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core merge_weights modules_to_save
    peft_version qalora_group_size revision runtime_config target_modules task_type velora_config
    """
)
LARGEST_SCALE = 1e6
SIMPLE = regex.compile(
    r"(?:\(\?:|\((?!\?)|\\[dDwWsSb.]|[\w.*+?|)\[\]^$-])*+"
)  # without counts, which may stand for gigabytes
MOST, LONGEST, SECONDS = 4096, 500, 5.0  # patterns, characters of one, and how long all may take


@reader
def open_peft(folder: Path, base: Checkpoint) -> Adapter:
    """The adapter in this folder, for this model. Raises FormatError, ConfigError."""
    told, (file, arrays) = _configuration(folder / CONFIG), _arrays(folder)
    model = _Model(base.config, base.layout, file)
    lows: dict[str, dict[str, Array]] = {}
    others: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.dtype not in FLOATS:
            raise FormatError(f"{shown(name)} in {file} holds {array.dtype}", "it is no trained weight")
        if match := PART.fullmatch(name):
            part = match["linear"] or f"embedding {match['embedding']}"
            lows.setdefault(match["module"], {})[part] = array
        else:
            others[name] = array
    matrices = dict[str, LowRank]()
    for module, parts in lows.items():
        for name, low in model.low_ranks(module, parts, told):
            if name in matrices:
                raise FormatError(f"{file} adapts {shown(name)} twice", "it is not clear which counts")
            matrices[name] = low
    replaced = model.replaced(others)
    if not matrices and not replaced:
        raise FormatError(f"{file} holds no tensors", "there is nothing to add")
    return Adapter(folder, (folder / CONFIG, file), matrices, replaced, told.ignored)


# The configuration ----------------------------------------------------------------------------------------------------


@dataclass
class Patterns:
    """Values by regular expressions for the ends of modules' names, as PEFT has them: the first that matches counts.

    Anybody may have written them, so all matching together has a few seconds.
    """

    where: str
    values: Mapping[str, Any]
    _compiled: list[tuple[Any, Any]] = field(default_factory=list)
    _left: float = SECONDS

    def __post_init__(self) -> None:
        if len(self.values) > MOST:
            raise ConfigError(f"{self.where} has more than {MOST} patterns", "it is not read")
        for key, value in self.values.items():
            if len(key) > LONGEST or not SIMPLE.fullmatch(key):
                raise ConfigError(f"{self.where}: {shown(key)} is no pattern that is read", "write it in simpler words")
            try:
                self._compiled.append((regex.compile(rf"(.*\.)?({key})$"), value))
            except regex.error as error:
                raise ConfigError(f"{self.where}: {shown(key)} is no regular expression ({error})") from error

    def of(self, module: str, default: Any) -> Any:
        begin = time.monotonic()
        try:
            for pattern, value in self._compiled:
                left = self._left - (time.monotonic() - begin)
                if left <= 0:
                    raise TimeoutError
                if pattern.match(module, timeout=left):
                    return value
        except TimeoutError as error:
            raise ConfigError(f"{self.where} takes more than {SECONDS:g} s to match", "it is not read") from error
        self._left -= time.monotonic() - begin
        return default


@dataclass(frozen=True)
class Told:
    """What adapter_config.json says of the scales."""

    where: str
    rank: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    stabilized: bool  # rsLoRA (arXiv 2312.03732)
    parameters: tuple[str, ...]  # ends of names of what was adapted as a parameter and not as a module
    ignored: tuple[str, ...]

    def scale(self, module: str, rank: int) -> float:
        """Of a module, as PEFT calls it. Raises FormatError where its matrices have another rank than is said."""
        parameter = f"{module}.weight"
        as_parameter = any(parameter == end or parameter.endswith(f".{end}") for end in self.parameters)
        key = parameter if as_parameter else module
        expected = self.ranks.of(key, self.rank)
        if rank != expected:
            cause = f"the matrices of {shown(module)} have the rank {rank}, {self.where} says {expected}"
            raise FormatError(cause, "they do not belong together")
        scale = float(self.alphas.of(key, self.alpha)) / (math.sqrt(rank) if self.stabilized else rank)
        if abs(scale) > LARGEST_SCALE:
            raise ConfigError(f"{self.where} scales {shown(module)} by {scale:g}", "it is no trained adapter's")
        return scale


def _configuration(file: Path) -> Told:
    fields = Fields(read_json(file), str(file))
    fields.choice("peft_type", {"LORA": True})
    for key, values in NEUTRAL.items():
        fields.neutral(key, *values)
    fields.choice("bias", {name: name for name in ("none", "all", "lora_only")}, "none")
    rank, alpha = fields.whole("r", 8, 1, MAX_RANK), fields.number("lora_alpha", 8)
    ranks = _patterns(fields, "rank_pattern", lambda value: is_whole(value) and 1 <= value <= MAX_RANK)
    alphas = _patterns(fields, "alpha_pattern", is_number)
    stabilized, parameters = fields.flag("use_rslora", False), fields.strings("target_parameters")
    return Told(str(file), rank, alpha, ranks, alphas, stabilized, parameters, fields.finish(NO_EFFECT))


def _patterns(fields: Fields, key: str, good: Any) -> Patterns:
    given = fields.get(key) or {}
    if not isinstance(given, Mapping) or not all(map(good, given.values())):
        fields.refuse(key, "a mapping of patterns to numbers")
    return Patterns(f"{fields.where}: {key}", given)


# The tensors ----------------------------------------------------------------------------------------------------------


def _arrays(folder: Path) -> tuple[Path, dict[str, Array]]:
    """Without the prefix that PEFT gives all names; of a model that sees pictures, those of its text."""
    for name, read in WEIGHTS:
        if (file := folder / name).is_file():
            arrays = read(file)
            if strange := sorted(name for name in arrays if not name.startswith(PREFIX)):
                raise FormatError(f"{file} holds {shown(strange[0])}", f"names of an adapter begin with {PREFIX}")
            return file, of_text({name.removeprefix(PREFIX): array for name, array in arrays.items()})
    wanted = " nor ".join(name for name, _ in WEIGHTS)
    raise FormatError(f"{folder} has neither {wanted}", "the adapter has no weights", "fetch its files again")


def in_causal(name: str) -> str:
    """What the class of a causal model calls a part that a class without a head, or with another one, calls otherwise."""
    for theirs, ours in CALLED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


@dataclass(frozen=True)
class _Model:
    """What an adapter is for."""

    spec: ModelSpec
    layout: Layout
    file: Path  # the adapter's

    def low_ranks(self, module: str, parts: Mapping[str, Array], told: Told) -> Iterator[tuple[str, LowRank]]:
        """By our modules, what is added to one of transformers'."""
        kind = "embedding " if any(name.startswith("embedding ") for name in parts) else ""
        if parts.keys() != {f"{kind}A", f"{kind}B"} or any(array.ndim != 2 for array in parts.values()):
            raise FormatError(f"{shown(module)} in {self.file} has not just two matrices", "it is incomplete")
        a, b = (parts["embedding B"].T, parts["embedding A"].T) if kind else (parts["A"], parts["B"])
        if a.shape[0] != b.shape[1]:
            raise self._misfit(module, b, a)
        for array in (a, b):
            if not np.isfinite(to_float32(array)).all():
                raise FormatError(f"{shown(module)} in {self.file} has values that are not finite", "it is damaged")
        inner = module.removesuffix(COPIED)
        if inner.endswith(".experts") and self.spec.experts:
            yield from self._of_experts(inner, a, b, told)
            return
        scale = told.scale(module, len(a))
        for name, what in targets(f"{in_causal(module)}.weight", self.layout, self.spec, b.shape[0]):
            yield self._fitting(name, LowRank(a, b[what.rows], scale))

    def _of_experts(self, module: str, a: Array, b: Array, told: Told) -> Iterator[tuple[str, LowRank]]:
        """Of a stack of all experts' matrices: their ranks lie one behind the other in `a`, and take turns in `b`."""
        experts, hidden = self.spec.experts, self.spec.hidden_size
        assert experts is not None
        shapes = {(2 * experts.intermediate_size, hidden): "gate_up_proj",
                  (hidden, experts.intermediate_size): "down_proj"}  # fmt: skip
        stack = shapes.get((b.shape[0], a.shape[1]))
        if stack is None or len(a) % experts.count:
            raise self._misfit(module, b, a)
        rank = len(a) // experts.count
        scale = told.scale(f"{module}.{stack}", rank)
        for name, what in targets(f"{in_causal(module)}.{stack}", self.layout, self.spec, experts.count):
            if what.number is None:
                raise self._unknown(name)
            own = a[what.number * rank : (what.number + 1) * rank], b[what.rows, what.number :: experts.count]
            yield self._fitting(name, LowRank(*own, scale))

    def _fitting(self, name: str, low: LowRank) -> tuple[str, LowRank]:
        shape = self._shape(name)
        if shape != (low.b.shape[0], low.a.shape[1]):
            raise self._misfit(name, low.b, low.a)
        order = rotated_rows(name, self.spec) if self.layout.interleaved else None
        return name.removesuffix(".weight"), low if order is None else LowRank(low.a, low.b[order], low.scale)

    def replaced(self, others: Mapping[str, Array]) -> dict[str, LazyTensor]:
        """Whole tensors. Copies of the base's own, beside an embedding's adapter, are left out: they are not trained."""
        entries = dict[str, LazyTensor]()
        for name, array in others.items():
            module, _, kind = name.rpartition(".")
            copied = module.endswith(COPIED)
            name = in_causal(f"{module.removesuffix(COPIED)}.{kind}")
            if not (copied and kind == "weight"):
                entries[name] = float_entry(name, array)
            elif any(array.shape != self._shape(ours) for ours, _ in targets(name, self.layout, self.spec, len(array))):
                raise FormatError(f"{shown(name)} in {self.file} is {array.shape}", "the base has another vocabulary")
        ours = placed(entries, self.layout, self.spec)
        brought = self._brought(ours)
        for name, lazy in ours.items():
            if lazy.info.shape != (brought.get(name) or self._shape(name)):
                raise FormatError(f"{shown(name)} in {self.file} is {lazy.info.shape}", "it is another model's")
        return ours

    def _brought(self, ours: Mapping[str, LazyTensor]) -> dict[str, tuple[int, ...]]:
        """Shapes of a head that classifies, where an adapter brings one to a base that has none."""
        head = new_head(self.spec, ours)
        if head is None:
            return {}
        name = f"{HEADS[head][0]}."
        found = ours[f"{name}weight"].info.shape
        if len(found) != 2 or not 1 <= found[0] <= MOST_LABELS:
            raise FormatError(
                f"{name}weight in {self.file} is {found}", f"a head has a row a label, at most {MOST_LABELS}"
            )
        shapes = with_head(self.spec, head, found[0]).tensor_shapes()
        return {each: shape for each, shape in shapes.items() if each.startswith(name)}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that can be adapted: a tied head, too, for itself."""
        shapes = self.spec.tensor_shapes()
        tied = {f"{HEAD}.weight": shapes[f"{EMBEDDING}.weight"]} if self.spec.tied_head else {}
        return {**tied, **shapes}

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise self._unknown(name)
        return self._shapes[name]

    def _unknown(self, name: str) -> FormatError:
        return FormatError(f"{self.file} adapts {shown(name)}", "the base has no such tensor", "give the right base")

    def _misfit(self, name: str, b: Array, a: Array) -> FormatError:
        cause = f"{shown(name)} in {self.file} has matrices {b.shape} and {a.shape}"
        return FormatError(cause, "the base is another model", "give the right base")
