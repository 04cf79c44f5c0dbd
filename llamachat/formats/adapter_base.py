"""Whether a folder holds an adapter as PEFT writes it, and what that was trained on. Imports nothing heavy."""

from pathlib import Path

from llamachat.system.metadata import Fields, read_json

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_named(folder: Path) -> tuple[str, str | None]:
    """What its configuration says that it was trained on, and of which revision. Raises ConfigError."""
    fields = Fields(read_json(folder / CONFIG), str(folder / CONFIG))
    return fields.text("base_model_name_or_path", "").strip(), fields.text("revision", "") or None
