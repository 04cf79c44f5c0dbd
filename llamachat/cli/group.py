"""What `llamachat` alone, with flags or with a question means, and what a shell completes then."""

from itertools import takewhile
from typing import Any

import typer.core

from llamachat.cli.asking import UNNAMED, check_words
from llamachat.cli.commands import Commands
from llamachat.cli.defaults import chat_context
from llamachat.cli.plain_values import spare

OWN_FLAGS = {"--help", "-h", "--version", "--install-completion", "--show-completion"}


class ChatByDefault(typer.core.TyperGroup):
    """`llamachat`, `llamachat -m NAME` and `llamachat "question"` mean `llamachat chat ...`."""

    def __init__(self, *, commands: Any, **attributes: Any) -> None:
        """`commands`: typer's, of which there are none; ours are imported when they are asked for."""
        super().__init__(**attributes)
        self.commands: Any = Commands()

    def get_params(self, ctx: Any) -> list[Any]:
        return spare(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._meant(ctx, args))

    def _meant(self, ctx: Any, args: list[str]) -> list[str]:
        """The command line with the command that is meant. Raises UsageError for a word that is neither command nor question."""
        if not args:  # a shell that completes asks what may come
            return [] if ctx.resilient_parsing else ["chat"]
        if args[0] == "help":
            return [*args[1:], "--help"]
        if args[0] in self.commands or args[0] in OWN_FLAGS:
            return args
        if not (ctx.resilient_parsing or args[0].startswith("-")):
            check_words([*takewhile(lambda each: not each.startswith("-"), args)], self.commands)
        ctx.meta[UNNAMED] = True
        return ["chat", *args]

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands, aliases too once a letter is typed; or flags, chat's too."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete and not incomplete.startswith("-"):
            return [*found, *self._aliases(incomplete)]
        if not incomplete:
            return found
        chat = chat_context(ctx)
        known = {item.value for item in found}
        return [*found, *(item for item in chat.command.shell_complete(chat, incomplete) if item.value not in known)]

    def _aliases(self, incomplete: str) -> list[Any]:
        item = vars(typer.core)["CompletionItem"]
        begun = {name: self.commands[name] for name in self.commands if name.startswith(incomplete)}
        return [item(name, help=each.get_short_help_str()) for name, each in begun.items() if each.hidden]
