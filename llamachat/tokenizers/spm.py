"""sentencepiece models: a tokenizer.model file, or one assembled from a GGUF file's vocabulary."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llamachat.tokenizers.base import (
    TextTokenizer,
    content,
    damaged,
    is_control_shaped,
    is_tag_shaped,
    library_errors,
    token_names,
)

USER_DEFINED, BYTE = 4, 6  # ModelProto.SentencePiece.Type
# In protobuf, the second occurrence of a submessage amends the first. So this field at the end turns the dummy prefix
# off, and a "▁" before the text does the same by hand, where it is wanted.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # normalizer_spec { add_dummy_prefix: false }
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_MAX_ADDED = 1 << 16
_LONGEST_REPLACEMENT = 64  # bytes; NFKC needs 33


def from_proto(data: bytes, config: Mapping[str, Any], where: str) -> TextTokenizer:
    """`data` is a ModelProto; `config` is tokenizer_config.json's, which may have tokens beyond the model's own."""
    with library_errors(where):
        maps = [value for key, spec in _fields(data) if key == 3 for part, value in _fields(spec) if part == 2]
        refuse_long_replacements(maps, where)
        library = _load(data)
        added = dict(_added(config, library.vocab_size()))
        own = {"bos_token": library.bos_id(), "eos_token": library.eos_id(), "unk_token": library.unk_id()}
        names = {key: library.id_to_piece(i) for key, i in own.items() if i >= 0} | token_names(config)
        bos, eos = (_id(library, added, names.get(key)) for key in ("bos_token", "eos_token"))
        return from_library(
            library,
            _user_defined(data),
            added,
            bos_id=bos if config.get("add_bos_token") is not False else None,
            eos_ids=frozenset({eos} if eos is not None else {}),
            names=names,
            dummy_prefix=library.normalize("a") != "a",
        )


def refuse_long_replacements(charsmaps: Iterable[bytes], where: str) -> None:
    """A normalizer's table may stand for one character with megabytes, and a short text then fills the memory.

    The table is the length of a trie, the trie, and what replaces its entries, each text ended by a zero byte.
    """
    for charsmap in charsmaps:
        texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
        if max(map(len, texts)) > _LONGEST_REPLACEMENT:
            raise damaged(where, f"it replaces a character by more than {_LONGEST_REPLACEMENT} bytes")


def from_library(
    library: Any, user_defined: Iterable[int], added: Mapping[str, int], *, dummy_prefix: bool, **metadata: Any
) -> TextTokenizer:
    """Around a SentencePieceProcessor; `added` are control tokens that it does not have, `metadata` TextTokenizer's."""
    pieces: list[str] = library.id_to_piece(list(range(library.vocab_size())))
    plain = _load(library.serialized_model_proto() + _NO_DUMMY_PREFIX)
    marked = {pieces[i]: i for i in user_defined if is_tag_shaped(pieces[i])}
    control = {piece: i for i, piece in enumerate(pieces) if library.is_control(i) or library.is_unknown(i)}

    def piece(token: int) -> bytes:
        if token >= len(pieces) or library.is_unused(token):
            return b""
        text = pieces[token]
        return bytes([int(text[3:5], 16)]) if library.is_byte(token) else text.replace("▁", " ").encode()

    return TextTokenizer(
        ids=lambda text, start: plain.encode("▁" + text if start and dummy_prefix and text else text),
        piece=piece,
        vocab_size=max([len(pieces), *(i + 1 for i in added.values())]),
        specials={**control, **{name: i for name, i in marked.items() if is_control_shaped(name)}, **added},
        tags=marked,
        unk_id=library.unk_id(),
        dummy_prefix=dummy_prefix,
        **metadata,
    )


def assemble(tokens: Iterable[str], scores: Iterable[float], types: Iterable[int]) -> Any:
    """A SentencePieceProcessor of the BPE kind from a vocabulary with sentencepiece's (and ggml's) types."""
    head = struct.Struct("<BfBB")  # score, type
    pieces = (
        _field(1, _field(1, token.encode()) + head.pack(2 << 3 | 5, score, 3 << 3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    byte_fallback = b"\x98\x02\x01" if BYTE in types else b""
    trainer = _field(2, b"\x18\x02" + byte_fallback)  # model_type: BPE
    normalizer = _field(3, _field(1, b"identity") + b"\x18\x00\x20\x00")  # no dummy prefix, keep all spaces
    return _load(b"".join(pieces) + trainer + normalizer)


def _load(data: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    if not data:
        raise ValueError("it is empty")  # which the library would not mind before it is used
    return SentencePieceProcessor(model_proto=data)


def _id(library: Any, added: Mapping[str, int], name: str | None) -> int | None:
    if name is None or name in added:
        return added.get(name or "")
    token: int = library.piece_to_id(name)
    return token if library.id_to_piece(token) == name else None


def _added(config: Mapping[str, Any], size: int) -> Iterator[tuple[str, int]]:
    """(token, id) of tokenizer_config.json's added tokens that the model does not have."""
    added = config.get("added_tokens_decoder")
    for key, value in (added if isinstance(added, dict) else {}).items():
        name = content(value)
        if name is not None and key.isdecimal() and len(key) < 9 and size <= int(key) < size + _MAX_ADDED:
            yield name, int(key)


def _user_defined(data: bytes) -> list[int]:
    """Ids of the pieces that are found in any text as a whole; the library does not tell."""
    ending = bytes([3 << 3, USER_DEFINED])  # SentencePiece.type, its last field
    pieces = [value for key, value in _fields(data) if key == 1]
    return [i for i, piece in enumerate(pieces) if piece.endswith(ending)]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of a protobuf message's length-delimited fields; others are passed over."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 in _FIXED:
            at += _FIXED[tag & 7]
            continue
        value, at = _varint(data, at)
        if tag & 7 == 2:
            yield tag >> 3, data[at : at + value]
            at += value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 128 and shift < 63:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _field(number: int, value: bytes) -> bytes:
    size, digits = len(value), b""
    while size > 127:
        digits, size = digits + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + digits + bytes([size]) + value
