"""llamachat: private local chat with Llama-family models. The Python API is `Llama`; see api.py."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamachat.api import Llama as Llama

__version__ = "0.1.0"
__all__ = ["Llama", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Llama":  # imported when asked for: `llamachat --help` must stay instant
        from llamachat.api import Llama

        return Llama
    raise AttributeError(f"module 'llamachat' has no attribute {name!r}")
