"""Completion: of commands and their arguments, and of @paths in a message."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from llamachat.errors import LlamachatError
from llamachat.system.sanitise import sanitise_line
from llamachat.ui.commands import COMMANDS, Command, Context, named
from llamachat.ui.commands.command import Word

PATHS = (".", "/", "~")  # how one begins where there are other words
_MOST = 200  # entries of a folder
_TYPED_MENTION = re.compile(r'(?<![\w@/.`])@("?)((?<=")[^"\n]*|[^\s"@`]*)\Z')
_LAST_PATH = re.compile(r'(?<!\S)("?)((?<=")[^"\n]*|[^\s"]*)\Z')


class ChatCompleter(Completer):
    """Offers what may stand for the word before the cursor."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        with suppress(LlamachatError, OSError):  # a catalog that cannot be read is told of when it is used
            typed, words = candidates(self._context, document.text_before_cursor)
            for word, help in words:
                shown = sanitise_line(_short(word))
                yield Completion(word, -len(typed), display=shown, display_meta=sanitise_line(help))


def _short(word: str) -> str:
    """Of a path its last part; STORE:OWNER/NAME is none."""
    return word if ":" in word.partition("/")[0] else re.sub(r".+/(?=.)", "", word)


def candidates(context: Context, text: str) -> tuple[str, Iterable[Word]]:
    """The word at the end of a text, and what it may become."""
    command = re.match(r"/(?!/)(\S*)(\s+)?", text)
    if command and command[2] is None:
        return text, _names(text)
    known = named(command[1]) if command else None
    if command and not (known and "edit" in known.names and " " in text[command.end() :]):  # whose text is a message
        return _argument(context, known, text[command.end() :]) if known else ("", ())
    mention = _TYPED_MENTION.search(text)
    return (mention[0], _quoted("@", mention[1], mention[2])) if mention else ("", ())


def _names(typed: str) -> Iterator[Word]:
    """One name of each command: the first that fits."""
    for command in COMMANDS:
        fitting = ("/" + name for name in command.names if ("/" + name).startswith(typed))
        yield from ((name, command.help) for name in islice(fitting, 1))


def _argument(context: Context, command: Command, argument: str) -> tuple[str, Iterable[Word]]:
    if command.several:
        found = _LAST_PATH.search(argument)
        return (found[0], _quoted("", found[1], found[2])) if found else ("", ())
    last = argument if command.words is None or argument.startswith(PATHS) else argument.rpartition(" ")[2]
    if command.path and (command.words is None or last.startswith(PATHS)):
        return last, paths(last)
    if command.words is None:
        return "", ()
    whole = [(word, help) for word, help in command.words(context, []) if word.startswith(argument)]
    if whole:  # of several words, perhaps
        return argument, whole
    before = argument.split()
    typed = before.pop() if argument and not argument[-1].isspace() else ""
    return typed, [(word, help) for word, help in command.words(context, before) if word.startswith(typed)]


def _quoted(sign: str, quote: str, typed: str) -> Iterator[Word]:
    """Paths behind a sign, in quotes where they have to be."""
    for path, help in paths(typed):
        quoted = quote or re.search(r"[\s@`]", path)
        yield (f'{sign}"{path}' + '"' * (not path.endswith("/")) if quoted else sign + path), help


def paths(typed: str) -> Iterator[Word]:
    """Files, and folders with a slash, whose path begins as typed; hidden ones only for a dot."""
    folder, slash, start = typed.rpartition("/")
    with suppress(OSError, ValueError), os.scandir(os.path.expanduser(folder + slash) or ".") as entries:  # noqa: PTH111
        fitting = (
            entry for entry in entries if entry.name.startswith(start) and (start or not entry.name.startswith("."))
        )
        for entry in sorted(islice(fitting, _MOST), key=lambda entry: entry.name):
            yield folder + slash + entry.name + "/" * entry.is_dir(), ""
