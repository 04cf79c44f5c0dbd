"""Torch's zipped pickles (.pth, .bin, .pt), through torch's restricted unpickler and mapped.

A pickle is a program. Before torch sees a file, its archive is checked to be whole and not compressed, and its pickle,
disassembled but not run, to call nothing but what builds a dictionary of tensors, and not to copy without end. Where a
training script saved its arguments too (Megatron-LM), classes of ours, which do nothing, stand for the few that such a file
names besides.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamachat.checks import shown
from llamachat.core.tensors import Array
from llamachat.errors import FormatError, reader, reading
from llamachat.formats.pickle_machine import Machine
from llamachat.system.mapped import is_mapped

AXES = 8  # of a tensor; a weight has two, and numpy at most 64
PICKLE_LIMIT = (
    4 << 20
)  # bytes, and items copied; 10,000 tensors take half of it, and reading it all some seconds and 300 MB
STORAGES = ("Float", "Half", "BFloat16", "Byte", "Char", "Int", "Long")
ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"} | {
    f"torch {kind}Storage" for kind in STORAGES
}
OPCODES_WITH_NAMES = ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ", "NEWOBJ_EX")
ENCODE, AS_BYTES = "_codecs encode", "latin1"  # which makes bytes of a text, in the protocol that has no bytes
DTYPES = {f"torch {name}" for name in ("float32", "float16", "bfloat16", "float64", "uint8", "int64", "int32")}
ARGUMENTS = "argparse Namespace"
UNREAD = {  # states of random numbers, paths and the like
    *(f"numpy{core}.multiarray {name}" for core in (".core", "._core") for name in ("_reconstruct", "scalar")),
    *("numpy ndarray", "numpy dtype", "pathlib PosixPath", "_io BytesIO"),
}
ENUMERATION = re.compile(r"megatron\.[\w.]+ \w+")


class Arguments:
    """Stands for argparse's Namespace: its attributes are what the file says."""


class Unread:
    """Stands for anything that is not needed, and drops what it is given."""

    def __init__(self, *given: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class Saved:
    """What a training script saved: its arguments, and the model's tensors by name."""

    arguments: Mapping[str, Any]
    tensors: Mapping[str, Array]


@reader
def read_pickled(path: Path) -> dict[str, Array]:
    """Each tensor of a saved state dict by name, mapped, bfloat16 as uint16. Raises FormatError; runs no code."""
    _check_archive(path, ALLOWED)
    return _arrays(path, _loaded(path))


@reader
def read_saved(path: Path) -> Saved:
    """The same of a state dict that stands under "model", with the arguments under "args". None and what stands for
    something else are no tensors and left out."""
    named = _check_archive(path, ALLOWED | DTYPES | UNREAD | {ARGUMENTS, ENCODE}, ENUMERATION)
    stand_ins = dict.fromkeys(named & UNREAD | set(filter(ENUMERATION.fullmatch, named)), Unread)
    with _standing_in({**stand_ins, ARGUMENTS: Arguments}):
        values = _loaded(path)
    arguments, model = (
        (dict.get(values, key) for key in ("args", "model")) if isinstance(values, dict) else (None, None)
    )
    if not isinstance(arguments, Arguments) or not isinstance(model, dict):
        raise FormatError(f"{path} has no args and model", "it is no checkpoint of Megatron-LM's", "check the path")
    told = {str(key): _plain(value) for key, value in vars(arguments).items()}
    return Saved(told, _arrays(path, {k: v for k, v in dict.items(model) if v is not None and not _stands_in(v)}))


def _stands_in(value: object) -> bool:
    return isinstance(value, Unread | Arguments)


def _plain(value: Any) -> Any:
    """What a reader of settings can do something with: values as JSON has them. Others are named."""
    if isinstance(value, list | tuple):
        return [_plain(each) if isinstance(each, str | int | float | bool | None) else "..." for each in value]
    return value if isinstance(value, str | int | float | bool | None) else f"<{type(value).__name__}>"


@contextmanager
def _standing_in(classes: Mapping[str, type]) -> Iterator[None]:
    import torch

    with torch.serialization.safe_globals([(kind, name.replace(" ", ".")) for name, kind in classes.items()]):
        yield


def _loaded(path: Path) -> Any:
    import torch

    with reading(f"{path} is not a usable torch checkpoint"):
        is_mapped(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _arrays(path: Path, state: Any) -> dict[str, Array]:
    if not isinstance(state, dict):
        raise FormatError(f"{path} holds a {type(state).__name__}", "a dictionary of tensors is needed")
    return {name: _array(path, name, tensor) for name, tensor in dict.items(state)}  # it may hold an `items` of its own


def _check_archive(path: Path, allowed: Set[str], further: re.Pattern[str] = re.compile(r"(?!)")) -> set[str]:
    """The names that its pickle calls, of which each is allowed or one of `further`."""
    what, age = f"{path} is not a zipped torch checkpoint", "it is damaged, or was saved by a torch older than 1.6"
    remedy = "fetch it again, or save it again with a newer torch"
    with reading(what, FormatError, age, remedy), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        # the first entry at 0 and no comment: every reader of zips finds the same directory in the file
        whole = not archive.comment and len({entry.filename for entry in entries}) == len(entries)
        whole = whole and min((entry.header_offset for entry in entries), default=1) == 0
        if not whole or len(pickles) != 1 or pickles[0].file_size > PICKLE_LIMIT:
            raise FormatError(f"{path} is not an archive as torch.save writes it")
        _check_entries(path, entries)
        return _check_pickle(path, archive.read(pickles[0]), allowed, further)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or entry.header_offset + entry.file_size > size:
            raise FormatError(
                f"{path}: entry {shown(entry.filename)} is compressed or larger than the file", "it is not read"
            )


def _check_pickle(path: Path, program: bytes, allowed: Set[str], further: re.Pattern[str]) -> set[str]:
    named, machine = set[str](), Machine()
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in OPCODES_WITH_NAMES and not (opcode.name == "NEWOBJ" and ARGUMENTS in allowed):
            good = argument in allowed or (isinstance(argument, str) and further.fullmatch(argument))
            if not good:
                raise _refusal(path, f"{opcode.name} {argument}")
            named.add(str(argument))
        if opcode.name == "PROTO" and argument != 2:  # torch's own; of others it warns
            raise _refusal(path, f"{opcode.name} {argument}")
        call = machine.step(opcode.name, argument)
        if call and call.name == ENCODE and call.given[1:] != (AS_BYTES,):
            raise _refusal(path, f"an encoding that is not {AS_BYTES}")
        if machine.copied > PICKLE_LIMIT:
            raise FormatError(
                f"{path} is a pickle that copies what it holds again and again", "it would fill the memory"
            )
    return named


def _refusal(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path} is a pickle that asks for {shown(what)}",
        "it may run code and was not loaded",
        "use a safetensors version of this model",
    )


def _array(path: Path, name: object, tensor: object) -> Array:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise FormatError(f"{path} has {shown(name)}, a {type(tensor).__name__}", "a dictionary of tensors is needed")
    if not 0 < tensor.nbytes <= tensor.untyped_storage().nbytes():  # strides of 0: small in the file, huge when copied
        raise FormatError(f"{shown(name)} in {path} is empty, or larger than its bytes", "it is no weight")
    if tensor.ndim > AXES:
        raise FormatError(f"{shown(name)} in {path} has {tensor.ndim} axes", "it is no weight")
    with reading(
        f"{shown(name)} in {path} is of a kind that is not read"
    ):  # torch's lazily negated or conjugated tensors
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
