"""What the tokenizers share: control tokens, decoding, and careful reading."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from threading import RLock

from llamachat.core.tokenizer import Frame
from llamachat.errors import FormatError, reading

MAX_FILE = 64 << 20  # bytes; the largest tokenizers of the field have half of it
MAX_VOCABULARY = 1 << 22  # ids; ten times the largest
SENTINEL = re.compile(
    r"<extra_id_\d+>"
)  # T5's control tokens that stand for what is left out of a text: they are shown

Span = tuple[str, bool]  # a text, and whether a dialog format wrote it
Plain = Callable[[Sequence[Span], bool], list[int]]  # encodes what no control token is in; says whether it is a start
UNUSABLE, REMEDY = "the tokenizer cannot be used", "fetch or convert the model again"


@dataclass(repr=False)
class TextTokenizer:
    """A Tokenizer (see there) around a library, of which only `ids` and `piece` are needed.

    The library is never asked to recognise control tokens: a skeleton is split at them here. `tags` are tokens that it
    would find in any text though they mark structure, such as `<tool_call>`: plain text is cut inside them.
    """

    ids: Callable[[str, bool], list[int]]  # (text, does it start a sequence) -> ids
    piece: Callable[[int], bytes]  # bytes of a token, b"" for an id that stands for none
    vocab_size: int
    specials: Mapping[str, int]
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    dummy_prefix: bool = False
    prefix_after_special: bool = False
    prefix_after_bos: bool = False
    unk_id: int | None = None  # the one control token that plain text may give
    tags: Mapping[str, int] = field(default_factory=dict)
    strips: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)  # tokens that swallow spaces before, after
    notes: Sequence[str] = ()
    frames: Mapping[int, Frame] = field(default_factory=dict)  # {}: BOS before each text, and nothing else

    def __post_init__(self) -> None:
        self.frames = self.frames or framed(self.bos_id)
        self._marks = {**self.tags, **self.specials}
        self._control = frozenset(self.specials.values())
        self._hidden = frozenset(i for name, i in self.specials.items() if not SENTINEL.fullmatch(name))
        self._reserved = frozenset(self._marks.values()) - {self.unk_id}
        self._mark = _any_of(map(re.escape, sorted(self._marks, key=len, reverse=True)))
        self._inside_tag = _any_of(f"(?<={re.escape(tag[0])})(?={re.escape(tag[1:])})" for tag in self.tags)

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """See Tokenizer. Lone surrogates, which no UTF-8 can hold, become U+FFFD."""
        out: list[int] = []
        with library_errors("a text"):  # a hostile tokenizer's expressions may give up on it
            for part in self._inside_tag.split(_without_surrogates(text)):
                out += self.ids(part, start and not out)
        if not self._reserved.isdisjoint(out):
            raise FormatError(
                "the tokenizer makes a control token of plain text", "it is not safe", "use another model"
            )
        return out

    def encode_skeleton(self, text: str, *, start: bool = True) -> list[int]:
        """See Tokenizer."""
        return self.encode_spans([(text, True)], start=start)

    def encode_spans(self, spans: Iterable[Span], *, start: bool = True, plain: Plain | None = None) -> list[int]:
        """See Tokenizer."""
        out, run, swallow = list[int](), list[Span](), False
        for part in [*self._marked(spans), None]:
            if isinstance(part, tuple):
                run.append(part)
                continue
            before, after = self.strips.get(part or "", (False, False))
            if run := _stripped(run, swallow, before):
                out += plain(run, start) if plain else self.encode("".join(text for text, _ in run), start=start)
            if part is not None:
                out.append(self._marks[part])
                run, swallow, start = [], after, self.starts_after(out)
        return out

    def starts_after(self, ids: Sequence[int]) -> bool:
        """See Tokenizer."""
        if not ids:
            return True
        after_bos = self.prefix_after_bos and ids[-1] == self.bos_id
        return after_bos or (self.prefix_after_special and ids[-1] in self._control)

    def _marked(self, spans: Iterable[Span]) -> Iterator[Span | str]:
        """The spans, and between them the names of the tokens that the skeleton has there."""
        for skeleton, group in groupby(spans, key=lambda span: span[1]):
            text, end = "".join(part for part, _ in group), 0
            for match in self._mark.finditer(text) if skeleton else ():
                yield text[end : match.start()], skeleton
                yield match[0]
                end = match.end()
            yield text[end:], skeleton

    def token_bytes(self, token: int) -> bytes:
        """See Tokenizer."""
        return b"" if token in self._hidden or not 0 <= token < self.vocab_size else self.piece(token)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer. One U+FFFD stands for each maximal invalid part, as Unicode recommends and Python does."""
        data = b"".join(map(self.token_bytes, ids))
        return (data.removeprefix(b" ") if self.dummy_prefix else data).decode(errors="replace")


def framed(bos: int | None, eos: int | None = None, each_begins: bool = True) -> dict[int, Frame]:
    """Frames of BOS before and EOS behind a text, where there are such; of a second one too, if `each_begins` with BOS."""
    begin, end = (() if token is None else (token,) for token in (bos, eos))
    return {1: (begin, end), 2: (begin, end + begin if each_begins else end, end)}


def _stripped(run: Sequence[Span], left: bool, right: bool) -> list[Span]:
    """Without empty ones, and without the white space at these ends."""
    kept = [span for span in run if span[0]]
    while left and kept:
        kept[0] = kept[0][0].lstrip(), kept[0][1]
        left = not kept[0][0]
        kept = kept[left:]
    while right and kept:
        kept[-1] = kept[-1][0].rstrip(), kept[-1][1]
        right = not kept[-1][0]
        kept = kept[: len(kept) - right]
    return kept


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or r"(?!)")


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_control_shaped(name: str) -> bool:
    """`<|im_end|>` is a control token, whatever type a careless conversion gave it."""
    return re.fullmatch(r"<[|｜].+[|｜]>", name) is not None


def is_tag_shaped(name: str) -> bool:
    """`<tool_call>` and `[INST]` mark structure."""
    return re.fullmatch(r"<[^<>\s]+>|\[[^\[\]\s]+\]", name) is not None


def damaged(where: str, what: str) -> FormatError:
    """The error for a tokenizer that cannot be read."""
    return FormatError(f"{where}: {what}", UNUSABLE, REMEDY)


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """`reading`, with what a library raises on a file.

    What it prints meanwhile (each panic, warnings that quote the file) goes nowhere, least of all to a terminal.
    """
    with _stderr_lock, _no_stderr(), reading(where, FormatError, UNUSABLE, REMEDY):
        yield


_stderr_lock = RLock()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """The process's standard error is the null device meanwhile; libraries write to it past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def read(path: Path) -> bytes:
    """The bytes of a tokenizer's file, which is refused when it is too large to be one."""
    with reading(path, FormatError, UNUSABLE, REMEDY):
        if path.stat().st_size > MAX_FILE:
            raise damaged(str(path), f"more than {MAX_FILE >> 20} MiB")
        return path.read_bytes()
