"""Where all lies that is kept, for a person who wants to see or to delete it."""

import os
from pathlib import Path

from llamachat import paths
from llamachat.events import Place
from llamachat.generation import kept


def dialogs() -> Path:
    return paths.data_dir() / "sessions"


def input_history() -> Path:
    return paths.state_dir() / "history"


def places() -> list[Place]:
    """The Hugging Face cache is not measured: it may be large, and is others' too."""
    measured = {
        "dialogs": dialogs(),
        "input history": input_history(),
        "keys and values": kept.folder(),
        "packed weights": paths.cache_dir() / "packed",
        "settings": paths.config_dir(),
        "default model": paths.cache_dir() / "models",
    }
    found = [Place(what, _short(path), _size(path)) for what, path in measured.items()]
    return [*found, Place("other models", _short(paths.hub_cache_dir()), "")]


def _short(path: Path) -> str:
    """With ~ for the home folder."""
    home = os.path.expanduser("~")  # noqa: PTH111 (raises nothing without a home)
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _size(path: Path) -> str:
    from llamachat.engines.memory import size

    if not path.exists():
        return "nothing"
    return size(sum(each.lstat().st_size for each in (path, *path.rglob("*")) if each.is_file()))
