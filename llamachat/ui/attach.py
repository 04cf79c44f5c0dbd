"""Text files that go with a message: named by @path in it, or by /read; one, several by a pattern, or a folder's."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import DoesNotFitError, UsageError
from llamachat.events import TextSize
from llamachat.system import textfile
from llamachat.system.enclosed import enclosed
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.gather import gathered, is_pattern
from llamachat.ui.render import percent

LIMIT = 1_000_000  # bytes of one file, and of all in a message
LIMIT_TOLD = "1 MB"
_NAMES = 1000  # that are looked up
_PATTERNS = 20  # of these
_NOTES = 3  # of names that are no files; a pasted text may be full of them
_PARTS = re.compile(  # a code block, or a mention
    r"^ {0,3}(`{3,}+|~{3,}+)[^\n]*+(?:\n.*?(?:^ {0,3}\1|\Z))?"
    r'|(?<![\w@/.`])@(?:"(?P<quoted>[^"\n]+)"|(?P<bare>[^\s"@`]+))',
    re.DOTALL | re.MULTILINE,
)
_WORDS = re.compile(r'"([^"\n]+)"|\'([^\'\n]+)\'|(\S+)')
_AFTER = ".,;:!?)]}'>"  # of the sentence rather than of the name
_STOPS = 5  # of these behind a name
_LIKE_A_FILE = re.compile(r"[./~].*\w|\w.*(?:/|\.\w{1,8}\Z)", re.DOTALL)

Weigh = Callable[[str], TextSize | None]


@dataclass(frozen=True)
class Attachment:
    name: str  # safe to show
    text: str


@dataclass(frozen=True)
class Found:
    """What one name stands for."""

    name: str  # safe to show
    files: tuple[Attachment, ...]
    left_out: str = ""  # like "2 binary, 1 hidden"


class NotTextError(UsageError):
    """A file that cannot be attached; `kind` in a word."""

    def __init__(self, name: str, kind: str, cause: str, remedy: str) -> None:
        super().__init__(f"{name} {cause}", "it was not attached", remedy)
        self.kind = kind


def as_path(text: str) -> Path:
    """What a person typed; ~ is their home, quotes around it are taken off."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return Path(os.path.expanduser(text))  # noqa: PTH111 (raises nothing without a home)


def read(path: Path, name: str = "") -> Attachment:
    """Raises NotTextError for what is no UTF-8 text file of at most LIMIT bytes. `name`: to show it by, else its own."""
    name = sanitise_line(name or str(path.name or path))
    try:
        if not path.exists():
            raise NotTextError(name, "missing", "is not there", "check the name")
        content = textfile.read(path, LIMIT)
    except textfile.TooLargeError as error:
        cause = f"is larger than {LIMIT_TOLD}"
        raise NotTextError(name, "too large", cause, "attach a part of it") from error
    except (OSError, ValueError) as error:
        cause = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise NotTextError(name, "unreadable", cause, "check it") from error
    return Attachment(name, _decoded(content, name))


def _decoded(content: bytearray, name: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotTextError(name, "binary", "is not UTF-8 text", "convert it") from error
    if "\0" in text:
        raise NotTextError(name, "binary", "is not text", "attach a text file")
    return text.replace("\r\n", "\n")


def read_all(argument: str) -> list[Found]:
    """What an argument of /read names: one path, as it is, or several words, each a path, a pattern or a folder. Raises
    UsageError where one of them stands for nothing that can be attached."""
    names = [argument] if _file(argument) else [next(filter(None, word)) for word in _WORDS.findall(argument)]
    found = list[Found]()
    for name in names:
        found.append(_named(name, folders=True) or Found(sanitise_line(name), (read(as_path(name)),)))
        _check_size(attachment for each in found for attachment in each.files)
    for each in found:
        if not each.files:
            raise UsageError(f"{each.name} has no file to attach", each.left_out and f"left out: {each.left_out}")
    return found


def _named(name: str, folders: bool = False) -> Found | None:
    """What a name stands for; None for no file, no pattern and no folder. `folders`: also without a slash at its end."""
    if path := _file(name):
        return Found(sanitise_line(name), (read(path),))
    pattern = is_pattern(name) and name.strip("*") != ""
    if not (pattern or _is_folder(name, folders)):
        return None
    place = str(as_path(name)) + "/" * (not pattern)
    paths, passed_over = gathered(place.replace("//", "/"))
    return _readable(name, paths, passed_over)


def _readable(name: str, paths: Iterable[str], passed_over: int) -> Found:
    """Those of the files that are texts."""
    files, left_out = list[Attachment](), Counter({"hidden or a link": passed_over})
    for path in paths:
        try:
            files.append(read(Path(path), path.removeprefix("./")))
        except NotTextError as error:
            left_out[error.kind] += 1
        _check_size(files)
    kinds = ", ".join(f"{number} {kind}" for kind, number in left_out.items() if number)
    return Found(sanitise_line(name), tuple(files), kinds)


class Mentions:
    """What @path and @"path" in a text come to: what was `found`, `notes` of names that are none, and the `text` with the name of
    each file in the place of its mention. A pattern (@src/*.py) and a folder (@docs/) stand for several files.

    Code blocks are not searched, nor is @ within a word. Raises UsageError for a file that cannot be attached.
    """

    def __init__(self, text: str) -> None:
        self._files: dict[Path, Found] = {}
        self._settled: dict[str, str] = {}
        self._missing: list[str] = []
        self.text = _PARTS.sub(self._settle, text)
        self.found = list(self._files.values())
        more = len(self._missing) - _NOTES
        self.notes = self._missing[:_NOTES] + ([f"and {more} more like it"] if more > 0 else [])

    @property
    def attachments(self) -> list[Attachment]:
        return [attachment for each in self.found for attachment in each.files]

    def _settle(self, match: re.Match[str]) -> str:
        name = match["quoted"] or match["bare"]
        known = [each for each in self._settled if is_pattern(each)] if is_pattern(name or "") else []
        if name and name not in self._settled and len(self._settled) < _NAMES and len(known) < _PATTERNS:
            self._settled[name] = self._replacement(name) or match[0]
        return self._settled.get(name, match[0])

    def _replacement(self, name: str) -> str | None:
        bare = len(name.rstrip(_AFTER))
        for typed in (name[:end] for end in range(min(len(name), bare + _STOPS), bare - 1, -1)):
            path = as_path(typed)
            found = self._files.get(path) or _named(typed)
            if found and found.files:
                self._files[path] = found
                _check_size(attachment for each in self._files.values() for attachment in each.files)
                return (found.files[0].name if _file(typed) else found.name) + name[len(typed) :]
        if _LIKE_A_FILE.match(name[:bare]):
            self._missing.append(f"@{sanitise_line(name[:80])} names no file: sent as it is")
        return None


def _file(name: str) -> Path | None:
    path = as_path(name)
    try:
        return path if name and path.is_file() else None
    except (OSError, ValueError):  # too long, or no name that a file could have
        return None


def _is_folder(name: str, bare: bool) -> bool:
    try:
        return (bare or (name.strip("./~") != "" and name.endswith("/"))) and as_path(name).is_dir()
    except (OSError, ValueError):
        return False


def _check_size(attachments: Iterable[Attachment]) -> None:
    if sum(len(each.text) for each in attachments) > LIMIT:
        raise UsageError(
            f"the attached files are larger than {LIMIT_TOLD} together", "nothing was sent", "attach fewer"
        )


def to_message(text: str, attachments: Sequence[Attachment]) -> str:
    """What is sent: each file by name in a code fence that nothing in it can close, then the text, which models answer better
    where it comes last."""
    _check_size(attachments)
    return "\n\n".join([*(enclosed(each.name, each.text) for each in attachments), *([text] if text else [])])


def joined(attached: Sequence[Attachment], new: Sequence[Attachment]) -> list[Attachment]:
    """All of them, each once."""
    return list(dict.fromkeys([*attached, *new]))


def some(attachments: Sequence[Attachment]) -> str:
    """Their names, or of many how many they are."""
    return ", ".join(each.name for each in attachments) if len(attachments) < 4 else f"{len(attachments)} files"


# ---- how large they are ----


def told(found: Found, weigh: Weigh, context: int) -> str:
    """Like "attached notes.md (1,234 tokens, 5% of the context)". `context`: tokens; 0: not known."""
    what = found.files[0].name if len(found.files) == 1 else f"{len(found.files)} files of {found.name}"
    size = weigh("\n\n".join(each.text for each in found.files))
    characters = sum(len(each.text) for each in found.files)
    told = _tokens(size, context) if size else f"{characters:,} characters"
    return f"attached {what} ({told})" + (f"; left out: {found.left_out}" if found.left_out else "")


def _tokens(size: TextSize, context: int) -> str:
    tokens = f"{'' if size.counted else 'about '}{size.tokens:,} token{'s' * (size.tokens != 1)}"
    return f"{tokens}, {percent(size.tokens, context)} of the context" if context else tokens


def require_room(what: str, message: str, weigh: Weigh, context: int, done: str, remedy: str) -> None:
    """Raises DoesNotFitError for a message that the context cannot hold, before any of it is read. `what` makes it so large and
    was not `done`; a context that could be had is told beside the remedy."""
    size = weigh(message)
    if size is None or size.fits:
        return
    if larger := _larger(size, context):
        remedy += f", or start with --ctx-size {larger}"
    cause = f"{what}: {_tokens(size, 0)}, and the context holds {context:,}"
    raise DoesNotFitError(cause, f"it was not {done}", remedy)


def _larger(size: TextSize, context: int) -> int:
    """A context in which the message leaves a quarter for the answer, in whole 1,024s; 0 where that is more than can be had."""
    needed = (size.tokens + context - size.room) * 4 // 3 // 1024 * 1024 + 1024
    return needed if needed <= size.most else 0
