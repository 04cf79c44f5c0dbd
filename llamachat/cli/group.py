"""What `llamachat` alone means, and the order of its commands."""

from typing import Any

import typer.core

from llamachat.cli.defaults import chat_context

ORDER = (  # those for every day first
    "chat", "complete", "classify", "tag", "extract", "embed", "sessions", "models", "config", "quantize", "eval", "bench",
)  # fmt: skip
OWN_FLAGS = {"--help", "-h", "--version", "--install-completion", "--show-completion"}


class ChatByDefault(typer.core.TyperGroup):
    """`llamachat` and `llamachat -m NAME` mean `llamachat chat ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        unasked = not args and not ctx.resilient_parsing  # a shell that completes asks what may come
        if unasked or (args and args[0].startswith("-") and args[0] not in OWN_FLAGS):
            args = ["chat", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands; or flags, chat's too."""
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return found
        chat = chat_context(ctx)
        known = {item.value for item in found}
        return [*found, *(item for item in chat.command.shell_complete(chat, incomplete) if item.value not in known)]
