"""The vocabulary in a GGUF file's metadata -> a tokenizer, alike llama.cpp's.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (tokenizer) and llama.cpp's src/llama-vocab.cpp.
"""

import math
from collections.abc import Callable, Mapping, Set
from functools import cache
from itertools import repeat
from typing import Any

from llamachat.tokenizers import spm
from llamachat.tokenizers.hf import byte_level
from llamachat.tokenizers.short_texts import ShortTexts
from llamachat.tokenizers.side import NAMED, Added
from llamachat.tokenizers.text_tokenizer import (
    SENTINEL,
    TextTokenizer,
    damaged,
    framed,
    is_control_shaped,
    is_tag_shaped,
    library_errors,
)

_WHERE = "the GGUF file"
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)
ENDS = ("eos", "eot", "eom")
_KEYS = ("bos", "eos", "unknown", "padding")  # of NAMED
# tokenizer.ggml.model -> the ids that a sentencepiece model has by default
_SENTENCEPIECE = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "t5": {"eos": 1, "unknown": 2, "padding": 0}}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = _TEKKEN.replace("]+|[", rf"]+{_ENDING}|[", 1).replace(
    r"]*|\p{N}|", rf"]*{_ENDING}|\p{{N}}{{1,3}}|"
)  # tiktoken's
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# tokenizer.ggml.pre -> expressions that split a text, each the pieces of the one before
SPLITS = {
    pre: patterns
    for patterns, names in (
        (
            (_LLAMA3,),
            ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
        ),
        ((_QWEN2,), ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2")),
        ((r"\p{N}", _GPT2), ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")),
        ((_GPT2,), ("gpt-2", "olmo", "mpt", "phi-2", "jais", "trillion", "granite-docling", "mellum", "exaone4")),
        ((_TEKKEN,), ("tekken",)),
        ((_O200K,), ("gpt-4o", "llama4", "kanana2")),
        ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), ("default",)),
    )
    for pre in names
}
# of those: BOS comes first unless add_bos_token denies it; and a word that is a token is not merged
_LIKE_LLAMA3 = frozenset(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"))
_WHOLE_WORDS = _LIKE_LLAMA3 | {"glm4"}


def from_metadata(metadata: Mapping[str, Any]) -> TextTokenizer:
    """See llamachat.tokenizers.open.from_gguf."""
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama", "t5"):
        raise damaged(_WHERE, f"tokenizer.ggml.model is {model!r:.40}, and only 'gpt2', 'llama' and 't5' are read")
    given = _list(metadata, "tokens", str)
    tokens = given if all(given) else [token or f"[EMPTY_{i}]" for i, token in enumerate(given)]
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocabulary) < len(tokens):
        raise damaged(_WHERE, "tokenizer.ggml.tokens has repeated entries")
    ids, notes = special_ids(metadata, len(tokens))
    ends = frozenset(ids[key] for key in ENDS if key in ids)
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or _pre(metadata) in _LIKE_LLAMA3)
    bos = ids.get("bos") if adds_bos else None
    eos = ids.get("eos") if metadata.get("tokenizer.ggml.add_eos_token", model == "t5") else None
    return (_byte_level if model == "gpt2" else _sentencepiece)(
        metadata,
        vocabulary,
        tokens,
        _types(metadata, tokens, ends | {ids.get("bos")}, ids.get("unknown")),
        bos_id=bos,
        frames=framed(bos, eos, each_begins=False),  # as llama.cpp's server joins a reranker's pairs
        eos_ids=ends,
        names={name: tokens[ids[key]] for name, key in zip(NAMED, _KEYS, strict=True) if key in ids},
        notes=notes,
    )


def special_ids(metadata: Mapping[str, Any], size: int, where: str = _WHERE) -> tuple[dict[str, int], tuple[str, ...]]:
    """The ids of control tokens in a vocabulary of `size`, by what they do, as llama.cpp knows them; and notes on others.

    An id that no token has is as one that is not given: a sentencepiece model's are then those that it has by default.
    Padding is never used, and what is said of it is not worth a note.
    """
    ids = dict(_SENTENCEPIECE.get(metadata.get("tokenizer.ggml.model", ""), {}))
    wrong = []
    for key in (*_KEYS, "eot", "eom"):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None and type(value) is not int:
            raise damaged(where, f"tokenizer.ggml.{key}_token_id is {value!r:.40}, which is no id")
        if value is not None and 0 <= value < size:
            ids[key] = value
        elif value is not None and key != "padding":
            wrong.append(f"{key} {value}")
    said = f"{where} has {size} tokens; ignored are ids beyond: {', '.join(wrong)}"
    return {key: value for key, value in ids.items() if value < size}, (said,) if wrong else ()


def _types(metadata: Mapping[str, Any], tokens: list[str], control: Set[int | None], unknown: int | None) -> list[int]:
    """ggml's token types, with those that can only be control tokens made so, and what has no text or type made harmless."""
    types = list(_list(metadata, "token_type", int, len(tokens))) if "tokenizer.ggml.token_type" in metadata else []
    types = types or [NORMAL] * len(tokens)
    if not set(types) <= set(range(7)):
        raise damaged(_WHERE, "tokenizer.ggml.token_type has unknown types")
    given = metadata["tokenizer.ggml.tokens"]
    odd = {i for i, kind in enumerate(types) if kind != NORMAL or not given[i]}
    for i in odd | {i for i in control if i is not None}:
        kind = types[i]
        marks = kind == USER_DEFINED and (is_control_shaped(tokens[i]) or SENTINEL.fullmatch(tokens[i]))
        if marks or (i in control and kind != UNKNOWN):
            types[i] = CONTROL
        elif not given[i]:
            types[i] = UNUSED
        elif kind == UNDEFINED:
            types[i] = NORMAL
    if UNKNOWN not in types and unknown is not None and metadata["tokenizer.ggml.model"] in _SENTENCEPIECE:
        types[unknown] = UNKNOWN
    return types


def _byte_level(
    metadata: Mapping[str, Any], vocabulary: dict[str, int], tokens: list[str], types: list[int], **common: Any
) -> TextTokenizer:
    pre, merges = _pre(metadata), _list(metadata, "merges", str)
    _require_pairs(merges)
    marked = {tokens[i]: i for i, kind in enumerate(types) if kind not in (NORMAL, BYTE)}
    specials = {name: i for name, i in marked.items() if types[i] in (CONTROL, UNKNOWN)}
    shown = {name: i for name, i in marked.items() if types[i] == USER_DEFINED}
    tags = {name: i for name, i in shown.items() if is_tag_shaped(name)}
    texts = shown.keys() - tags.keys()  # found in any text as they are
    barred = marked.keys() - texts
    short = ShortTexts(SPLITS[pre], vocabulary, merges, barred, texts, pre in _WHOLE_WORDS)
    library = cache(lambda: _library(pre, vocabulary, _pairs(merges), barred, texts))

    def ids(text: str, start: bool) -> list[int]:
        found = short.encode(text)
        return library()(text) if found is None else found

    return TextTokenizer(
        ids=ids,
        piece=lambda i: tokens[i].encode() if tokens[i] in shown else byte_level(tokens[i]) * (types[i] != UNUSED),
        vocab_size=len(tokens),
        specials=specials,
        tags=tags,
        **common,
    )


def _library(
    pre: str, tokens: Mapping[str, int], pairs: list[tuple[str, str]], barred: Set[str], texts: Set[str]
) -> Callable[[str], list[int]]:
    """The tokenizers library's coding of a text."""
    from tokenizers import AddedToken, Tokenizer, models

    vocabulary = dict(tokens)
    merges, parts = _merges(pairs, vocabulary, barred)
    for name in barred - parts.keys():
        del vocabulary[name]  # so that no text can give them
    absent = max(tokens, key=len) + " "  # stands for a byte that has no token, which else would vanish before merging
    vocabulary[absent] = len(vocabulary) + len(tokens)
    undone = {vocabulary[name]: _undone(name, parts, vocabulary) for name in parts}
    with library_errors(_WHERE):
        library = Tokenizer(models.BPE(vocabulary, merges, unk_token=absent, ignore_merges=pre in _WHOLE_WORDS))
        library.pre_tokenizer = _pre_tokenizer(pre)
        library.add_tokens([AddedToken(name, normalized=False) for name in texts])

    def ids(text: str) -> list[int]:
        found = library.encode(text, add_special_tokens=False).ids
        return [i for each in found for i in undone.get(each, (each,)) if i < len(tokens)]

    return ids


def _merges(
    merges: list[tuple[str, str]], vocabulary: dict[str, int], hidden: Set[str]
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, str]]]:
    """The merges that count, and of each product that no text may give the two parts that it stands for then.

    Those are control tokens and the like, and what the vocabulary lacks; that is put into it with an id beyond it.
    """
    size, good, parts = len(vocabulary), set[tuple[str, str]](), dict[str, tuple[str, str]]()
    if _whole(merges, vocabulary, hidden):
        return merges, parts
    for left, right in sorted(merges, key=lambda pair: len(pair[0]) + len(pair[1])):  # what it is made of comes first
        if not {left, right} <= vocabulary.keys() or (hidden & {left, right}) - parts.keys():
            continue  # of what no text is made of
        good.add((left, right))
        product = left + right
        if product in hidden or vocabulary.setdefault(product, size + len(parts)) >= size:
            parts.setdefault(product, (left, right))
    return [pair for pair in merges if pair in good], parts


def _whole(merges: list[tuple[str, str]], vocabulary: Mapping[str, int], hidden: Set[str]) -> bool:
    """Whether all parts and products are tokens that texts may give: so it is in nearly all files, some of which have hundreds
    of thousands."""
    known = vocabulary.keys() - hidden
    return all(left in known and right in known and left + right in known for left, right in merges)


def _require_pairs(merges: list[str]) -> None:
    """Raises FormatError for a merge that is not of two parts with a space between them."""
    flat = " ".join(merges)  # at once: there are up to hundreds of thousands
    spaced = "  " in flat or flat.startswith(" ") or flat.endswith(" ")
    if spaced or set(map(str.count, merges, repeat(" "))) != {1}:
        wrong = next(merge for merge in merges if merge.count(" ") != 1 or "" in merge.split(" "))
        raise damaged(_WHERE, f"the merge {wrong!r:.40} is not of two parts")


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    flat = " ".join(merges).split(" ")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _undone(name: str, parts: Mapping[str, tuple[str, str]], vocabulary: Mapping[str, int]) -> list[int]:
    """The ids that a product stands for. Iterative, as a file may chain more merges than Python nests calls."""
    ids, waiting = list[int](), [name]
    while waiting:
        each = waiting.pop()
        if each in parts:
            waiting += reversed(parts[each])
        else:
            ids.append(vocabulary[each])
    return ids


def _pre(metadata: Mapping[str, Any]) -> str:
    """llama.cpp's "default" where the file does not say it, as old ones do not."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise damaged(_WHERE, f"tokenizer.ggml.pre is {pre!r:.40}, a way to split text that is not known here")
    return pre


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    patterns = SPLITS[pre]
    builtin = patterns[-1] == _GPT2  # ByteLevel's own, and faster there
    splits = [Split(Regex(pattern), "isolated") for pattern in patterns[: len(patterns) - builtin]]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=builtin)])


def _sentencepiece(
    metadata: Mapping[str, Any], vocabulary: dict[str, int], tokens: list[str], types: list[int], **common: Any
) -> TextTokenizer:
    scores = _list(metadata, "scores", float, len(tokens))
    if not all(map(math.isfinite, scores)):
        raise damaged(_WHERE, "tokenizer.ggml.scores has values that are no numbers")
    unigram = metadata["tokenizer.ggml.model"] == "t5"
    user_defined = [i for i, kind in enumerate(types) if kind == USER_DEFINED]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", not unigram)
    control = {tokens[i]: Added(i, True) for i, kind in enumerate(types) if kind == CONTROL}
    spaced = [name.replace(" ", "▁") if types[i] == USER_DEFINED else name for i, name in enumerate(tokens)]
    with library_errors(_WHERE):  # converters write spaces as such in what the user defined
        how = (_normalizer(metadata), spm.UNIGRAM) if unigram else ()
        library = spm.assemble(spaced, scores, types, *how)
        return spm.from_library(
            library,
            user_defined,
            control,
            dummy_prefix=bool(prefix),
            prefix_after_special=unigram,
            prefix_after_bos=True,
            **common,
        )


def _normalizer(metadata: Mapping[str, Any]) -> bytes:
    """What T5's vocabulary does to a text before it is cut: characters replaced, spaces merged."""
    charsmap = b""
    if "tokenizer.ggml.precompiled_charsmap" in metadata:
        charsmap = bytes(value & 255 for value in _list(metadata, "precompiled_charsmap", int))
        spm.refuse_long_replacements([charsmap], _WHERE)
    return spm.normalizing(charsmap, metadata.get("tokenizer.ggml.remove_extra_whitespaces") is True)


def _list(metadata: Mapping[str, Any], key: str, kind: type, length: int | None = None) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not value or set(map(type, value)) != {kind}:
        raise damaged(_WHERE, f"tokenizer.ggml.{key} is not a list of {kind.__name__}")
    if length is not None and len(value) != length:
        raise damaged(_WHERE, f"tokenizer.ggml.{key} has {len(value)} entries for {length} tokens")
    return value
