"""Which GGUF file of a repository is the one to take: by their names and sizes alone, as a hub lists them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from llamachat.errors import CatalogError

# What most people want first: 4 bits a weight, then more, which is larger, then less, which is worse; floats come last.
ORDER = (
    "Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_K", "Q4", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4_MOE", "MXFP4",
    "Q5_K_M", "Q5_K_L", "Q5_K_XL", "Q5_K_S", "Q5_K", "Q5", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q6",
    "Q8_0", "Q8_K_XL", "Q8", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K", "Q3", "Q2_K_L", "Q2_K", "Q2_K_S", "Q2",
    "", "BF16", "F16", "F32",
)  # fmt: skip
DYNAMIC = "UD-"  # before a quant whose layers are of several types, those of fewer bits also of ones that are not read
QUANT = re.compile(
    r"(?<![A-Z0-9])(UD-)?(BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4|TQ\d_\d|I?Q\d(?:_(?:\d|K|XXS|XS|S|M|L|XL|XXL|NL))*)(?![A-Z0-9])"
)
PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})")
NO_MODEL = re.compile(r"mmproj|imatrix|(?:^|[-_./])(?:vocab|lora)(?:[-_./]|$)", re.IGNORECASE)
TOLD, LONGEST = 40, 500  # names in an error, and characters of them


@dataclass(frozen=True)
class GGUFFile:
    """A model in one file, or in several parts."""

    parts: tuple[str, ...]  # names in the repository, in order
    size: int  # bytes of all
    quant: str  # "" where the name tells none

    @property
    def name(self) -> str:
        """Of the first part, which names the others."""
        return self.parts[0]


def normal(quant: str) -> str:
    """One way to write a quant: 'q4_k_m' is 'Q4_K_M', 'fp16' is 'F16'."""
    return quant.upper().replace("FP16", "F16").replace("FP32", "F32")


def quant_of(name: str) -> str:
    """The quant that a file's name, or its folder's, ends with; "" where it tells none."""
    folder, _, file = name.upper().removesuffix(".GGUF").rpartition("/")
    named = [found[0] for found in QUANT.finditer(_stem(file))]
    whole = QUANT.fullmatch(folder.rpartition("/")[2])
    return normal(named[-1]) if named else normal(whole[0]) if whole else ""


def _stem(file: str) -> str:
    """A name without the number of its part."""
    match = PART.fullmatch(file.replace("-OF-", "-of-"))
    return match["stem"] if match else file


def parts_of(name: str) -> tuple[str, ...]:
    """The names of all parts of a split file, by any one's; or the file alone."""
    match = PART.fullmatch(name.removesuffix(".gguf"))
    if match is None:
        return (name,)
    count = int(match["count"])
    return tuple(f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def models(sizes: Mapping[str, int]) -> list[GGUFFile]:
    """The models in these files (name -> bytes), whole ones only, in the order of ORDER."""
    together: dict[str, list[str]] = {}
    for name in sizes:
        if name.endswith(".gguf") and not NO_MODEL.search(name):
            together.setdefault(_first(name), []).append(name)
    whole = (
        GGUFFile(tuple(sorted(names)), sum(sizes[name] for name in names), quant_of(first))
        for first, names in together.items()
        if len(names) == _count(first) and first in names
    )
    return sorted(whole, key=lambda each: (_rank(each.quant), each.name))


def _first(name: str) -> str:
    match = PART.fullmatch(name.removesuffix(".gguf"))
    return f"{match['stem']}-00001-of-{match['count']}.gguf" if match else name


def _count(name: str) -> int:
    match = PART.fullmatch(name.removesuffix(".gguf"))
    return int(match["count"]) if match else 1


def _rank(quant: str) -> float:
    plain = quant.removeprefix(DYNAMIC)
    rank = ORDER.index(plain) if plain in ORDER else len(ORDER)
    return rank + 0.5 * (plain != quant)


@lru_cache(1024)
def is_read(quant: str) -> bool:
    """Whether files of this quant, by its name, have only weights of types that are read."""
    from llamachat.formats.ggml import TYPES

    kinds = "|".join(re.escape(kind.name) for kind in TYPES.values())
    return not quant or re.fullmatch(rf"(?:{DYNAMIC})?(?:(?:{kinds})(?:_[A-Z]+)*|Q[2-8]|Q8_K_XL)", quant) is not None


def choose(where: str, found: Sequence[GGUFFile], quant: str | None, fits: Callable[[int], bool]) -> GGUFFile:
    """The one of this quant, or (None) the `best`. found: as `models` gives it. Raises CatalogError."""
    if quant is not None:
        return _only(where, _named(where, found, quant))
    chosen = best(found, fits)
    if chosen is None:
        cause = f"{where} has no GGUF model that is read"
        raise CatalogError(cause, "nothing was fetched", _told(found) or "choose another repository")
    return _only(where, [each for each in found if each.quant == chosen.quant])


def best(found: Iterable[GGUFFile], fits: Callable[[int], bool]) -> GGUFFile | None:
    """The first that is read and fits, the smallest where none does; None where none is read. fits: so many bytes of weights."""
    able = [each for each in found if is_read(each.quant) and not _is_low_dynamic(each.quant)]
    fitting = next((each for each in able if fits(each.size)), None)
    return fitting or min(able, key=lambda each: each.size, default=None)


def sole(found: Sequence[GGUFFile], quant: str | None, fits: Callable[[int], bool]) -> GGUFFile | None:
    """As `choose`, of what is here; None where there is none, or where it is not clear which is meant."""
    if quant is None:
        chosen = best(found, fits)
        same = [each for each in found if chosen and each.quant == chosen.quant]
    else:
        same = _same(found, quant)
    return same[0] if len(same) == 1 else None


def _is_low_dynamic(quant: str) -> bool:
    return re.match(rf"{DYNAMIC}I?Q[123]", quant) is not None


def is_called(model: GGUFFile, quant: str) -> bool:
    """Whether the model is of this quant, as people write it: without the mark of the dynamic ones too."""
    return normal(quant) in (model.quant, model.quant.removeprefix(DYNAMIC))


def _named(where: str, found: Sequence[GGUFFile], quant: str) -> list[GGUFFile]:
    same = _same(found, quant)
    if not same:
        remedy = _told(found) or "it has no GGUF models"
        raise CatalogError(f"{where} has no {normal(quant)}", "nothing was fetched", remedy)
    if not is_read(same[0].quant):
        cause = f"{same[0].quant} of {where} is a kind of GGUF that is not read"
        raise CatalogError(cause, "nothing was fetched", _told([each for each in found if is_read(each.quant)]))
    return same


def _same(found: Iterable[GGUFFile], quant: str) -> list[GGUFFile]:
    """Those of this quant; where there are none, dynamic ones of it."""
    called = [each for each in found if is_called(each, quant)]
    return [each for each in called if each.quant == normal(quant)] or called


def _only(where: str, same: Sequence[GGUFFile]) -> GGUFFile:
    if len(same) == 1:
        return same[0]
    names = listed(each.name for each in same)
    cause = f"{where} has several models of {same[0].quant or 'one kind'}"
    raise CatalogError(cause, "it is not clear which is meant", f"name one, hf:{where}/FILE: {names}")


def _told(found: Iterable[GGUFFile]) -> str:
    quants = dict.fromkeys(each.quant for each in sorted(found, key=lambda each: each.size) if each.quant)
    return f"it has {listed(quants)}" if quants else ""


def listed(names: Iterable[str]) -> str:
    """Names for an error, however many there are, and however long."""
    all_names = list(names)
    told = all_names[:TOLD]
    while sum(map(len, told)) > LONGEST and len(told) > 1:
        told.pop()
    more = len(all_names) - len(told)
    return ", ".join(name[:LONGEST] for name in told) + (f" and {more} more" if more else "")
