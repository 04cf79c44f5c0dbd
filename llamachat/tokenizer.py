"""Text <-> token ids. Knows no roles: see dialog.py. The libraries' wrappers are in llamachat.tokenizers, one each."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llamachat.errors import FormatError, reader, reading

GGUF_VOCABULARY = "tokenizer.gguf.json"  # in a folder converted from a GGUF file: its `tokenizer.ggml.*` keys
FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    GGUF_VOCABULARY,
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
)


class Tokenizer(Protocol):
    """`encode` treats its text as plain data: no input can make it return a control token.

    Some tokenizers (sentencepiece's) put a dummy space before a text. They do so here where `start` is true, which says
    that the text begins a sequence or follows its BOS; a text that continues another is encoded with `start=False`.
    """

    vocab_size: int  # ids are below this
    bos_id: int | None  # what a text must begin with; None where the model wants nothing there
    eos_ids: frozenset[int]  # every id that the model's own metadata says ends a sequence or a turn
    specials: Mapping[str, int]  # control tokens by name, e.g. "<|eot_id|>"
    names: Mapping[str, str]  # which tokens a chat template calls "bos_token", "eos_token", ...
    notes: Sequence[str]  # what in its files was ignored, a line each
    dummy_prefix: bool  # a text's first space is the tokenizer's own: `decode` drops it

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of plain text: no BOS, and text that spells a control token is encoded as ordinary text."""
        ...

    def encode_skeleton(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of text written by a dialog format or template, in which control tokens are recognised.

        Which control tokens a dummy space follows is said by `starts_after`: BOS, or all where the tokenizer's files ask.
        """
        ...

    def encode_spans(
        self,
        spans: Iterable[tuple[str, bool]],
        *,
        start: bool = True,
        plain: Callable[[Sequence[tuple[str, bool]], bool], list[int]] | None = None,
    ) -> list[int]:
        """Ids of one text in spans, in which control tokens are recognised where the flag says that a format wrote it.

        `plain` stands for `encode`: it is given what lies between two control tokens.
        """
        ...

    def starts_after(self, ids: Sequence[int]) -> bool:
        """Whether a text behind these is to be encoded with `start`."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that this token adds in the middle of a text; b"" for a control token or an unused id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids at once; control tokens are left out, invalid UTF-8 becomes U+FFFD."""
        ...


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint's folder that decide what its tokenizer does."""
    return tuple(folder / name for name in FILES if (folder / name).is_file())


@reader
def open_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: tokenizer.json, else the vocabulary of the GGUF file that it was converted
    from, else tokenizer.model. Raises FormatError when there is none or it is damaged.
    """
    for name in ("tokenizer.json", GGUF_VOCABULARY, "tokenizer.model"):
        if (path := folder / name).is_file():
            return open_file(path)
    raise FormatError(f"{folder} has no tokenizer.json or tokenizer.model", "its model cannot read", "add it")


@reader
def open_file(path: Path) -> Tokenizer:
    """The tokenizer in one of these files, or in a tokenizer.model of another name, whose content tells its kind.

    The files beside it (tokenizers/side.py) name BOS and EOS and may add tokens. Raises FormatError.
    """
    from llamachat.metadata import read_json
    from llamachat.tokenizers import hf, meta, spm
    from llamachat.tokenizers.base import read
    from llamachat.tokenizers.side import read_side

    side = read_side(path.parent)
    if path.name == GGUF_VOCABULARY:
        return from_gguf(read_json(path))
    data = read(path)
    if path.suffix == ".json":
        return hf.from_json(data, side, str(path))
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data):
        return meta.from_tiktoken(data, str(path))
    return spm.from_proto(data, side, str(path))


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in GGUF metadata: raw `tokenizer.*` keys and plain Python values; other keys are not looked at.

    `tokenizer.ggml.model` may be "gpt2" (byte-level BPE) or "llama" (sentencepiece). Raises FormatError.
    """
    from llamachat.tokenizers import gguf

    with reading("the vocabulary of the GGUF file"):
        return gguf.from_metadata(metadata)
