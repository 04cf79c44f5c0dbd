"""A dialog in the format of the model's own chat template."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llamachat.dialog import Content, Format, Layout, Message, Part
from llamachat.dialog.templates import ChatTemplate, template_error
from llamachat.errors import ConfigError
from llamachat.tokenizer import Tokenizer

_PAD = "\u2003"  # a space that templates trim but do not write
# What marks a turn in a template's plain text: by its shape, or, where nothing else comes between turns, "USER:"
_TAG = re.compile(r"<{1,2}[|/｜]*\w[^<>\s]+>{1,2}|\[/?[A-Za-z]\w+\]")
_NAME_TAG = re.compile(r"(?:#+ *)?[A-Za-z]\w*:")


@dataclass(frozen=True)
class _Learnt:
    """What the template writes, as found by showing it sample dialogs."""

    ends: dict[str, str]  # role -> what is written after its message
    headers: dict[str, str]  # role -> before one
    opening: str  # the header before an answer that is to come
    answer_end: str  # all that is between an answer and the next message's text
    tags: tuple[str, ...]


class Jinja(Format):
    """The template sees a random word in each content's place; what it writes around the words is the skeleton.

    So no content can steer the template. One that moves, repeats, changes or leaves out a content is refused
    (ConfigError); only its trimming is seen, and done alike.
    """

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        super().__init__(tokenizer)
        self._template = ChatTemplate(source)
        names = sorted(tokenizer.specials, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or "(?!)")

    @property
    def stop_ids(self) -> frozenset[int]:
        """EOS, and the first control token that the template writes after an answer."""
        end = self._control.search(self._learnt.answer_end)
        return self._stop_ids | ({self.tokenizer.specials[end[0]]} if end else set())

    @property
    def tags(self) -> Sequence[str]:
        """See Format."""
        return self._learnt.tags

    def layout(self, messages: Sequence[Message]) -> Layout:
        """What the template writes between two contents goes to the first up to the end of its turn."""
        gaps, contents = self._render(messages, opened=True)
        self._refuse_half_tags(gaps)
        headers, ends = [gaps[0]], list[str]()
        roles = [m.role for m in messages]
        for gap, left, right in zip(gaps[1:], roles, [*roles[1:], "assistant"], strict=True):
            cut = self._end_of_turn(gap, left, right)
            ends.append(gap[:cut])
            headers.append(gap[cut:])
        turns = [self._turn(*parts) for parts in zip(headers, contents, ends, strict=False)]
        return [*turns, [headers[-1]]]

    def _turn(self, header: str, content: Content, end: str) -> list[Part]:
        if content.ids is not None:  # the model wrote them after this
            return [self._learnt.opening, content, end]
        if header.endswith(" "):  # a word's tokens begin with the space before it
            header, content = header[:-1], Content(" " + content.text)
        return [header, content, end]

    def _end_of_turn(self, gap: str, left: str, right: str) -> int:
        end = self._learnt.ends.get(left)
        if end is not None and gap.startswith(end):
            return len(end)
        return len(gap.removesuffix(self._learnt.headers.get(right, "")))

    def _render(self, messages: Sequence[Message], opened: bool) -> tuple[list[str], list[Content]]:
        """The text before, between and after the contents (one more than there are), and the contents as trimmed."""
        words = [f"{secrets.token_hex(8)}x{i}" for i in range(len(messages))]
        text = self._template.render(
            {
                "messages": [
                    {"role": m.role, "content": _PAD + word + _PAD} for m, word in zip(messages, words, strict=True)
                ],
                "add_generation_prompt": opened,
                "tools": None,
                "documents": None,
                **self.tokenizer.names,
            }
        )
        gaps, contents = [], []
        for message, word in zip(messages, words, strict=True):
            before, found, text = text.partition(word)
            if not found or word in text:
                raise template_error("does not keep the messages' texts once each, in order")
            content = message.content
            content = content if before.endswith(_PAD) else content.lstrip()
            content = content if text.startswith(_PAD) else content.rstrip()
            gaps.append(before.removesuffix(_PAD))
            text = text.removeprefix(_PAD)
            contents.append(Content(content, message.ids))
        return [*gaps, text], contents

    @cached_property
    def _learnt(self) -> _Learnt:
        user, answer = Message("user", ""), Message("assistant", "")
        gaps, _ = self._render([user, answer, user], opened=True)
        after_user, after_answer = (self._render([user, answer][:n], opened=False)[0][-1] for n in (1, 2))
        try:
            system, _ = self._render([Message("system", ""), user, answer, user], opened=True)
        except ConfigError:  # of the model, which has no system prompt; who gives one is told then
            system = []
        return _Learnt(
            ends={"user": after_user, "assistant": after_answer},
            headers={"user": gaps[2].removeprefix(after_answer), "assistant": gaps[1].removeprefix(after_user)},
            opening=gaps[3].removeprefix(after_user),
            answer_end=gaps[2],
            tags=self._find_tags(gaps + system),
        )

    def _find_tags(self, gaps: Sequence[str]) -> tuple[str, ...]:
        plain = [self._control.sub(" ", gap) for gap in gaps]
        bare = any(gap == text for gap, text in zip(gaps, plain, strict=True))
        shapes = (_TAG, _NAME_TAG) if bare else (_TAG,)
        return tuple(sorted({tag for text in plain for shape in shapes for tag in shape.findall(text)}))

    def _refuse_half_tags(self, gaps: Sequence[str]) -> None:
        """A text could complete a tag that the template has begun: "[IN" + content."""
        for tag in self.tags:
            for n in range(1, len(tag)):
                if any(gap.endswith(tag[:n]) for gap in gaps[:-1]) or any(gap.startswith(tag[n:]) for gap in gaps[1:]):
                    raise template_error(f"lets a text become part of {tag!r}")
