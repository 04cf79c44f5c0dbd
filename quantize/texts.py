"""The text that shows what a model's activations are like."""

import ast
import sysconfig
from pathlib import Path

from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import UsageError
from llamachat.generation.perplexity import windows

CHARACTERS = 400_000
WINDOW, WINDOWS = 512, 32  # tokens, and how many of them


def calibration_windows(tokenizer: Tokenizer, text: str | None = None) -> list[list[int]]:
    """Ids of a text, by default of what Python's library says of itself, in windows."""
    return windows(tokenizer.encode(text or docstrings()), WINDOW, WINDOWS, tokenizer.bos_id)


def docstrings() -> str:
    """A text for calibration that is always at hand: what Python's standard library says of itself."""
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_bytes())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
        if sum(map(len, texts)) > CHARACTERS:
            break
    if not texts:
        raise UsageError("Python's library has no docstrings here", "there is no text to calibrate on", "--calibration")
    return "\n\n".join(texts)
