"""LM Studio's models: PUBLISHER/REPOSITORY/FILE.gguf, or a folder of safetensors (MLX), below one folder.

Its documentation (Import Models) has the layout, its lms command the home folder: what ~/.lmstudio-home-pointer names, else
~/.cache/lm-studio where that is, else ~/.lmstudio. The models are in `models` there, or where "downloadsFolder" of its
settings.json says.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llamachat.errors import CatalogError
from llamachat.models.stores.plain_files import CONFIG, gguf_names, opened_at
from llamachat.models.stores.stored import Name, Store, Stored, document, files, home, text


def folders() -> Sequence[Path]:
    """Each place that a version of it has used: one may be left from before the other."""
    found = list[Path]()
    for base in (_pointed_at(), home(".lmstudio"), home(".cache", "lm-studio")):
        found += [each for each in (_downloads(base), base / "models") if each]
    return list(dict.fromkeys(found))


def _pointed_at() -> Path:
    try:
        return Path(text(home(".lmstudio-home-pointer")).strip() or home(".lmstudio"))
    except CatalogError:
        return home(".lmstudio")


def _downloads(base: Path) -> Path | None:
    try:
        named = document(base / "settings.json").get("downloadsFolder")
    except CatalogError:
        return None
    return Path(named) if isinstance(named, str) and named else None


def names(folder: Path) -> Iterator[Name]:
    """GGUF files without their suffix; of other models the folder."""
    for path in files(folder, depth=2):
        inner = path.relative_to(folder)
        if path.name == CONFIG and len(inner.parts) == 3:
            yield inner.parent.as_posix(), path.parent
        elif len(inner.parts) >= 2:
            yield from gguf_names(folder, path)


def opened(folder: Path, name: str, path: Path) -> Stored:
    return opened_at(f"lmstudio:{name}", path)


STORE = Store("lmstudio", "LM Studio", folders, names, opened, "delete it in LM Studio, under My Models")
