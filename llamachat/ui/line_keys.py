"""Keys that change the line, and what happens when one fails."""

from collections.abc import Callable

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
from prompt_toolkit.key_binding import KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyProcessor

_FED = 1000  # keys that those which were typed may stand for: a macro of vi's may call itself for ever
_REPEATS = 999  # how often one key may be repeated by a number typed before it


def guard(processor: KeyProcessor, buffer: Buffer, mistake: Callable[[Exception], None]) -> None:
    """A key that fails, one of prompt-toolkit's too, costs neither the chat nor the text nor the keys after it.

    `mistake` is told of the error.
    """
    process = processor.process_keys
    before, left = buffer.document, 0

    def look(processor: KeyProcessor) -> None:
        nonlocal before, left
        before, left = buffer.document, left - 1
        if left < 0:
            processor.input_queue.clear()
        if (processor.arg or "").lstrip("-")[len(str(_REPEATS)) :]:
            processor.arg = str(_REPEATS)

    def process_all() -> None:
        nonlocal left
        left = len(processor.input_queue) + _FED
        while True:
            rest = processor.input_queue
            try:
                return process()
            except Exception as error:  # noqa: BLE001 - whatever it was
                if buffer.text != before.text:
                    buffer.save_to_undo_stack()
                    buffer.document = before
                mistake(error)
                processor.feed_multiple(list(rest))

    processor.before_key_press += look
    processor.process_keys = process_all  # type: ignore[method-assign]  # the application calls it in several places


def new_line(event: KeyPressEvent) -> None:
    event.current_buffer.newline(copy_margin=False)


def leave_selection(event: KeyPressEvent) -> None:
    """Ctrl-Space, perhaps pressed by mistake, begins a selection, in which prompt-toolkit takes no more text."""
    event.current_buffer.exit_selection()
    if event.data.isprintable():
        event.current_buffer.insert_text(event.data)


def rub_out(event: KeyPressEvent) -> None:
    """The menu goes on fitting what is typed."""
    event.current_buffer.delete_before_cursor(max(1, event.arg))
    if event.current_buffer.text:
        event.current_buffer.start_completion()


def complete(event: KeyPressEvent) -> None:
    """What all words that fit have in common; where that is nothing more, the next of them. It does not wait for a menu that
    is about to open, as prompt-toolkit's own would, nor is it lost then."""
    buffer = event.current_buffer
    menu = buffer.complete_state
    if menu is None or menu.complete_index is None:
        fitting = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        if common := get_common_complete_suffix(buffer.document, fitting):
            buffer.insert_text(common)
            return
        if len(fitting) == 1:
            buffer.apply_completion(fitting[0])
            return
    if menu:
        buffer.complete_next()
    else:
        buffer.start_completion()


def close_menu(event: KeyPressEvent) -> None:
    event.current_buffer.cancel_completion()
