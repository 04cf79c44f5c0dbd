"""The tokenizer in a checkpoint's files, whichever library it takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, reader, reading

GGUF_VOCABULARY = "tokenizer.gguf.json"  # in a folder converted from a GGUF file: its `tokenizer.ggml.*` keys
FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    GGUF_VOCABULARY,
    "tokenizer.model",
    "spiece.model",  # T5's name for it
    "added_tokens.json",
    "special_tokens_map.json",
)


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint's folder that decide what its tokenizer does."""
    return tuple(folder / name for name in FILES if (folder / name).is_file())


@reader
def open_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: tokenizer.json, else the vocabulary of the GGUF file that it was converted
    from, else tokenizer.model or spiece.model. Raises FormatError when there is none or it is damaged.
    """
    for name in ("tokenizer.json", GGUF_VOCABULARY, "tokenizer.model", "spiece.model"):
        if (path := folder / name).is_file():
            return open_file(path)
    raise FormatError(f"{folder} has no tokenizer.json or tokenizer.model", "its model cannot read", "add it")


@reader
def open_file(path: Path) -> Tokenizer:
    """The tokenizer in one of these files, or in a tokenizer.model of another name, whose content tells its kind.

    The files beside it (tokenizers/side.py) name BOS and EOS and may add tokens. Raises FormatError.
    """
    from llamachat.system.metadata import read_json
    from llamachat.tokenizers import hf, meta, spm
    from llamachat.tokenizers.side import read_side
    from llamachat.tokenizers.text_tokenizer import read

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

    `tokenizer.ggml.model` may be "gpt2" (byte-level BPE), "llama" or "t5" (sentencepiece: BPE, unigram). Raises FormatError.
    """
    from llamachat.tokenizers import gguf

    with reading("the vocabulary of the GGUF file"):
        return gguf.from_metadata(metadata)
