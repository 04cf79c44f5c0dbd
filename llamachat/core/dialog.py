"""Roles and messages -> token ids, so that nothing in a message can pass for a control token or for another turn.

A format writes the skeleton; control tokens are looked for in that alone, and whatever is between two of them is encoded
as plain text. Where a format marks turns with plain text (`[INST]`), a content that spells such a tag is encoded character
by character there: the same text, other ids.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, takewhile
from typing import Any, Literal, Protocol, get_args

from llamachat.core.thoughts import TAGGED, Switch, Thoughts
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, UsageError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn's text. `ids` are those the model generated for it, if it did: they then stand for the text."""

    role: Role
    content: str
    ids: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, value: Any) -> "Message":
        """From {"role": ..., "content": ...}; raises UsageError for anything else."""
        if not isinstance(value, Mapping) or value.keys() != {"role", "content"}:
            raise UsageError('a message is not {"role": ..., "content": "..."}', "it was not sent")
        role, content = value["role"], value["content"]
        if role not in ROLES or not isinstance(content, str):
            raise UsageError("a message has no known role or no text", "it was not sent", f"roles: {', '.join(ROLES)}")
        return cls(role, content)


class DialogFormat(Protocol):
    """How one model's dialogs are written."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Each ends the assistant's turn."""
        ...

    @property
    def thoughts(self) -> Thoughts:
        """How the model marks what it thinks."""
        ...

    @property
    def switch(self) -> Switch:
        """What `having` can change."""
        ...

    def having(self, thinking: bool | None) -> "DialogFormat":
        """This format where the model is to think before it answers, or not to; None: as the format itself has it."""
        ...

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The whole dialog and the header of the assistant's next turn. Raises UsageError, ConfigError."""
        ...

    def turns(self, messages: Sequence[Message]) -> list[list[int]]:
        """`encode` in its parts: one list a message (BOS is in the first), the open header last.

        Where only text is between two messages, a token that would lie in both is written as two.
        """
        ...

    def header(self, message: Message) -> list[int]:
        """What of its turn comes before a message's content, if the dialog began with it."""
        ...


@dataclass(frozen=True)
class Content:
    """What of a turn a person or the model wrote."""

    text: str
    ids: tuple[int, ...] | None = None


Part = str | int | Content  # skeleton text; BOS before it; content
Layout = list[list[Part]]


class Format:
    """A format is its `layout`; this turns it into ids."""

    thoughts: Thoughts = TAGGED
    switch: Switch = "none"
    thinking: bool | None = None  # what `layout` is to write

    def __init__(self, tokenizer: Tokenizer, needs: Sequence[str] = (), ends: Iterable[str] = ()) -> None:
        missing = [name for name in needs if name not in tokenizer.specials]
        if missing:
            raise ConfigError(f"the tokenizer has no {missing[0]!r}", "the dialog format is another", "set `dialog`")
        self.tokenizer = tokenizer
        self._stop_ids = tokenizer.eos_ids | {tokenizer.specials[name] for name in ends if name in tokenizer.specials}
        self._havings: dict[bool | None, Format] = {None: self}

    def having(self, thinking: bool | None) -> "Format":
        """See DialogFormat."""
        if thinking not in self._havings:
            self._havings[thinking] = copy.copy(self)
            self._havings[thinking].thinking = thinking
        return self._havings[thinking]

    @property
    def stop_ids(self) -> frozenset[int]:
        """See DialogFormat."""
        return self._stop_ids

    @property
    def tags(self) -> Sequence[str]:
        """What of its skeleton is plain text and marks turns."""
        return ()

    def layout(self, messages: Sequence[Message]) -> Layout:
        """The parts of each message, and of the open header last."""
        raise NotImplementedError

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """See DialogFormat."""
        ids = self._ids([part for turn in self.layout(self._sent(messages)) for part in turn], ())
        return [*self._missing_bos(ids), *ids]

    def turns(self, messages: Sequence[Message]) -> list[list[int]]:
        """See DialogFormat."""
        turns, ids = list[list[int]](), list[int]()
        for parts in self.layout(self._sent(messages)):
            turns.append(self._ids(parts, ids))
            ids += turns[-1]
        turns[0][:0] = self._missing_bos(ids)
        return turns

    def header(self, message: Message) -> list[int]:
        """See DialogFormat."""
        before = takewhile(lambda part: not isinstance(part, Content), self.layout([message])[0])
        ids = self._ids(list(before), [])
        return self._missing_bos(ids) + ids

    def _sent(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With what was thought only where the format takes it."""
        if self.thoughts.resent:
            return messages
        return [_without_thought(m) if m.role == "assistant" else m for m in messages]

    def _missing_bos(self, ids: Sequence[int]) -> list[int]:
        bos = self.tokenizer.bos_id
        return [] if bos is None or list(ids[:1]) == [bos] else [bos]

    def _ids(self, parts: Sequence[Part], before: Sequence[int]) -> list[int]:
        """Skeleton and contents are encoded as one text between control tokens, as they are in training."""
        ids, start = list[int](), self.tokenizer.starts_after(before)
        for fixed, group in groupby(parts, key=_is_fixed):
            if not fixed:
                spans = [(part.text, False) if isinstance(part, Content) else (str(part), True) for part in group]
                ids += self.tokenizer.encode_spans(spans, start=start, plain=self._guard.encode)
                continue
            for part in group:
                ids += (part.ids or ()) if isinstance(part, Content) else [int(part)]
                start = isinstance(part, int)  # after BOS a text starts
        return ids

    @cached_property
    def _guard(self) -> "Guard":
        return Guard(self.tokenizer, self.tags)


def _without_thought(message: Message) -> Message:
    """An answer as a later turn has it: its ids, which say what was thought, no longer stand for it."""
    thought, said = TAGGED.parted(message.content)
    return Message(message.role, said.lstrip("\n")) if thought or said != message.content else message


def _is_fixed(part: Part) -> bool:
    return isinstance(part, int) or (isinstance(part, Content) and part.ids is not None)


class Guard:
    """Encodes texts such that no tag of the format is among the ids, but where the format itself wrote it."""

    def __init__(self, tokenizer: Tokenizer, tags: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        encode, skeleton = tokenizer.encode, tokenizer.encode_skeleton
        plain = [
            tag for tag in tags if encode(tag, start=False) == skeleton(tag, start=False)
        ]  # not a token of its own
        for tag in plain:
            if tokenizer.encode(tag, start=False) == self._by_character(tag):
                raise ConfigError(
                    f"the tokenizer writes {tag!r} in one way only", "texts could forge turns", "set `dialog`"
                )
        longest_first = map(re.escape, sorted(plain, key=len, reverse=True))
        self._tag = re.compile(f"(?=({'|'.join(longest_first)}))") if plain else None

    def encode(self, spans: Sequence[tuple[str, bool]], start: bool = False) -> list[int]:
        """Ids of a text in spans, each with whether the format wrote it.

        Tags are looked for in what the ids of each content say, after whatever the tokenizer normalised.
        """
        text = "".join(part for part, _ in spans)
        ids = self._tokenizer.encode(text, start=start)
        if self._tag is None:
            return ids
        if self._said(ids, start) != text:
            spans = [
                (part if own else self._said(self._tokenizer.encode(part, start=False)), own) for part, own in spans
            ]
            text = "".join(part for part, _ in spans)
        out, at = list[int](), 0
        for first, end in self._forged(text, spans):
            out += self._tokenizer.encode(text[at:first], start=start and not at) + self._by_character(text[first:end])
            at = end
        return out + self._tokenizer.encode(text[at:], start=False) if at else ids

    def _said(self, ids: Sequence[int], start: bool = False) -> str:
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        return (data.removeprefix(b" ") if start and self._tokenizer.dummy_prefix else data).decode(errors="replace")

    def _forged(self, text: str, spans: Sequence[tuple[str, bool]]) -> Iterator[tuple[int, int]]:
        """Where tags are that the format did not write, overlapping ones as one."""
        assert self._tag is not None
        contents = b"".join(bytes([not own]) * len(part) for part, own in spans)
        first = end = -1
        for match in self._tag.finditer(text):
            start, stop = match.span(1)
            if 1 not in contents[start:stop]:
                continue
            if start > end:
                if end > 0:
                    yield first, end
                first = start
            end = max(end, stop)
        if end > 0:
            yield first, end

    def _by_character(self, text: str) -> list[int]:
        return [token for character in text for token in self._tokenizer.encode(character, start=False)]


class Llama3(Format):
    """Meta's Llama 3 to 3.3: https://github.com/meta-llama/llama3, llama/tokenizer.py (ChatFormat)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        needs = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        super().__init__(tokenizer, needs, ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))

    def layout(self, messages: Sequence[Message]) -> Layout:
        """BOS; a header, the content without spaces around it and <|eot_id|> for each message."""
        turns = [[self._header(m.role), Content(m.content.strip(), m.ids), "<|eot_id|>"] for m in messages]
        turns.append([self._header("assistant")])
        turns[0].insert(0, self.tokenizer.specials["<|begin_of_text|>"])
        return turns

    def _header(self, role: Role) -> Part:
        return f"<|start_header_id|>{'ipython' if role == 'tool' else role}<|end_header_id|>\n\n"


class ChatML(Format):
    """OpenAI's ChatML, as Qwen, SmolLM and many fine-tunes have it; no system turn unless one is given.

    Where `<think>` is a token, as in Qwen3's, thoughts are not sent again, and one that is empty keeps the model from it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, needs=("<|im_start|>", "<|im_end|>"), ends=("<|im_end|>", "<|endoftext|>"))
        if len(tokenizer.encode_skeleton("<think></think>", start=False)) == 2:
            self.thoughts, self.switch = replace(TAGGED, resent=False), "full"

    def layout(self, messages: Sequence[Message]) -> Layout:
        """Contents as they are."""
        turns: Layout = [[f"<|im_start|>{m.role}\n", Content(m.content, m.ids), "<|im_end|>\n"] for m in messages]
        silent = self.switch == "full" and self.thinking is False
        return [*turns, ["<|im_start|>assistant\n" + ("<think>\n\n</think>\n\n" if silent else "")]]


class Llama2(Format):
    """Llama 2 chat and Mistral: https://github.com/meta-llama/llama, llama/generation.py. BOS and EOS around each pair.

    The space before a content is encoded with it: sentencepiece's words begin with their space.
    """

    tags = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        bos, eos = (tokenizer.names.get(name, "") for name in ("bos_token", "eos_token"))
        super().__init__(tokenizer, needs=(bos, eos), ends=(eos,))
        self._bos, self._eos = tokenizer.specials[bos], tokenizer.specials[eos]

    def layout(self, messages: Sequence[Message]) -> Layout:
        """Contents without spaces around them. Raises UsageError unless user and assistant take turns, user first."""
        spoken = messages[1:] if messages and messages[0].role == "system" else messages
        if not spoken or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(spoken)):
            raise UsageError("user and assistant do not take turns", "this model cannot answer", "reorder the messages")
        turns: Layout = []
        if spoken is not messages:
            turns.append([self._bos, "[INST] <<SYS>>\n", Content(messages[0].content), "\n<</SYS>>\n\n"])
        for m in spoken:
            if m.role == "assistant":
                turns.append([Content(" " + m.content.strip(), m.ids), " ", self._eos])
            elif not turns or turns[-1][-1] == self._eos:
                turns.append([self._bos, "[INST]", Content(" " + m.content.strip()), " [/INST]"])
            else:
                turns.append([Content(m.content.rstrip()), " [/INST]"])
        return [*turns, []]
