"""A dialog in the format of the model's own chat template."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from llamachat.core.dialog import Content, Format, Layout, Message, Part, Role
from llamachat.core.thoughts import TAGGED, Switch
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError
from llamachat.families.gpt_oss import HARMONY
from llamachat.tokenizers.templates import ChatTemplate, Span, template_error

# What marks a turn in a template's plain text: by its shape, or, where nothing else comes between turns, "USER:"
_TAG = re.compile(r"<{1,2}[|/｜]{0,2}\w[^<>\s]{1,64}>{1,2}|\[/?[A-Za-z]\w{1,64}\]")
_NAME_TAG = re.compile(r"(?:#{1,6} {0,4})?(?<!\w)[A-Za-z]\w{0,64}:")
_MOST_TAGS = 256

# The variables by which templates are told whether to let the model think: of Qwen3, SmolLM3, GLM; of Granite, DeepSeek,
# Kimi; of gpt-oss, which always thinks and is told how much.
_SWITCHES: Mapping[str, Mapping[bool, object]] = {
    "enable_thinking": {True: True, False: False},
    "thinking": {True: True, False: False},
    "reasoning_effort": {True: "high", False: "low"},
}

_SYSTEM, _USER, _ANSWER = Message("system", "x"), Message("user", "x"), Message("assistant", "x")


@dataclass(frozen=True)
class _Learnt:
    """What the template writes, as found by showing it sample dialogs."""

    ends: dict[Role, str]  # what is written after a message of this role
    headers: dict[Role, str]  # and before one
    opening: str  # the header before an answer that is to come
    answer_end: str  # all that is between an answer and the next message's text
    tags: tuple[str, ...]


@dataclass
class _Turn:
    """What of the template's output belongs to a message."""

    header: list[Span] = field(default_factory=list)
    said: list[Span] = field(default_factory=list)
    end: list[Span] = field(default_factory=list)


class Jinja(Format):
    """The template is given the messages, and each character that it writes tells whether it is of one of them.

    So no content can become a part of the skeleton, whatever the template does to it. A template that takes messages out
    of their order (but for the system's) or leaves out what someone said is refused: ConfigError.
    """

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        super().__init__(tokenizer)
        self._template = ChatTemplate(source)
        names = sorted(tokenizer.specials, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or "(?!)")
        spelled = HARMONY.answers[-1]
        self.thoughts = HARMONY if spelled[: spelled.index("final")] in source and "<|channel|>" in names else TAGGED

    @cached_property
    def switch(self) -> Switch:  # type: ignore[override]
        """See DialogFormat: what its variables change of a dialog."""
        if not self._read:
            return "none"
        said = [self.having(thinking)._sample([_USER], opened=True) for thinking in (None, True, False)]
        if said[0] == said[1] == said[2]:
            return "none"
        return "effort" if self._read == {"reasoning_effort"} else "full"

    def having(self, thinking: bool | None) -> "Jinja":
        """See DialogFormat."""
        if thinking not in self._havings:
            other = copy.copy(self)
            other.thinking = thinking
            for learnt in ("_learnt", "_lead", "_guard"):
                other.__dict__.pop(learnt, None)
            self._havings[thinking] = other
        return self._havings[thinking]  # type: ignore[return-value]

    @cached_property
    def _read(self) -> frozenset[str]:
        return self._template.reads(list(_SWITCHES))

    @property
    def stop_ids(self) -> frozenset[int]:
        """EOS, and the first control token that the template writes after an answer, unless it ends thoughts as well."""
        end = self._control.search(self._learnt.answer_end)
        ends = end is not None and end[0] not in self.thoughts.marks.values()
        return self._stop_ids | ({self.tokenizer.specials[end[0]]} if end and ends else set())

    @property
    def tags(self) -> Sequence[str]:
        """See Format."""
        return self._learnt.tags

    def layout(self, messages: Sequence[Message]) -> Layout:
        """What the template writes between two contents goes to the first up to the end of its turn."""
        spans = self._render(messages, opened=True)
        shown = _in_order(spans)
        self._refuse(messages, spans, shown)
        turns = [_Turn() for _ in range(len(messages) + 1)]
        said, gaps = _divided(spans, shown)
        for number, block in zip(shown, said, strict=True):
            turns[number].said = block
        for gap, (left, right) in zip(gaps, pairwise([-1, *shown, len(messages)]), strict=True):
            cuts = self._cuts(_joined(gap), [m.role for m in messages], left, right)
            turns[left].end += _cut(gap, 0, cuts[0])  # of none where left is -1: nothing ends there
            for number, (start, stop) in enumerate(pairwise([*cuts, None]), left + 1):
                turns[number].header += _cut(gap, start or 0, stop)
        return [self._parts(turn, message) for turn, message in zip(turns, [*messages, None], strict=True)]

    def _cuts(self, gap: str, roles: Sequence[Role], left: int, right: int) -> list[int]:
        """Where in a gap the turns behind the left one begin: those of messages without a text, and the right one."""
        learnt = self._learnt
        header = learnt.headers.get(roles[right], "") if right < len(roles) else learnt.opening
        begin = len(gap) - len(header) if header and gap.endswith(header) else len(gap)
        end = learnt.ends.get(roles[left]) if left >= 0 else ""
        first = len(end) if end is not None and gap.startswith(end) else begin
        if right - left == 1:
            return [_between_words(gap, first) if left >= 0 else 0]
        cuts = [begin]
        for number in range(right - 1, left + 1, -1):
            turn = learnt.headers.get(roles[number], "") + learnt.ends.get(roles[number], "")
            cuts.append(cuts[-1] - len(turn) if gap.endswith(turn, first, cuts[-1]) else cuts[-1])
        return [_between_words(gap, cut) if cut else 0 for cut in [min(first, cuts[-1]), *reversed(cuts)]]

    def _parts(self, turn: _Turn, message: Message | None) -> list[Part]:
        """Text that the model itself wrote is its own ids, behind the header that it wrote them after; but for a thought that
        was over in that header, which the template itself writes in later turns or leaves out."""
        if message and message.ids is not None and _joined(turn.said).strip() == message.content.strip():
            silent = self.thoughts.silenced_by(self._learnt.opening)
            header = _as_parts(turn.header) if silent else [self._learnt.opening]
            return [*header, Content("", message.ids), *_as_parts(turn.end)]
        return _as_parts([*turn.header, *turn.said, *turn.end])

    def _render(self, messages: Sequence[Message], opened: bool) -> list[Span]:
        told = {} if self.thinking is None else {name: _SWITCHES[name][self.thinking] for name in self._read}
        return self._template.render([(m.role, m.content) for m in messages], self.tokenizer.names, opened, told)

    def _refuse(self, messages: Sequence[Message], spans: Sequence[Span], shown: Sequence[int]) -> None:
        """Dialogs that the template writes in a way that cannot be followed, or not whole."""
        found = {span.origin for span in spans}
        for number, message in enumerate(messages):
            if message.role != "system" and number in found and number not in shown:
                raise template_error("does not keep the messages in order")
            if message.role != "assistant" and number not in found and message.content.strip():
                raise template_error(f"leaves out what the {message.role} said, or changes it beyond recognition")
        for span in spans:
            if span.unknown and (self._control.search(span.text) or any(tag in span.text for tag in self.tags)):
                raise template_error("makes control tokens in a way that cannot be told from a message's text")

    # ---- what it writes ----

    @cached_property
    def _learnt(self) -> _Learnt:
        gaps = self._sample([_USER, _ANSWER, _USER], opened=True)
        after_user, after_answer = (self._sample([_USER, _ANSWER][:n], opened=False)[-1] for n in (1, 2))
        if gaps[2].startswith(after_user) and not gaps[2].startswith(after_answer):
            after_answer = after_user  # the last answer alone ends otherwise
        return _Learnt(
            ends={"user": after_user, "assistant": after_answer},
            headers={"user": gaps[2].removeprefix(after_answer), "assistant": gaps[1].removeprefix(after_user)},
            opening=gaps[3][_between_words(gaps[3], len(after_user) if gaps[3].startswith(after_user) else 0) :],
            answer_end=gaps[2],
            tags=self._find_tags(gaps),
        )

    @cached_property
    def _lead(self) -> list[Message]:
        """What must come first: nothing, or a system prompt."""
        try:
            self._render([_USER], opened=True)
        except ConfigError:
            try:
                self._render([_SYSTEM, _USER], opened=True)
            except ConfigError:
                pass
            else:
                return [_SYSTEM]
            raise
        return []

    def _sample(self, messages: Sequence[Message], opened: bool) -> list[str]:
        """What is written before, between and after these messages' texts (one more than there are)."""
        lead = self._lead
        spans = self._render([*lead, *messages], opened)
        shown = [number for number in _in_order(spans) if number >= len(lead)]
        if shown != list(range(len(lead), len(lead) + len(messages))):
            raise template_error("does not keep the messages' texts, in order")
        return list(map(_joined, _divided(spans, shown)[1]))

    def _find_tags(self, gaps: Sequence[str]) -> tuple[str, ...]:
        """Also of a system prompt, if the model has one."""
        try:
            spans = self._render([_SYSTEM, _USER, _ANSWER, _USER], opened=True)
        except ConfigError:  # who gives a system prompt is told then
            spans = []
        plain = [self._control.sub(" ", gap) for gap in gaps]
        bare = any(gap == text for gap, text in zip(gaps, plain, strict=True))
        plain += [self._control.sub(" ", span.text) for span in spans if span.own]
        shapes = (_TAG, _NAME_TAG) if bare else (_TAG,)
        tags = {tag for text in plain for shape in shapes for tag in shape.findall(text)}
        if len(tags) > _MOST_TAGS:
            raise template_error(f"writes more than {_MOST_TAGS} different tags")
        self._refuse_half(gaps, [*tags, *self.tokenizer.specials])
        return tuple(sorted(tags))

    def _refuse_half(self, gaps: Sequence[str], names: Iterable[str]) -> None:
        """An empty text would complete what the template has begun: "[IN" + "" + "ST]"."""
        pairs = [(left, right) for left, right in pairwise(gaps) if left and right]
        for name in names:
            for left, right in pairs:
                possible = left[-1] in name and right[0] in name  # as it is of few of the many names
                if possible and any(
                    left.endswith(name[:n]) and right.startswith(name[n:]) for n in range(1, len(name))
                ):
                    raise template_error(f"lets a text become part of {name!r:.80}")


def _in_order(spans: Sequence[Span]) -> list[int]:
    """The messages whose texts come behind those of all earlier ones."""
    shown = list[int]()
    for number in dict.fromkeys(span.origin for span in spans if span.origin >= 0):
        if not shown or number > shown[-1]:
            shown.append(number)
    return shown


def _divided(spans: Sequence[Span], shown: Sequence[int]) -> tuple[list[list[Span]], list[list[Span]]]:
    """The texts of these messages, and the gaps before, between and after them (one more)."""
    origins = [span.origin for span in spans]
    starts = [origins.index(number) for number in shown]
    said, gaps = list[list[Span]](), [list(spans[: starts[0] if starts else None])]
    for number, start, stop in zip(shown, starts, [*starts[1:], len(spans)], strict=False):
        end = max(at for at in range(start, stop) if origins[at] == number) + 1
        said.append(list(spans[start:end]))
        gaps.append(list(spans[end:stop]))
    return said, gaps


def _joined(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans)


def _cut(spans: Iterable[Span], start: int, stop: int | None = None) -> list[Span]:
    """Of the text of all, the characters from `start` to `stop`."""
    kept, at = list[Span](), 0
    for span in spans:
        text = span.text[max(0, start - at) : None if stop is None else max(0, stop - at)]
        at += len(span.text)
        if text:
            kept.append(span._replace(text=text))
    return kept


def _between_words(text: str, at: int) -> int:
    """A place nearby where tokens are likely to meet: they end with line ends and begin with a space."""
    while text[at : at + 1] == "\n":
        at += 1
    while at and text[at - 1] == " ":
        at -= 1
    return at


def _as_parts(spans: Iterable[Span]) -> list[Part]:
    return [span.text if span.own else Content(span.text) for span in spans]
