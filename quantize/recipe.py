"""What to quantize how: a base scheme, what embedding and head get, overrides by pattern."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase, translate
from functools import cached_property
from pathlib import Path
from typing import Any

from llamachat.core.spec import HEADS, KvBits, ModelSpec, QuantConfig
from llamachat.core.tensors import GROUP
from llamachat.errors import ModelError, UsageError
from llamachat.families.t5 import ABSOLUTE, RELATIVE, EncoderDecoderSpec
from llamachat.formats.prequantized.bnb import BLOCK_SIZES
from llamachat.formats.prequantized.schemes import CODEBOOKS, OURS, OWN, SCHEMES, Scheme
from llamachat.formats.quant_sources import quantization
from llamachat.system.metadata import Fields, read_json
from quantize.schemes import OUTER
from quantize.to_hf import beyond_hf, joined_in_hf

EMBEDDING, HEAD = OUTER
CLASSIFIERS = {f"{name}.weight" for name, _ in HEADS.values() if name} - {HEAD}  # a few rows: they stay floats
ROUTER = ".mlp.gate"  # small, and what it picks turns on small differences
UNMULTIPLIED = (RELATIVE, ABSOLUTE)  # small tables that are looked up in
FLOAT = "float"  # stands where a scheme may: not quantized
CODED = [name for name in OWN if SCHEMES[name].codebook]  # whose codebook may be chosen
PLAIN = [name for name in OWN if not SCHEMES[name].calibrated]
ANY_WIDTH = sorted((name for name in SCHEMES if SCHEMES[name].any_width), key=lambda name: -SCHEMES[name].bits)
DOUBLE = [name for name in SCHEMES if SCHEMES[name].foreign and SCHEMES[name].codebook]


@dataclass(frozen=True)
class Recipe:
    """`overrides` are PATTERN=SCHEME or PATTERN=SCHEME:GROUP over module names (`*.mlp.down_proj`); the last that matches
    holds."""

    scheme: str = "int4"
    group_size: int | None = None
    codebook: str | None = None
    double_quant: bool = False  # bitsandbytes' 8-bit scales
    head: str | None = (
        None  # None: int8 with our schemes, float with bitsandbytes', which leaves both alone; or if it classifies
    )
    embedding: str | None = None
    overrides: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()  # patterns of modules left in float
    skip_modules: tuple[str, ...] = ()  # the same as transformers' llm_int8_skip_modules would name them
    kv_bits: KvBits | None = None  # a wish for the engine, handed on

    def __post_init__(self) -> None:
        """Raises UsageError on what is unknown, or cannot be together."""
        _one_of("--scheme", self.scheme, tuple(SCHEMES))
        if self.codebook is not None:
            _one_of("--codebook", self.codebook, CODEBOOKS)
            _only(self.scheme in CODED, "--codebook", f"schemes {_and(CODED)}")
            affine = [name for name in CODED if name in PLAIN]
            _only(self.codebook != "affine" or self.scheme in affine, "--codebook affine", f"scheme {_and(affine)}")
        _only(not self.double_quant or self.scheme in DOUBLE, "--double-quant", _and(DOUBLE))
        QuantConfig(self.scheme, self.group_size, self.kv_bits)
        _only(self.group_size is None or self._base.group is not None, "--group-size", "schemes with groups")
        if self.foreign and self.group_size is not None:
            _one_of("--group-size", self.group_size, BLOCK_SIZES)
        for pattern in self.skip_modules:
            _regular(pattern)
        for option, value in (("--head", self.head), ("--embedding", self.embedding)):
            _only(value is None or not self.foreign, option, "our own schemes; bitsandbytes leaves it in float")
            _one_of(option, value or FLOAT, [*PLAIN, FLOAT])
        for override in self.overrides:
            pattern, _, named = override.rpartition("=")
            scheme, colon, group = named.partition(":")
            if not pattern:
                raise UsageError(f"--override {override} has no pattern", remedy="write PATTERN=SCHEME")
            _one_of(f"--override {override}", scheme, [*(() if self.foreign else OWN), FLOAT])
            if colon and (scheme == FLOAT or not re.fullmatch("[1-9][0-9]{1,4}", group) or int(group) % GROUP):
                cause = f"--override {override} has no group that {scheme} could have"
                raise UsageError(cause, remedy=f"write a multiple of {GROUP}, as in PATTERN={self.scheme}:64")

    @property
    def _base(self) -> Scheme:
        return SCHEMES[self.scheme]

    @property
    def foreign(self) -> bool:
        """Whether the output is in bitsandbytes' own serialisation."""
        return self._base.foreign

    @property
    def calibrated(self) -> bool:
        """Whether a text is needed to see what the activations are like."""
        schemes = map(self.named, (self.scheme, *(each.rpartition("=")[2] for each in self.overrides)))
        return any(scheme.calibrated for scheme in schemes if scheme)

    def scheme_for(self, name: str, shape: tuple[int, ...]) -> Scheme | None:
        """The scheme of a tensor; None when it stays as it is: vectors, what is told so, widths no group divides."""
        if len(shape) != 2:
            return None
        scheme = self.named(self.name_for(name))
        return scheme if scheme and scheme.fits(shape[1]) else None

    def name_for(self, name: str) -> str:
        """What a matrix is to be: a scheme's name, perhaps with its group (`int4:64`), or "float"."""
        module = name.removesuffix(".weight")
        for matches, scheme in self._overriding:
            if matches(module):
                return scheme
        if any(fnmatchcase(module, f"*{pattern}*") for pattern in self.skip):
            return FLOAT
        if any(in_transformers(pattern, module) for pattern in self.skip_modules):
            return FLOAT
        if module.endswith((ROUTER, *UNMULTIPLIED)):
            return FLOAT
        if name in CLASSIFIERS:
            return self.head or FLOAT
        if name in OUTER:
            chosen = self.head if name == HEAD else self.embedding
            return chosen or (FLOAT if self.foreign else "int8")
        return self.scheme

    @cached_property
    def _overriding(self) -> list[tuple[Callable[[str], object], str]]:
        """The overrides, the last first: fnmatch forgets patterns where there are many, as a model of many layers has."""
        pairs = (override.rpartition("=")[::2] for override in reversed(self.overrides))
        return [(re.compile(translate(pattern)).match, scheme) for pattern, scheme in pairs]

    def overridden(self, name: str) -> bool:
        """Whether an override says what a matrix is to be."""
        return any(matches(name.removesuffix(".weight")) for matches, _ in self._overriding)

    def named(self, name: str) -> Scheme | None:
        """What name_for, or an override, calls so, with what the recipe says of its group and codebook."""
        kind, _, group = name.partition(":")
        scheme, size = SCHEMES.get(kind), int(group) if group else self.group_size if kind == self.scheme else None
        if scheme and size:
            scheme = replace(scheme, group=size)
        if scheme and scheme.codebook and self.codebook:
            scheme = replace(scheme, codebook=self.codebook)
        return scheme

    def told(self, name: str) -> bool:
        """Whether it is to be quantized, if its width allows."""
        return self.named(self.name_for(name)) is not None

    def left(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """The matrices that stay as they are."""
        return [name for name, shape in shapes.items() if len(shape) == 2 and self.scheme_for(name, shape) is None]

    def check(self, config: ModelSpec) -> None:
        """Raises UsageError for what this model has not, ModelError when there is nothing in it to quantize."""
        if self.head and config.tied_head:
            raise UsageError("--head was given, but this model's head is its embedding", remedy="use --embedding")
        modules = [name.removesuffix(".weight") for name in config.tensor_shapes()]
        for override, (matches, _) in zip(self.overrides, reversed(self._overriding), strict=True):
            if not any(map(matches, modules)):
                raise UsageError(f"--override {override} matches no module", remedy=f"names are like {modules[-3]}")
        if isinstance(config, EncoderDecoderSpec) and (self.foreign or self.calibrated):
            cause = "calibrates a decoder, layer by layer" if self.calibrated else "is written for decoders alone"
            cause = f"{self.scheme} {cause}, and this model has an encoder"
            raise ModelError(cause, "nothing was converted", f"use {' or '.join(PLAIN)}")
        if self.foreign and (beyond := beyond_hf(config)):
            cause = f"transformers has no Llama whose {beyond[0]} is {getattr(config, beyond[0])} beside the rest"
            raise ModelError(
                cause, f"{self.scheme} would write what nothing else can load", f"use {' or '.join(PLAIN)}"
            )
        if self.foreign and config.head == "span":
            raise ModelError(
                "transformers' classes that answer questions call the model below their head in two ways",
                f"{self.scheme} would write what some cannot load",
                f"use {' or '.join(PLAIN)}",
            )
        if self.foreign and joined_in_hf(config):
            raise ModelError(
                "transformers joins or stacks this model's matrices before bitsandbytes packs them",
                f"{self.scheme} would write what nothing else can load",
                f"use {' or '.join(PLAIN)}",
            )
        self._check_work(config.tensor_shapes())

    def _check_work(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Something must be quantized, and by the scheme itself where it was not told to leave all layers alone."""
        matrices = {name: shape[1] for name, shape in shapes.items() if len(shape) == 2}
        told = [name for name in matrices if self.told(name)]
        if not told:
            raise UsageError("every matrix is to stay in float", "nothing was converted", "leave one to quantize")
        wanted = [name for name in told if name not in OUTER] or told
        if not any(self.scheme_for(name, shapes[name]) for name in wanted):
            widths = ", ".join(map(str, sorted({matrices[name] for name in wanted})))
            least = self.group_size in (None, GROUP)
            raise ModelError(
                f"groups of {self.group_size or GROUP} weights divide no matrix of this model (widths {widths})",
                f"{self.scheme} has nothing to quantize; nothing was converted",
                f"{_and(ANY_WIDTH)} take any width" if least else "try another --group-size",
            )

    def quantization_config(self, shapes: Mapping[str, tuple[int, ...]], compute: str = "float32") -> dict[str, Any]:
        """What config.json says of a model with these tensors, in the vocabulary of whoever reads it.

        `compute`: the arithmetic for bitsandbytes. What it is to skip is named in full, so that every version of
        transformers leaves the same modules alone.
        """
        if not self.foreign:
            given = {key: value for key, value in asdict(self).items() if value not in (None, (), False)}
            return {"quant_method": self._base.storage.method, **given}
        eight = self._base.bits == 8
        names = (name.removesuffix(".weight") for name in self.left(shapes) if name not in OUTER)
        skipped = ["lm_head", *names]
        config = {"quant_method": self._base.storage.method, "load_in_8bit": eight, "load_in_4bit": not eight}
        if eight:
            return {**config, "llm_int8_skip_modules": skipped, "llm_int8_threshold": 6.0}
        return {
            **config,
            "llm_int8_skip_modules": skipped,
            "bnb_4bit_quant_type": self._base.codebook,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": compute,
            "bnb_4bit_quant_storage": "uint8",
        }


def read_recipe(path: Path) -> Recipe:
    """A quant_config file: our own options, or Hugging Face's or MindFormers' table, alone or inside a config.json."""
    raw: Mapping[str, Any] = read_json(path)
    raw = next((raw[key] for key in ("quantization_config", "quant_config") if key in raw), raw)
    if not isinstance(raw, Mapping) or raw.get("quant_method", OURS.method) != OURS.method or "load_in_4bit" in raw:
        recipe = from_config(quantization(raw, str(path)), double=bool(raw.get("bnb_4bit_use_double_quant")))
        return replace(recipe, skip=(), skip_modules=recipe.skip) if recipe.foreign else recipe
    given = {key: value for key, value in raw.items() if key != "quant_method"}
    if unknown := sorted(given.keys() - asdict(Recipe()).keys()):
        raise UsageError(f"{path}: unknown key {unknown[0]}", remedy=f"known are {', '.join(asdict(Recipe()))}")
    fields, lists = Fields(raw, str(path)), ("overrides", "skip", "skip_modules")
    options: dict[str, Any] = given | {key: fields.strings(key) for key in lists}
    return Recipe(**options | {"double_quant": fields.flag("double_quant", False)})


def from_config(config: QuantConfig | None, double: bool = False) -> Recipe:
    """The recipe of a catalog entry's or another project's settings. Raises UsageError when they quantize nothing."""
    if config is None:
        raise UsageError("the quantization settings quantize nothing", remedy="name a scheme")
    skip = tuple(pattern for pattern in config.skip if pattern != "lm_head" or not SCHEMES[config.scheme].foreign)
    return Recipe(config.scheme, config.group_size, double_quant=double, skip=skip, kv_bits=config.kv_bits)


def in_transformers(pattern: str, module: str) -> bool:
    """Whether transformers skips the module for this entry of llm_int8_skip_modules.

    It is a whole name's end, or a regular expression for its beginning up to a dot.
    """
    return module.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.)|$)", module) is not None


def _regular(pattern: str) -> None:
    try:
        re.compile(f"(?:{pattern})")
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"the module to skip {pattern!r:.80} is no regular expression ({error})") from error


def _one_of(option: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise UsageError(f"{option} is {value!r:.80}", remedy="known are " + ", ".join(map(str, known)))


def _and(names: Sequence[str]) -> str:
    """Joined for people: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _only(holds: bool, option: str, where: str) -> None:
    if not holds:
        raise UsageError(f"{option} is only for {where}", "nothing was converted")
