"""Text <-> token ids. Knows no roles: see dialog.py. The libraries' wrappers are in llamachat.tokenizers, one each."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llamachat.errors import FormatError, reader, reading

GGUF_VOCABULARY = "tokenizer.gguf.json"  # in a folder converted from a GGUF file: its `tokenizer.ggml.*` keys


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
    dummy_prefix: bool  # a text's first space is the tokenizer's own: `decode` drops it

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of plain text: no BOS, and text that spells a control token is encoded as ordinary text."""
        ...

    def encode_skeleton(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of text written by a dialog format or template, in which control tokens are recognised.

        The text after a control token gets no dummy space, except where tokenizer.json asks for one.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that this token adds in the middle of a text; b"" for a control token or an unused id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids at once; control tokens are left out, invalid UTF-8 becomes U+FFFD."""
        ...


@reader
def open_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: tokenizer.json, else tokenizer.model, whose content tells its kind, else
    the vocabulary of the GGUF file that it was converted from.

    tokenizer_config.json, where it exists, names BOS and EOS. Raises FormatError when there is none or it is damaged.
    """
    from llamachat.metadata import read_json
    from llamachat.tokenizers import hf, meta, spm
    from llamachat.tokenizers.base import read

    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if (path := folder / "tokenizer.json").is_file():
        return hf.from_json(read(path), config, str(path))
    if (path := folder / GGUF_VOCABULARY).is_file():
        return from_gguf(read_json(path))
    if not (path := folder / "tokenizer.model").is_file():
        raise FormatError(f"{folder} has no tokenizer.json or tokenizer.model", "its model cannot read", "add it")
    data = read(path)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data):
        return meta.from_tiktoken(data, str(path))
    return spm.from_proto(data, config, str(path))


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in GGUF metadata: raw `tokenizer.*` keys and plain Python values; other keys are not looked at.

    `tokenizer.ggml.model` may be "gpt2" (byte-level BPE) or "llama" (sentencepiece). Raises FormatError.
    """
    from llamachat.tokenizers import gguf

    with reading("the vocabulary of the GGUF file"):
        return gguf.from_metadata(metadata)
