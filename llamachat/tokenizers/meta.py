"""Llama 3's tokenizer.model: tiktoken's byte-pair ranks; the control tokens are not in it, but known."""

import binascii
import re
from collections.abc import Iterator

from llamachat.tokenizers.text_tokenizer import TextTokenizer, damaged

RESERVED = 256
_NAMES = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# tiktoken's regular expressions overflow on longer ones; where Meta cuts decides the ids, so it is done alike
LONGEST_TEXT, LONGEST_RUN = 400_000, 25_000  # characters


def from_tiktoken(data: bytes, where: str) -> TextTokenizer:
    """Lines of "base64 rank"; 256 control tokens follow the last rank, named as in Meta's llama-models."""
    import tiktoken

    ranks = _ranks(data, where)
    names = _NAMES + [f"<|reserved_special_token_{i + 2}|>" for i in range(RESERVED - len(_NAMES))]
    specials = {name: len(ranks) + i for i, name in enumerate(names)}
    coding = tiktoken.Encoding("llama3", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return TextTokenizer(
        ids=lambda text, start: [i for part in parts(text) for i in coding.encode_ordinary(part)],
        piece=coding.decode_single_token_bytes,
        vocab_size=len(ranks) + RESERVED,
        specials=specials,
        bos_id=specials["<|begin_of_text|>"],
        eos_ids=frozenset(specials[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
        names={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    )


def _ranks(data: bytes, where: str) -> dict[bytes, int]:
    words = data.split()
    try:
        ranks = dict(zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True))
    except ValueError as error:  # binascii.Error is one
        raise damaged(where, "a line is not base64 and a number") from error
    if sorted(ranks.values()) != list(range(len(words) // 2)) or b"" in ranks:
        raise damaged(where, "tokens or ranks are repeated or missing")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise damaged(where, "a byte has no token")
    return ranks


def parts(text: str) -> Iterator[str]:
    """At most 400,000 characters each, and no more than 25,000 on end that are all space or all not."""
    for first in range(0, len(text), LONGEST_TEXT):
        part = text[first : first + LONGEST_TEXT]
        begin = 0
        for run in re.finditer(r"\s+|\S+", part) if len(part) > LONGEST_RUN else ():
            for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
                yield part[begin:cut]
                begin = cut
        yield part[begin:]
