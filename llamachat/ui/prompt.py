"""The line where a person types, alive for the whole chat: prompt-toolkit, with our keys, a private history, a status."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.application.run_in_terminal import in_terminal, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer
from prompt_toolkit.cursor_shapes import ModalCursorShapeConfig
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, has_completions, has_focus, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import ConditionalContainer, Dimension, Float, FloatContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import HighlightIncrementalSearchProcessor, HighlightSelectionProcessor
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import SearchToolbar

from llamachat.errors import UsageError
from llamachat.system import private
from llamachat.system.sanitise import sanitise_line
from llamachat.ui import commands
from llamachat.ui.cells import cut
from llamachat.ui.editor import edited
from llamachat.ui.live import Region

_STYLE = Style.from_dict({"prompt": "ansicyan bold", "status": "dim", "hint": "italic"})
_LEAVE_HINT = "Ctrl-D or /exit to leave"
_BLOCK_HINT = 'in a block of lines: """ and Enter send it'
_MENU = 8  # rows of the completion menu
_LARGE = 1000  # characters of a pasted text that is shown by its size instead: it would hide all else, and be slow
_LARGE_LINES = 12
_PASTED = re.compile(r"\[pasted [\d,]+ characters(?: #\d+)?\]")


class PrivateHistory(FileHistory):
    """What was typed, in a file. A disk that fills up costs the history, not the chat: `trouble` then says so."""

    trouble = ""

    def store_string(self, string: str) -> None:
        if _PASTED.search(string):  # means nothing in another chat
            return
        try:
            super().store_string(string)
        except OSError as error:
            self.trouble = f"your history is no longer saved: {error.strerror}"


def open_history(path: Path) -> PrivateHistory:
    """The history in a file that only its owner can read. Raises UsageError."""
    try:
        private.folder(path.parent)
        os.close(private.opened(path, os.O_RDWR))
    except OSError as error:
        cause = f"the history file {path} cannot be opened ({error.strerror})"
        raise UsageError(cause, "what you type is not remembered", "make it writable") from error
    return PrivateHistory(path)


class Listener(Protocol):
    """Who is told of what the person does. All calls come in the event loop's thread."""

    def send(self, text: str, shown: str) -> None:
        """A text was sent; `shown` has the size of what was pasted in place of it."""
        ...

    def stop(self) -> bool:
        """Ctrl-C: stop what is going on, if anything is."""
        ...

    def leave(self) -> None: ...

    def status(self) -> Sequence[str]:
        """The lines below the input."""
        ...

    @property
    def queued(self) -> bool:
        """Whether texts that were sent wait."""
        ...

    def take_back(self) -> str:
        """The last of them, which waits no more."""
        ...

    def hidden(self) -> None:
        """The prompt is about to go, for something else to use the terminal."""
        ...

    def cleared(self) -> None:
        """The screen is empty, but for the prompt."""
        ...


class Prompt:
    """The input line and the status below it, as one application that `run` keeps going. Not thread-safe but `redraw`."""

    def __init__(
        self,
        listener: Listener,
        *,
        completer: Completer | None = None,
        history: PrivateHistory | None = None,
        no_color: bool = False,
        vi: bool = False,
        output: Output | None = None,
    ) -> None:
        self._listener = listener
        self._history = history
        self._hint = ""
        self._pasted: dict[str, str] = {}
        self.hidden = False  # something else has the terminal
        self.region, self.size = Region(), Size(0, 0)  # as they were last drawn
        self._buffer = Buffer(multiline=True, completer=completer, history=history or InMemoryHistory())
        self._buffer.on_text_changed += self._forget_hint
        search = SearchToolbar()
        self.app: Application[int] = Application(
            layout=self._layout(search),
            key_bindings=self._keys(vi),
            style=_STYLE,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            cursor=ModalCursorShapeConfig() if vi else None,
            color_depth=ColorDepth.DEPTH_1_BIT if no_color else None,
            erase_when_done=True,
            output=output,
        )
        self.app.ttimeoutlen = 0.05
        self.app.before_render += self._before_render
        self.app.after_render += self._after_render
        self.redraw = self.app.invalidate

    @property
    def text(self) -> str:
        return self._buffer.text

    def offer(self, text: str) -> bool:
        """Put a text there to be sent or changed, unless something is being typed; returns whether it is there."""
        free = not self._buffer.text
        if free:
            self._buffer.document = Document(text)
        return free

    def give_back(self, texts: Sequence[str]) -> None:
        """Put texts there again that were sent, before what is being typed."""
        self._buffer.save_to_undo_stack()
        self._buffer.document = Document("\n".join([*texts, *filter(None, [self._buffer.text])]))

    # ---- looks ----

    def _layout(self, search: SearchToolbar) -> Layout:
        control = BufferControl(
            self._buffer,
            search_buffer_control=search.control,
            input_processors=[HighlightIncrementalSearchProcessor(), HighlightSelectionProcessor()],
            include_default_input_processors=False,
            preview_search=True,
        )
        typed = Window(control, height=self._height, get_line_prefix=_prefix, wrap_lines=True)
        menu = Float(CompletionsMenu(max_height=_MENU, scroll_offset=1), xcursor=True, ycursor=True, transparent=True)
        status = Window(FormattedTextControl(self.status), dont_extend_height=True, style="class:status")
        tall = Condition(lambda: self.app.output.get_size().rows > 2 + is_searching())  # one row is not the region's
        return Layout(HSplit([FloatContainer(typed, [menu]), search, ConditionalContainer(status, tall)]), typed)

    def _height(self) -> Dimension:
        """At most half of the screen, so that what is above can be redrawn; room for the menu while it is open."""
        most = max(1, self.app.output.get_size().rows // 2 - 1)
        menu = self._buffer.complete_state
        return Dimension(min=min(most, 1 + min(_MENU, len(menu.completions)) if menu else 1), max=most)

    def status(self) -> StyleAndTextTuples:
        size = self.app.output.get_size()
        trouble = self._history.trouble if self._history else ""
        hint = _BLOCK_HINT if commands.block_open(self._buffer.text) else self._hint or trouble
        lines = [hint] if hint else self._listener.status()
        kept = lines[: max(1, size.rows // 2 - 1)]
        return [("", "\n".join(cut(line, size.columns - 1) for line in kept))]

    def _before_render(self, app: Application[int]) -> None:
        """The renderer never gives rows back by itself, and thinks that it begins in the first column."""
        screen, size = app.renderer.last_rendered_screen, app.output.get_size()
        if screen is None:
            app.output.write_raw("\r")
        elif app.layout.container.preferred_height(size.columns, size.rows).preferred < screen.height:
            app.renderer.erase()

    def _after_render(self, app: Application[int]) -> None:
        screen, self.size = app.renderer.last_rendered_screen, app.output.get_size()
        if screen is None:
            self.region = Region()
        else:
            cursor = screen.get_cursor_position(app.layout.current_window)
            self.region = Region(min(screen.height, self.size.rows), cursor.x, cursor.y)

    # ---- keys ----

    def _keys(self, vi: bool) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(self._buffer)
        empty = Condition(lambda: not self._buffer.text)
        keys.add("enter", filter=typing)(self._send)
        if not vi:  # where Escape must not wait for what follows it
            keys.add("escape", "enter", filter=typing)(_new_line)
        keys.add("c-j", filter=typing)(_new_line)
        keys.add("c-c", filter=typing)(self._stop_or_clear)
        keys.add("<sigint>")(self._stop_or_clear)
        keys.add("c-d", filter=typing & empty)(lambda event: self._listener.leave())
        waiting = Condition(lambda: self._listener.queued)
        keys.add("up", filter=typing & empty & waiting & ~has_completions)(self._take_back)
        keys.add("c-l", filter=typing)(self._clear_screen)
        keys.add("c-g", filter=typing)(self._edit)
        keys.add(Keys.BracketedPaste, filter=typing)(self._paste)
        if hasattr(signal, "SIGTSTP"):
            keys.add("c-z")(self._suspend)
        return keys

    def _send(self, event: KeyPressEvent) -> None:
        shown = self._buffer.text
        if commands.block_open(self._whole(shown)):
            _new_line(event)
        elif shown.strip():
            self._buffer.append_to_history()
            self._buffer.reset()
            self._listener.send(_valid(self._whole(shown)), _valid(shown))

    def _stop_or_clear(self, event: KeyPressEvent) -> None:
        """Undo (Ctrl-_) brings the text back."""
        if self.hidden or self._listener.stop():
            return
        self._buffer.save_to_undo_stack()
        self._buffer.document = Document()
        self._hint = _LEAVE_HINT

    def _take_back(self, event: KeyPressEvent) -> None:
        self._buffer.document = Document(self._listener.take_back())

    def _forget_hint(self, buffer: Buffer) -> None:
        self._hint = ""

    def _clear_screen(self, event: KeyPressEvent) -> None:
        event.app.renderer.clear()
        self.region = Region()
        self._listener.cleared()

    def _paste(self, event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        if len(text) > _LARGE or text.count("\n") >= _LARGE_LINES:
            text = self._placeholder(text)
        self._buffer.insert_text(text)

    def _placeholder(self, text: str) -> str:
        known = (name for name, kept in self._pasted.items() if kept == text)
        number = f" #{len(self._pasted) + 1}" if self._pasted else ""
        name = next(known, f"[pasted {len(text):,} characters{number}]")
        self._pasted[name] = text
        return name

    def _whole(self, shown: str) -> str:
        return _PASTED.sub(lambda match: self._pasted.get(match[0], match[0]), shown) if self._pasted else shown

    def _edit(self, event: KeyPressEvent) -> None:
        self._while_hidden(event, self._editor())

    async def _editor(self) -> None:
        try:
            text = await run_in_terminal(partial(edited, self._whole(self._buffer.text)), in_executor=True)
        except UsageError as error:
            self._hint = sanitise_line(str(error))
        else:
            self._buffer.document = Document(text)

    def _suspend(self, event: KeyPressEvent) -> None:
        self._while_hidden(event, _sleep())

    def _while_hidden(self, event: KeyPressEvent, action: Coroutine[None, None, None]) -> None:
        async def run() -> None:
            try:
                await action
            finally:
                self.hidden = False
                self.redraw()

        self.hidden = True
        self._listener.hidden()
        event.app.create_background_task(run())


async def _sleep() -> None:
    """Ctrl-Z: back to the shell, until it says otherwise."""
    async with in_terminal():
        os.kill(0, signal.SIGTSTP)
        await asyncio.sleep(0)


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.newline(copy_margin=False)


def _valid(text: str) -> str:
    """Bytes that are no UTF-8 come as lone surrogates."""
    return text.encode(errors="replace").decode()


def _prefix(line: int, wrapped: int) -> StyleAndTextTuples:
    return [("", "  ")] if line or wrapped else [("class:prompt", sign())]


def sign() -> str:
    """What stands before a typed text."""
    try:
        "❯".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "> "
    return "❯ "
