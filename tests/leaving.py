"""A conversation that is left once all that was sent to it is done: a typed /exit acts at once, and sends nothing that waits."""

from collections.abc import Callable

from prompt_toolkit.input.base import PipeInput

from llamachat.ui.conversation import Conversation

EXIT = "/exit\r"


def leaving(conversation: Conversation, keyboard: PipeInput) -> Callable[[object], None]:
    """To be called after each drawing: sends what Ctrl-C handed back, and leaves as soon as all that was sent is done."""
    begun = False

    def look(app: object) -> None:
        nonlocal begun
        under_way = conversation.busy or conversation.queued
        if begun and not under_way:
            keyboard.send_text("\r" if conversation.prompt.text else EXIT)
        begun = under_way

    return look


def press(conversation: Conversation, keyboard: PipeInput, keys: str) -> None:
    """Have these keys pressed; /exit at their end once all else is done."""
    if keys != EXIT and keys.endswith(EXIT):
        keys = keys.removesuffix(EXIT)
        conversation.prompt.app.after_render += leaving(conversation, keyboard)
    keyboard.send_text(keys)
