"""Where our own files lie: the XDG folders (or what stands for them on this system). Nothing here creates them."""

import os
from pathlib import Path


def config_dir() -> Path:
    """The user's models.toml."""
    return _dirs("config")


def data_dir() -> Path:
    """Saved dialogs."""
    return _dirs("data")


def state_dir() -> Path:
    """Input history."""
    return _dirs("state")


def cache_dir() -> Path:
    """Fetched models, which files were verified, packed weights, keys and values of dialogs: all of it can be had again."""
    return _dirs("cache")


def hub_cache_dir() -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it but without importing it."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub = os.path.join(os.environ.get("HF_HOME", os.path.join(home, "huggingface")), "hub")  # noqa: PTH118 (may hold $VAR)
    named = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", hub))
    return Path(os.path.expanduser(os.path.expandvars(named)))  # noqa: PTH111 (raises nothing without a home)


def _dirs(kind: str) -> Path:
    import platformdirs

    found: Path = getattr(platformdirs, f"user_{kind}_path")("llamachat", appauthor=False)
    return found
