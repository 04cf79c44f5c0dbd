"""Text files that go with a message: named by @path in it, or by /read."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import UsageError
from llamachat.system import textfile
from llamachat.system.sanitise import sanitise_line

LIMIT = 1_000_000  # bytes of one file, and of all in a message
LIMIT_TOLD = "1 MB"
_NAMES = 1000  # that are looked up
_NOTES = 3  # of names that are no files; a pasted text may be full of them
_PARTS = re.compile(  # a code block, or a mention
    r"^ {0,3}(`{3,}+|~{3,}+)[^\n]*+(?:\n.*?(?:^ {0,3}\1|\Z))?"
    r'|(?<![\w@/.`])@(?:"(?P<quoted>[^"\n]+)"|(?P<bare>[^\s"@`]+))',
    re.DOTALL | re.MULTILINE,
)
_AFTER = ".,;:!?)]}'>"  # of the sentence rather than of the name
_LIKE_A_FILE = re.compile(r"[./~].*\w|\w.*(?:/|\.\w{1,8}\Z)", re.DOTALL)


@dataclass(frozen=True)
class Attachment:
    name: str  # safe to show
    text: str


def told(attachment: Attachment) -> str:
    return f"attached {attachment.name} ({len(attachment.text):,} characters)"


def as_path(text: str) -> Path:
    """What a person typed; ~ is their home, quotes around it are taken off."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return Path(os.path.expanduser(text))  # noqa: PTH111 (raises nothing without a home)


def read(path: Path) -> Attachment:
    """Raises UsageError for what is no UTF-8 text file of at most LIMIT bytes."""
    name = sanitise_line(str(path.name or path))
    try:
        if not path.exists():
            raise _refused(name, "is not there", "check the name")
        content = textfile.read(path, LIMIT)
    except textfile.TooLargeError as error:
        raise _refused(name, f"is larger than {LIMIT_TOLD}", "attach a part of it") from error
    except (OSError, ValueError) as error:
        raise _refused(name, f"cannot be read ({getattr(error, 'strerror', None) or error})", "check it") from error
    return Attachment(name, _decoded(content, name))


def _decoded(content: bytearray, name: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(name, "is not UTF-8 text", "convert it") from error
    if "\0" in text:
        raise _refused(name, "is not text", "attach a text file")
    return text.replace("\r\n", "\n")


def _refused(name: str, cause: str, remedy: str) -> UsageError:
    return UsageError(f"{name} {cause}", "it was not attached", remedy)


class Mentions:
    """What @path and @"path" in a text come to: `found` files, `notes` of names that are none, and the `text` with the name of
    each file in the place of its mention.

    Code blocks are not searched, nor is @ within a word. Raises UsageError for a file that cannot be attached.
    """

    def __init__(self, text: str) -> None:
        self._files: dict[Path, Attachment] = {}
        self._settled: dict[str, str] = {}
        self._missing: list[str] = []
        self.text = _PARTS.sub(self._settle, text)
        self.found = list(self._files.values())
        more = len(self._missing) - _NOTES
        self.notes = self._missing[:_NOTES] + ([f"and {more} more like it"] if more > 0 else [])

    def _settle(self, match: re.Match[str]) -> str:
        name = match["quoted"] or match["bare"]
        if name and name not in self._settled and len(self._settled) < _NAMES:
            self._settled[name] = self._replacement(name) or match[0]
        return self._settled.get(name, match[0])

    def _replacement(self, name: str) -> str | None:
        for typed in dict.fromkeys((name, name.rstrip(_AFTER))):
            if path := _file(typed):
                self._files[path] = self._files.get(path) or read(path)
                _check_size(self._files.values())
                return self._files[path].name + name[len(typed) :]
        if _LIKE_A_FILE.match(name.rstrip(_AFTER)):
            self._missing.append(f"@{sanitise_line(name[:80])} names no file: sent as it is")
        return None


def _file(name: str) -> Path | None:
    path = as_path(name)
    try:
        return path if name and path.is_file() else None
    except (OSError, ValueError):  # too long, or no name that a file could have
        return None


def _check_size(attachments: Iterable[Attachment]) -> None:
    if sum(len(each.text) for each in attachments) > LIMIT:
        raise UsageError(
            f"the attached files are larger than {LIMIT_TOLD} together", "nothing was sent", "attach fewer"
        )


def to_message(text: str, attachments: Sequence[Attachment]) -> str:
    """What is sent: the text, then each file by name in a code fence that nothing in it can close."""
    _check_size(attachments)
    return "\n\n".join([text, *map(_framed, attachments)]).lstrip("\n")


def _framed(attachment: Attachment) -> str:
    longest = max((len(run) for run in re.findall("`+", attachment.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{attachment.name}:\n{fence}\n{attachment.text.removesuffix(chr(10))}\n{fence}"
