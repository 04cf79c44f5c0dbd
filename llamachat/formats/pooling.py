"""How a model's files say that the vectors of a text's tokens become one of the text."""

from pathlib import Path

from llamachat.system.metadata import Fields, read_json

MODES = {  # sentence-transformers' flags -> what they ask for
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "first",
    "pooling_mode_max_tokens": "maximum",
    "pooling_mode_mean_sqrt_len_tokens": "sum by the root of the length",
    "pooling_mode_weightedmean_tokens": "weighted mean",
}
GGUF_POOLING = (None, "mean", "first", "last", None)  # by llama.cpp's pooling_type; the last is a rank


def of_folder(folder: Path) -> str | None:
    """As sentence-transformers' 1_Pooling/config.json has it; None without one. Raises FormatError, ConfigError."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    fields = Fields(read_json(path), str(path))
    if named := fields.text("pooling_mode", ""):
        return {"lasttoken": "last", "cls": "first"}.get(named, named)
    return " and ".join(mode for key, mode in MODES.items() if fields.flag(key, False)) or None
