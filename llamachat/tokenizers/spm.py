"""sentencepiece models: a tokenizer.model file, or one assembled from a GGUF file's vocabulary."""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import cache
from itertools import count
from typing import Any

from llamachat.tokenizers.side import Added, Side
from llamachat.tokenizers.text_tokenizer import (
    TextTokenizer,
    damaged,
    framed,
    is_control_shaped,
    is_tag_shaped,
    library_errors,
)

USER_DEFINED, UNUSED, BYTE = 4, 5, 6  # ModelProto.SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_LONGEST_REPLACEMENT = 64  # bytes; NFKC needs 33


def from_proto(data: bytes, side: Side, where: str) -> TextTokenizer:
    """`data` is a ModelProto; `side` is what the files beside it say, which may have tokens beyond the model's own."""
    with library_errors(where):
        maps = [value for key, spec in _fields(data) if key == 3 for part, value in _fields(spec) if part == 2]
        refuse_long_replacements(maps, where)
        library = _load(data)
        side = side.within(library.vocab_size())
        added = {**sentinels(library.vocab_size(), side.extra_ids), **side.added}
        own = {"bos_token": library.bos_id(), "eos_token": library.eos_id(), "unk_token": library.unk_id()}
        names = {key: library.id_to_piece(i) for key, i in own.items() if i >= 0} | dict(side.names)
        bos, eos = (_id(library, added, names.get(key)) for key in ("bos_token", "eos_token"))
        named = {names[key]: Added(i, True) for key, i in (("bos_token", bos), ("eos_token", eos)) if i is not None}
        begins = bos if side.adds_bos is not False else None
        return from_library(
            library,
            _user_defined(data),
            {**added, **named},
            bos_id=begins,
            frames=framed(begins, eos if side.adds_eos else None),
            eos_ids=frozenset({eos} if eos is not None else {}),
            names=names,
            dummy_prefix=library.normalize("a") != _load(data + _dummy_prefix(False)).normalize("a"),
            prefix_after_special=side.legacy is True or side.t5,
            prefix_after_bos=side.legacy is not False,
            notes=side.notes,
        )


def sentinels(size: int, number: int) -> dict[str, Added]:
    """T5's extra tokens behind a vocabulary of `size`, which stand for what is left out of a text: the last comes first."""
    return {f"<extra_id_{i}>": Added(size + number - 1 - i, True) for i in range(number)}


def refuse_long_replacements(charsmaps: Iterable[bytes], where: str) -> None:
    """A normalizer's table may stand for one character with megabytes, and a short text then fills the memory.

    The table is the length of a trie, the trie, and what replaces its entries, each text ended by a zero byte.
    """
    for charsmap in charsmaps:
        texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
        if max(map(len, texts)) > _LONGEST_REPLACEMENT:
            raise damaged(where, f"it replaces a character by more than {_LONGEST_REPLACEMENT} bytes")


def from_library(
    library: Any, user_defined: Iterable[int], added: Mapping[str, Added], *, dummy_prefix: bool, **metadata: Any
) -> TextTokenizer:
    """Around a SentencePieceProcessor; `metadata` is TextTokenizer's.

    `added` are tokens that it does not have, or has as something else: as text what is a control token.
    """
    pieces: list[str] = library.id_to_piece(list(range(library.vocab_size())))
    given = {token.id: name for name, token in added.items()}
    control = [i for i in range(len(pieces)) if library.is_control(i) or library.is_unknown(i)]
    own = {pieces[i]: Added(i, special) for ids, special in ((user_defined, False), (control, True)) for i in ids}
    tokens = {name: token for name, token in own.items() if token.id not in given} | dict(added)
    specials = {name: token.id for name, token in tokens.items() if token.special or is_control_shaped(name)}
    tags = {name: token.id for name, token in tokens.items() if name not in specials and is_tag_shaped(name)}
    words = {n: t.id for n, t in added.items() if t.id >= len(pieces) and n not in specials and n not in tags}

    def piece(token: int) -> bytes:
        if token >= len(pieces) or library.is_unused(token):
            return given.get(token, "").encode()
        text = pieces[token]
        return bytes([int(text[3:5], 16)]) if library.is_byte(token) else text.replace("▁", " ").encode()

    return TextTokenizer(
        ids=_finding(words, _encoder(_without(library, set(specials.values())), dummy_prefix)),
        piece=piece,
        vocab_size=max([len(pieces), *(token.id + 1 for token in added.values())]),
        specials=specials,
        tags=tags,
        unk_id=library.unk_id(),
        dummy_prefix=dummy_prefix,
        strips={name: token.strips for name, token in added.items()},
        **metadata,
    )


def _encoder(model: bytes, dummy_prefix: bool) -> Callable[[str, bool], list[int]]:
    """(text, does it start a sequence) -> ids.

    The library itself puts the dummy prefix, whose place among the spaces before a text only its normalizer knows. Where
    that drops the spaces before a text, one of them stands before a text that continues another.
    """

    @cache
    def library(prefix: bool) -> Any:
        return _load(model + _dummy_prefix(prefix))

    def spaced(text: str) -> bool:
        normal = library(False).normalize
        return bool(normal("a" + text) == "a▁" + normal(text))

    return lambda text, start: library(dummy_prefix if start else spaced(text)).encode(text)


def _dummy_prefix(wanted: bool) -> bytes:
    """What turns it on or off at the end of a model: in protobuf the second occurrence of a message amends the first."""
    return _field(3, bytes([3 << 3, wanted]))  # normalizer_spec { add_dummy_prefix }


def _without(library: Any, specials: Set[int]) -> bytes:
    """The model, in which pieces that are control tokens but look like text are unused.

    Such a piece takes part in merges, and is then taken apart again: no text gives it, and longer ones are still found.
    """

    def looks_like_text(token: int) -> bool:
        if token >= library.vocab_size() or library.is_unknown(token):
            return False
        return not (library.is_control(token) and is_tag_shaped(library.id_to_piece(token)))

    data: bytes = library.serialized_model_proto()
    unused = set(filter(looks_like_text, specials))
    if not unused:
        return data
    number, fields = count(), list[bytes]()
    for key, value in _fields(data):
        hidden = key == 1 and next(number) in unused
        fields.append(_field(key, value + bytes([3 << 3, UNUSED]) if hidden else value))
    return b"".join(fields)


def _finding(words: Mapping[str, int], ids: Callable[[str, bool], list[int]]) -> Callable[[str, bool], list[int]]:
    """`ids`, with these words found in a text before everything else."""
    if not words:
        return ids
    word = re.compile(f"({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})")

    def found(text: str, start: bool) -> list[int]:
        parts = enumerate(word.split(text))
        return [i for at, part in parts for i in ([words[part]] if at % 2 else ids(part, start and not at))]

    return found


def assemble(
    tokens: Iterable[str], scores: Iterable[float], types: Iterable[int], normalizer: bytes = b"", model: int = BPE
) -> Any:
    """A SentencePieceProcessor from a vocabulary with sentencepiece's (and ggml's) types.

    `normalizer`: a NormalizerSpec; without one a text stays as it is.
    """
    head = struct.Struct("<BfBB")  # score, type
    pieces = (
        _field(1, _field(1, token.encode()) + head.pack(2 << 3 | 5, score, 3 << 3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    byte_fallback = b"\x98\x02\x01" if BYTE in types else b""
    trainer = _field(2, bytes([3 << 3, model]) + byte_fallback)  # model_type
    return _load(b"".join(pieces) + trainer + _field(3, normalizer or normalizing()))


def normalizing(charsmap: bytes = b"", merges_spaces: bool = False) -> bytes:
    """A NormalizerSpec without a dummy prefix: characters are replaced by a charsmap, and spaces merged or kept."""
    return _field(1, b"given") + _field(2, charsmap) + bytes([3 << 3, 0, 4 << 3, merges_spaces])


def _load(data: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    if not data:
        raise ValueError("it is empty")  # which the library would not mind before it is used
    return SentencePieceProcessor(model_proto=data)


def _id(library: Any, added: Mapping[str, Added], name: str | None) -> int | None:
    if name is None or name in added:
        return added[name].id if name else None
    token: int = library.piece_to_id(name)
    return token if library.id_to_piece(token) == name else None


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
