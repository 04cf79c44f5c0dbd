"""tokenizer.json, Hugging Face's: byte-level BPE as Llama 3 has it, or sentencepiece's vocabulary in that form."""

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Set
from typing import Any

from llamachat.core.tokenizer import Frame
from llamachat.tokenizers.side import Added, Side
from llamachat.tokenizers.spm import refuse_long_replacements
from llamachat.tokenizers.text_tokenizer import (
    MAX_VOCABULARY,
    TextTokenizer,
    damaged,
    is_control_shaped,
    is_tag_shaped,
    library_errors,
)

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# GPT-2 writes each byte as one printable character: itself, or the next free one from U+0100 on
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}

_SPACE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def from_json(data: bytes, side: Side, where: str) -> TextTokenizer:
    """`data` is tokenizer.json; `side` is what the files beside it say, such as which tokens are BOS and EOS."""
    from tokenizers import Tokenizer

    with library_errors(where):
        library = Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # as text, that is
        last = max(library.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= last < MAX_VOCABULARY:
            raise damaged(where, f"its largest id is {last}")
        side = side.within(last + 1)
        passed = {token.content for token in library.get_added_tokens_decoder().values() if token.special}  # as text
        added = _added(library, side, where)
        _refuse_growth(library, where)
        prefix, after_special = _take_prefix(library, where)
        frames = {count: _frame(library, count) for count in (1, 2)}
        unknown = _unknown(library)
        specials = {name: token.id for name, token in added.items() if token.special or is_control_shaped(name)}
        _hide(library, set(specials.values()))
    begins = frames[1][0]
    bos, eos = (specials.get(side.names.get(key, "")) for key in ("bos_token", "eos_token"))
    adds_bos = bool(begins) and begins[0] in (bos, *specials.values()) if side.adds_bos is None else side.adds_bos
    bos_id = (bos if bos is not None else begins[0] if begins else None) if adds_bos else None
    if side.adds_bos is not None and bos is not None:
        frames = {count: _begun(frame, bos, side.adds_bos) for count, frame in frames.items()}
    return TextTokenizer(
        ids=lambda text, start: library.encode(prefix(text) if start else text, add_special_tokens=False).ids,
        piece=_pieces(library, {token.id: name for name, token in added.items()}, where),
        vocab_size=max([last, *(token.id for token in added.values())]) + 1,
        specials=specials,
        bos_id=bos_id,
        frames=frames,
        eos_ids=frozenset({eos} if eos is not None else {}),
        names=side.names,
        dummy_prefix=_drops_space(library),
        prefix_after_special=after_special,
        unk_id=specials.get(unknown or ""),
        tags={n: t.id for n, t in added.items() if n not in passed and (n in specials or is_tag_shaped(n))},
        strips={name: token.strips for name, token in added.items()},
        notes=side.notes,
    )


def _added(library: Any, side: Side, where: str) -> dict[str, Added]:
    """The tokens that are looked for as a whole: the file's own, further ones, and those that have a name.

    An id that the file itself gives goes before what is said beside it, as in transformers.
    """
    from tokenizers import AddedToken

    own = library.get_added_tokens_decoder().items()
    added = {t.content: Added(i, t.special, (t.lstrip, t.rstrip)) for i, t in own}
    for name, token in sorted(side.added.items(), key=lambda item: item[1].id):
        id = library.token_to_id(name)
        added[name] = token if id is None else token._replace(id=id)
        if id is None:
            library.add_tokens([AddedToken(name, normalized=False, special=token.special)])
        if id is None and library.token_to_id(name) != token.id and not (token.special or is_tag_shaped(name)):
            raise damaged(where, f"the token {name!r:.40} beside it, which is text, cannot have the id {token.id}")
    for key in ("bos_token", "eos_token", "unk_token"):
        name = side.names.get(key, "")
        id = library.token_to_id(name)
        if id is not None:
            added[name] = added.get(name, Added(id, True))._replace(special=True)
    return added


def _frame(library: Any, count: int) -> Frame:
    """What the library's last step puts around so many texts, seen on texts of one letter."""
    coding, found, text = library.encode(*["a"] * count), [list[int]() for _ in range(count + 1)], 0
    for of, id in zip(coding.sequence_ids, coding.ids, strict=True):
        if of is None:
            found[text].append(id)
        else:
            text = of + 1
    return tuple(map(tuple, found))


def _begun(frame: Frame, bos: int, begins: bool) -> Frame:
    """With BOS before each text, or without it, as the files beside a tokenizer say."""
    *parts, end = (tuple(id for id in part if id != bos) for part in frame)
    before = (bos,) if begins else ()
    return (*(part + before if at else before + part for at, part in enumerate(parts)), end)


def _state(part: Any) -> dict[str, Any]:
    """The JSON of a normalizer, pre-tokenizer or decoder; empty for none."""
    state = {} if part is None else json.loads(part.__getstate__())
    return state if isinstance(state, dict) else {}


def _steps(part: Any) -> list[dict[str, Any]]:
    state = _state(part)
    listed = (state.get(key) for key in ("normalizers", "pretokenizers", "decoders"))
    return next((steps for steps in listed if steps is not None), [state] if state else [])


def _refuse_growth(library: Any, where: str) -> None:
    """A few steps that each make a text longer fill the memory together, at which the library ends the process."""
    steps = [*_steps(library.normalizer), *_steps(library.pre_tokenizer)]
    kinds = [step["type"] for step in steps]
    longer = any(len(step["content"]) > 1 for step in steps if step["type"] == "Replace")
    if "Sequence" in kinds or kinds.count("ByteLevel") > 1 or kinds.count("Replace") > 4 or longer:
        raise damaged(where, "its steps could make a text longer without bound")
    charsmaps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    refuse_long_replacements(map(b64decode, charsmaps), where)


def _unknown(library: Any) -> str | None:
    """The token for what the vocabulary lacks."""
    if hasattr(library.model, "unk_token"):
        token: str | None = library.model.unk_token
        return token
    number = _state(library.model).get("unk_id")  # Unigram's
    named: str | None = None if number is None else library.id_to_token(number)
    return named


def _hide(library: Any, specials: Set[int]) -> None:
    """Where T5's kind of vocabulary holds its control tokens as if they were text, no text can give them any more.

    None reaches it with a space in it, which has become "▁" by then.
    """
    from tokenizers import models

    if not isinstance(library.model, models.Unigram):
        return
    state = _state(library.model)
    vocabulary = [(piece + " " * (i in specials), score) for i, (piece, score) in enumerate(state["vocab"])]
    library.model = models.Unigram(vocabulary, state["unk_id"], state["byte_fallback"])


def _take_prefix(library: Any, where: str) -> tuple[Callable[[str], str], bool]:
    """Take the dummy space out of the library's steps, so that it can be put by hand only where a text starts.

    Returns what puts it, and whether the library would after each control token too.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps = [step["type"] for step in _steps(library.normalizer)]
    if "Prepend" in steps:  # Llama 2 as transformers first converted it
        if steps != ["Prepend", "Replace"]:
            raise damaged(where, f"normalizers {steps} are not known together")
        library.normalizer = normalizers.Replace(" ", "▁")
        return lambda text: text and "▁" + text, True
    *before, spaces = _steps(library.pre_tokenizer) or [{}]
    if spaces.get("type") != "Metaspace" or spaces["prepend_scheme"] == "never":
        return lambda text: text, False
    if [step["type"] for step in before] == ["WhitespaceSplit"]:  # T5's: it gives each word a space, for those it drops
        merged = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False, right=True)]
        library.normalizer = normalizers.Sequence([*filter(None, [library.normalizer]), *merged])
    elif before:
        raise damaged(where, f"pre-tokenizers {[step['type'] for step in before]} are not known before Metaspace")
    library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=spaces["split"])
    return _spacing(library.normalizer, where), spaces["prepend_scheme"] == "always"


def _spacing(normalizer: Any, where: str) -> Callable[[str], str]:
    """What puts a space before a text that has none once the normalizer is done with it."""
    normal: Callable[[str], str] = normalizer.normalize_str if normalizer else str
    space = "▁" if normal("▁a") == "▁a" else " "
    if normal(space + "a")[:1] not in (" ", "▁"):
        raise damaged(where, "it drops the space before a text, which it puts there itself")
    return lambda text: text if normal(text)[:1] in ("", " ", "▁") else space + text


def _drops_space(library: Any) -> bool:
    """Whether decoding drops the first space of a text."""
    steps = _steps(library.decoder)
    strips = any(step["type"] == "Strip" and step["content"] == " " and step["start"] for step in steps)
    return strips or any(step["type"] == "Metaspace" and step["prepend_scheme"] != "never" for step in steps)


def _pieces(library: Any, added: Mapping[int, str], where: str) -> Callable[[int], bytes]:
    """The bytes of an id: an added token is written as it is, the rest as the decoder says."""
    kinds = {step["type"] for step in _steps(library.decoder)}
    if kinds != {"ByteLevel"} and not (kinds and kinds <= _SPACE_STEPS):
        raise damaged(where, f"a decoder of {sorted(kinds)} is not known")

    def piece(token: int) -> bytes:
        text = added.get(token) or library.id_to_token(token) or ""
        if token in added:
            return text.encode()
        if kinds == {"ByteLevel"}:
            return byte_level(text)
        if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", text):
            return bytes([int(text[3:5], 16)])
        return text.replace("▁", " ").encode()

    return piece


def byte_level(token: str) -> bytes:
    """The bytes GPT-2's characters stand for; a token with others in it is plain text."""
    return bytes(map(BYTE_OF.__getitem__, token)) if BYTE_OF.keys() >= set(token) else token.encode()
