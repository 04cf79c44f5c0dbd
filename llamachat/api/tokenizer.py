"""Text and dialogs <-> ids as Meta's Tokenizer and ChatFormat have it, for any model's tokenizer and dialog format."""

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, Literal, Protocol, TypedDict

from llamachat.checks import shown
from llamachat.core import dialog, tokenizer
from llamachat.core.dialog import Role as Role
from llamachat.errors import UsageError

NONE = -1  # an id that a model does not have


class Message(TypedDict):
    """One turn of a dialog."""

    role: Role
    content: str


Dialog = Sequence[Message]


class Array(Protocol):
    """A numpy array or torch tensor of one dimension."""

    def tolist(self) -> Any: ...


Ids = Sequence[int] | Array


class Tokenizer:
    """Meta's view of a model's tokenizer. An id that the model lacks is -1."""

    def __init__(self, inner: tokenizer.Tokenizer, stop_tokens: Collection[int], pad_id: int | None) -> None:
        self._inner = inner
        self.special_tokens: dict[str, int] = dict(inner.specials)
        self.stop_tokens = set(stop_tokens)  # each ends an answer
        self.n_words = inner.vocab_size
        self.bos_id = NONE if inner.bos_id is None else inner.bos_id
        self.eos_id = self._named("<|end_of_text|>", inner.names.get("eos_token"), min(inner.eos_ids, default=NONE))
        pad = NONE if pad_id is None else pad_id
        self.pad_id = self._named("<|finetune_right_pad_id|>", inner.names.get("pad_token"), pad)

    def _named(self, metas: str, own: str | None, otherwise: int) -> int:
        """The id of Llama 3's name for a token, else of what the tokenizer itself calls it, else the last."""
        found = (self.special_tokens.get(name) for name in (metas, own) if name is not None)
        return next((token for token in found if token is not None), otherwise)

    def encode(
        self,
        s: str,
        *,
        bos: bool,
        eos: bool,
        allowed_special: Literal["all"] | AbstractSet[str] | None = None,
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """Ids of a text, after BOS and before EOS where asked for and where the model has them.

        allowed_special: control tokens by name that are recognised in the text, by default none: it is plain text then,
        whatever it spells. disallowed_special: names that must not be in the text ("all": every one not allowed).
        Raises UsageError for such a text.
        """
        if not isinstance(s, str):
            raise UsageError(f"{shown(s)} is no text", "nothing was encoded")
        allowed = self.special_tokens.keys() if allowed_special == "all" else allowed_special or frozenset()
        refused = self.special_tokens.keys() - allowed if disallowed_special == "all" else disallowed_special
        if found := _any_of(refused).search(s):
            raise UsageError(f"the text has {shown(found[0])}", "it was not encoded", "allow it, or take it out")
        ids = self._recognising(s, allowed & self.special_tokens.keys())
        return [*self._if_any(bos, self.bos_id), *ids, *self._if_any(eos, self.eos_id)]

    @staticmethod
    def _if_any(wanted: bool, token: int) -> list[int]:
        return [token] if wanted and token != NONE else []

    def _recognising(self, text: str, names: AbstractSet[str]) -> list[int]:
        inner = self._inner
        if names == self.special_tokens.keys():  # it knows which of them swallow spaces
            return inner.encode_skeleton(text)
        ids, end = list[int](), 0
        for match in _any_of(names).finditer(text):
            ids += inner.encode(text[end : match.start()], start=inner.starts_after(ids))
            ids.append(self.special_tokens[match[0]])
            end = match.end()
        return ids + inner.encode(text[end:], start=inner.starts_after(ids))

    def decode(self, t: Ids) -> str:
        """Text of ids: control tokens by their names, invalid UTF-8 as U+FFFD, ids that stand for nothing (-1) left out.

        A sentencepiece tokenizer leaves control tokens out and drops the first space, as Llama 2's does.
        """
        data = b"".join(self.spelled.get(token) or self._inner.token_bytes(token) for token in listed(t))
        return (data.removeprefix(b" ") if self._inner.dummy_prefix else data).decode(errors="replace")

    @cached_property
    def spelled(self) -> Mapping[int, bytes]:
        """The bytes of each control token that `decode` shows."""
        shows = not self._inner.dummy_prefix
        return {token: name.encode() for name, token in self.special_tokens.items()} if shows else {}


class ChatFormat:
    """Meta's view of a model's dialog format. A content is encoded as plain text and cannot become a control token."""

    def __init__(self, inner: dialog.DialogFormat, bos_id: int) -> None:
        self._inner = inner
        self._bos = bos_id

    def encode_header(self, message: Message) -> list[int]:
        """Ids of what the format writes before the message's content."""
        return self._without_bos(self._inner.header(dialog.Message.parse(message)))

    def encode_message(self, message: Message) -> list[int]:
        """Ids of a message with its header and end. Raises UsageError where the format has no message of this role alone."""
        return self._without_bos(self._inner.turns([dialog.Message.parse(message)])[0])

    def encode_dialog_prompt(self, dialog: Dialog) -> list[int]:
        """Ids of a dialog (a list of {"role": system|user|assistant|tool, "content": text}), BOS before it, and of the
        header of the answer that is to come. Raises UsageError, ConfigError for a dialog that the format does not have."""
        return self._inner.encode(parsed(dialog))

    def _without_bos(self, ids: list[int]) -> list[int]:
        return ids[1:] if ids[:1] == [self._bos] else ids


def listed(ids: Ids) -> list[int]:
    """The ids of a list, a numpy array or a torch tensor of one dimension. Raises UsageError for anything else."""
    items = ids if isinstance(ids, Sequence) else ids.tolist() if hasattr(ids, "tolist") else None
    try:
        return [operator.index(item) for item in items]  # type: ignore[union-attr]
    except TypeError as error:
        remedy = "a text is a list of whole numbers, a batch a list of such lists"
        raise UsageError(f"{shown(ids)} are no token ids", "nothing was computed", remedy) from error


def require_list(given: object, what: str, remedy: str) -> None:
    """Text is a sequence of texts to Python, but not to people. Raises UsageError."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise UsageError(f"{shown(given)} is not a list of {what}", "nothing was computed", remedy)


def parsed(messages: Dialog) -> list[dialog.Message]:
    """A dialog as the rest of the program has it. Raises UsageError for what is none."""
    if isinstance(messages, (str, Mapping)):
        raise UsageError(f"{shown(messages)} is no dialog", "it was not sent", "a dialog is a list of messages")
    return [dialog.Message.parse(message) for message in messages]


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """The longest goes first."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
