"""Where all lies that is kept, for a person who wants to see or to delete it."""

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
    found = [Place(what, str(path), _size(path)) for what, path in measured.items()]
    return [*found, Place("other models", str(paths.hub_cache_dir()), "")]


def _size(path: Path) -> str:
    from llamachat.engines.memory import size

    if not path.exists():
        return "nothing"
    return size(sum(each.lstat().st_size for each in (path, *path.rglob("*")) if each.is_file()))
