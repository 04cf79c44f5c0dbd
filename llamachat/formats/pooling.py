"""How a model's files say that the vectors of a text's tokens become one of the text."""

from pathlib import Path

from llamachat.checks import shown
from llamachat.errors import FormatError
from llamachat.system.metadata import Fields, parse_json, read_json, read_text

MODES = {  # sentence-transformers' flags -> what they ask for
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "first",
    "pooling_mode_max_tokens": "maximum",
    "pooling_mode_mean_sqrt_len_tokens": "sum by the root of the length",
    "pooling_mode_weightedmean_tokens": "weighted mean",
}
USUAL = ("Transformer", "Pooling", "Normalize")  # sentence-transformers' modules that are done here
LIMIT = 1 << 16  # bytes of modules.json; most have 500
GGUF_POOLING = (None, "mean", "first", "last", None)  # by llama.cpp's pooling_type; the last is a rank


def of_folder(folder: Path) -> str | None:
    """As sentence-transformers' 1_Pooling/config.json has it; None without one. Names of modules of modules.json that come behind
    are told, too. Raises FormatError, ConfigError."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    fields = Fields(read_json(path), str(path))
    named = fields.text("pooling_mode", "")
    modes = [{"lasttoken": "last", "cls": "first"}.get(named, named)] if named else [
        mode for key, mode in MODES.items() if fields.flag(key, False)
    ]  # fmt: skip
    return " and ".join([*modes, *_behind(folder / "modules.json")]) or None


def _behind(path: Path) -> list[str]:
    """Modules that change a vector after it was pooled."""
    if not path.is_file():
        return []
    listed = parse_json(f'{{"modules": {read_text(path, LIMIT)}}}', str(path))["modules"]
    if not isinstance(listed, list):
        raise FormatError(f"{path} holds {shown(listed)}", "a list of modules is needed")
    kinds = [Fields(each, str(path)).text("type").rpartition(".")[2] for each in listed]
    return [f"a module {shown(kind)}" for kind in kinds if kind not in USUAL]
