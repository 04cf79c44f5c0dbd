"""What `llamachat` alone means, and the order of its commands."""

from typing import Any

import typer.core

from llamachat.cli.defaults import chat_context

ORDER = (  # those for every day first
    "chat", "complete", "classify", "tag", "extract", "embed", "models", "config", "quantize", "eval", "bench",
)  # fmt: skip
