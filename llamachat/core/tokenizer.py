"""What a tokenizer is: text <-> token ids, without roles, which dialog.py knows. Those there are: llamachat.tokenizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

Frame = tuple[
    tuple[int, ...], ...
]  # the control tokens before, between and behind texts: one more than there are of these


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
    frames: Mapping[int, Frame]  # what the model wants around one text read as a whole, and around two, by their number
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
        """The UTF-8 bytes that this token adds in the middle of a text; b"" for an unused id or a control token, of
        which only T5's sentinels (`<extra_id_0>`) are shown.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids at once; control tokens are left out, invalid UTF-8 becomes U+FFFD."""
        ...
