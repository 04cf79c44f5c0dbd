"""llamachat: private local chat with Llama-family models. The Python API is `Llama`; see api/."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamachat.api import ChatPrediction as ChatPrediction
    from llamachat.api import CompletionPrediction as CompletionPrediction
    from llamachat.api import Dialog as Dialog
    from llamachat.api import Llama as Llama
    from llamachat.api import Message as Message
    from llamachat.api import ModelArgs as ModelArgs
    from llamachat.api import Role as Role

from llamachat.version import VERSION as __version__  # noqa: N811 - a name that Python prescribes

__all__ = [
    "ChatPrediction",
    "CompletionPrediction",
    "Dialog",
    "Llama",
    "Message",
    "ModelArgs",
    "Role",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: `llamachat --help` must stay instant
        from llamachat import api

        return getattr(api, name)
    raise AttributeError(f"module 'llamachat' has no attribute {name!r}")
