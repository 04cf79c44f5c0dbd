"""What a shell offers for an argument when Tab is pressed: names, each with a word on it. It must be quick, and never fail.

Where nothing is offered, the shell offers files.
"""

import re
from collections.abc import Callable, Iterable

from llamachat.errors import LlamachatError
from llamachat.system.sanitise import sanitise_line

Word = tuple[str, str]


def _quiet(words: Callable[[], Iterable[Word]], incomplete: str) -> list[Word]:
    try:
        return [
            (name, sanitise_line(help))
            for name, help in words()
            if name.startswith(incomplete) and name == sanitise_line(name)
        ]
    except (LlamachatError, OSError):  # told of when the name is used
        return []


def models(incomplete: str) -> list[Word]:
    """The catalog's."""
    from llamachat.chat.persona import Library

    return _quiet(Library().models, incomplete)


def personas(incomplete: str) -> list[Word]:
    from llamachat.chat.persona import Library

    return _quiet(Library().personas, incomplete)


def sessions(incomplete: str) -> list[Word]:
    """The saved dialogs' that need no quotes. They are not opened: there may be many."""
    from llamachat import paths

    files = sorted((paths.data_dir() / "sessions").glob("*.jsonl"))
    return _quiet(lambda: ((file.stem, "") for file in files if re.fullmatch(r"[\w.+-]+", file.stem)), incomplete)
