"""Torch's zipped pickles (.pth, .bin), through torch's restricted unpickler and mapped.

A pickle is a program. Before torch sees a file, its archive is checked to be whole and not compressed, and its pickle,
disassembled but not run, to call nothing but what builds a dictionary of tensors.
"""

import pickletools
import zipfile
from pathlib import Path

from llamachat.checks import shown
from llamachat.core.tensors import Array
from llamachat.errors import FormatError, reader, reading
from llamachat.system.mapped import is_mapped

AXES = 8  # of a tensor; a weight has two, and numpy at most 64
PICKLE_LIMIT = 4 << 20  # bytes; 10,000 tensors take half of it, and reading it all some seconds and 300 MB
STORAGES = ("Float", "Half", "BFloat16", "Byte", "Char", "Int", "Long")
ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"} | {
    f"torch {kind}Storage" for kind in STORAGES
}
OPCODES_WITH_NAMES = ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ", "NEWOBJ_EX")


@reader
def read_pickled(path: Path) -> dict[str, Array]:
    """Each tensor of a saved state dict by name, mapped, bfloat16 as uint16. Raises FormatError; runs no code."""
    import torch

    _check_archive(path)
    with reading(f"{path} is not a usable torch checkpoint"):
        is_mapped(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict):
        raise FormatError(f"{path} holds a {type(state).__name__}", "a dictionary of tensors is needed")
    return {name: _array(path, name, tensor) for name, tensor in dict.items(state)}  # it may hold an `items` of its own


def _check_archive(path: Path) -> None:
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
        _check_pickle(path, archive.read(pickles[0]))


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or entry.header_offset + entry.file_size > size:
            raise FormatError(
                f"{path}: entry {shown(entry.filename)} is compressed or larger than the file", "it is not read"
            )


def _check_pickle(path: Path, program: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(program):
        calls = opcode.name in OPCODES_WITH_NAMES and argument not in ALLOWED
        if calls or (opcode.name == "PROTO" and argument != 2):  # torch's own protocol; of others it warns
            raise FormatError(
                f"{path} is a pickle that asks for {shown(f'{opcode.name} {argument}')}",
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
