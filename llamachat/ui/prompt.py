"""The line where a person types, alive for the whole chat: prompt-toolkit, with our keys, a private history, a status."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.application.run_in_terminal import in_terminal, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer
from prompt_toolkit.cursor_shapes import ModalCursorShapeConfig
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import (
    Condition,
    emacs_insert_mode,
    emacs_selection_mode,
    has_completions,
    has_focus,
    is_searching,
    vi_insert_mode,
)
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import ConditionalContainer, Dimension, Float, FloatContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import HighlightIncrementalSearchProcessor, HighlightSelectionProcessor
from prompt_toolkit.layout.screen import Screen
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import SearchToolbar

from llamachat.errors import UsageError
from llamachat.system.sanitise import sanitise_line
from llamachat.ui import commands
from llamachat.ui.cells import cut
from llamachat.ui.editor import edited
from llamachat.ui.exchange import sign
from llamachat.ui.keyboard import PASTED, Keyboard
from llamachat.ui.line_keys import close_menu, complete, guard, leave_selection, new_line, rub_out
from llamachat.ui.live import Region
from llamachat.ui.narrowing import rows_above, wraps_anew
from llamachat.ui.pasted import Pasted
from llamachat.ui.theme import Theme, load
from llamachat.ui.typed_history import PrivateHistory

_LEAVE_HINT = "Ctrl-D or /exit to leave"
_BLOCK_HINT = 'in a block of lines: """ and Enter send it'
_MENU = 8  # rows of the completion menu
_NAMING = re.compile(r"/(?!/)\S*\Z")  # a command's name, being typed


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

    def mistake(self, error: Exception) -> None:
        """A key failed; the text is as it was before."""
        ...


class Prompt:
    """The input line and the status below it, as one application that `run` keeps going. Not thread-safe but `redraw`."""

    def __init__(
        self,
        listener: Listener,
        *,
        completer: Completer | None = None,
        history: PrivateHistory | None = None,
        theme: Theme | None = None,
        vi: bool = False,
        typed: bytes = b"",
        output: Output | None = None,
    ) -> None:
        """`typed`: keys that were pressed already, as they were read."""
        theme = theme or load("none")
        self._listener = listener
        self._history = history
        self._hint = ""
        self._pasted = Pasted()
        self._edited = ""  # what came of the person's editor, until it is in the input
        self.hidden = False  # something else has the terminal
        self.region, self.size = Region(), Size(0, 0)  # as they were last drawn
        self.failing = 0  # drawings that were begun and not finished
        self._drawn: Screen | None = None  # the last one that was
        self._wraps_anew = wraps_anew(os.environ)
        self._buffer = Buffer(
            multiline=True,
            completer=completer,
            complete_while_typing=Condition(self._naming),
            history=history or InMemoryHistory(),
        )
        self._buffer.on_text_changed += self._forget_hint
        search = SearchToolbar()
        self.app: Application[int] = Application(
            layout=self._layout(search),
            key_bindings=self._keys(vi),
            style=Style.from_dict(dict(theme.prompt)),
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            cursor=ModalCursorShapeConfig() if vi else None,
            color_depth=ColorDepth.DEPTH_1_BIT if theme.plain else None,
            erase_when_done=True,
            output=output,
        )
        self.app.ttimeoutlen = 0.05
        self.app.before_render += self._before_render
        self.app.after_render += self._after_render
        self.redraw = self.app.invalidate
        guard(self.app.key_processor, self._buffer, listener.mistake)
        self._listen(typed)

    @property
    def text(self) -> str:
        return self._buffer.text

    def remember(self, text: str) -> None:
        """Have Up bring a text back that was not typed here."""
        self._buffer.history.append_string(text)

    def left(self) -> list[str]:
        """What was being typed, now that nothing more will be: in the person's editor, in the input, and before an older text
        was looked up."""
        shown = [self._edited, self._buffer.text, self._other_draft()]
        return [self._pasted.whole(text) for text in shown]

    def offer(self, text: str) -> bool:
        """Put a text there to be sent or changed, unless something is being typed; returns whether it is there."""
        free = not self._buffer.text
        if free:
            command, rest = re.fullmatch(r"(/\S+ \d+ |)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
            self._buffer.document = Document(command + self._pasted.folded(rest))
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
        completions = CompletionsMenu(max_height=_MENU, scroll_offset=1, display_arrows=True)
        menu = Float(completions, xcursor=True, ycursor=True, transparent=True)
        status = Window(FormattedTextControl(self.status), dont_extend_height=True, style="class:status")
        tall = Condition(lambda: self.app.output.get_size().rows > 2 + is_searching())  # one row is not the region's
        return Layout(HSplit([FloatContainer(typed, [menu]), search, ConditionalContainer(status, tall)]), typed)

    def _height(self) -> Dimension:
        """At most half of the screen, so that what is above can be redrawn; room for the menu while it is open."""
        menu = self._buffer.complete_state
        return Dimension(min=1 + min(self._menu_room(), len(menu.completions)) if menu else 1, max=self._most())

    def _most(self) -> int:
        return max(1, self.app.output.get_size().rows // 2 - 1)

    def _menu_room(self) -> int:
        return min(_MENU, self._most() - 1)

    def status(self) -> StyleAndTextTuples:
        size = self.app.output.get_size()
        trouble = self._history.trouble if self._history else ""
        hint = _BLOCK_HINT if commands.block_open(self._buffer.text) else self._menu_hint() or self._hint or trouble
        lines = [hint] if hint else self._listener.status()
        kept = lines[: max(1, size.rows // 2 - 1)]
        return [("", "\n".join(cut(line, size.columns - 1) for line in kept))]

    def _menu_hint(self) -> str:
        menu = self._buffer.complete_state
        hidden = len(menu.completions) - self._menu_room() if menu else 0
        return f"… {hidden} more: type on, or choose with Tab and the arrows; Esc closes" if hidden > 0 else ""

    def _before_render(self, app: Application[int]) -> None:
        """The renderer never gives rows back by itself, and thinks that it begins in the first column."""
        self.failing += 1
        size = app.output.get_size()
        if self._drawn and size.columns < self.size.columns and self._wraps_anew:
            self._erase_wrapped(app, self._drawn, size.columns)
        screen = app.renderer.last_rendered_screen
        if screen is None:
            app.output.write_raw("\r")
        elif app.layout.container.preferred_height(size.columns, size.rows).preferred < screen.height:
            app.renderer.erase()

    def _erase_wrapped(self, app: Application[int], drawn: Screen, columns: int) -> None:
        """The terminal has made more rows of what was drawn, and the renderer goes up too few of them to erase it."""
        if app.renderer.last_rendered_screen is not None:  # else it has done so already
            app.renderer.erase()
        more = rows_above(drawn, Point(self.region.x, self.region.y), columns) - self.region.y
        if more > 0:
            app.output.write_raw("\r")
            app.output.cursor_up(more)
            app.output.erase_down()

    def _after_render(self, app: Application[int]) -> None:
        self.failing = 0
        self._drawn = screen = app.renderer.last_rendered_screen
        self.size = app.output.get_size()
        if screen is None:
            self.region = Region()
        else:
            cursor = screen.get_cursor_position(app.layout.current_window)
            self.region = Region(min(screen.height, self.size.rows), cursor.x, cursor.y)

    # ---- keys ----

    def _listen(self, typed: bytes) -> None:
        """Have what the terminal sends read by our parser, and what came before."""
        keys: list[KeyPress] = []
        Keyboard(keys.append).feed(typed.decode(errors="surrogateescape"))
        store_typeahead(self.app.input, keys)
        if isinstance(self.app.input, Vt100Input):
            self.app.input.vt100_parser = Keyboard(self.app.input.vt100_parser.feed_key_callback)

    def _naming(self) -> bool:
        """Whether a command's name is being typed."""
        return bool(_NAMING.fullmatch(self._buffer.text)) and self._buffer.document.is_cursor_at_the_end

    def _keys(self, vi: bool) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(self._buffer)
        empty = Condition(lambda: not self._buffer.text)
        for send in ("enter", "c-o"):  # with the other prompt-toolkit would clear the line
            keys.add(send, filter=typing)(self._send)
        if not vi:  # where Escape must not wait for what follows it
            keys.add("escape", "enter", filter=typing)(new_line)
        keys.add("c-j", filter=typing)(new_line)
        keys.add("c-c", filter=typing)(self._stop_or_clear)
        keys.add("<sigint>")(self._stop_or_clear)
        keys.add("c-d", filter=typing & empty)(lambda event: self._listener.leave())
        waiting = Condition(lambda: self._listener.queued)
        keys.add("up", filter=typing & empty & waiting & ~has_completions)(self._take_back)
        keys.add("c-l")(self._clear_screen)
        keys.add("c-g", filter=typing)(self._edit)
        keys.add(Keys.BracketedPaste, filter=typing)(self._paste)
        for report in (Keys.Vt100MouseEvent, Keys.CPRResponse):  # in a macro of vi's, say
            keys.add(report)(lambda event: None)
        keys.add(Keys.Any, filter=typing & emacs_selection_mode)(leave_selection)
        keys.add("backspace", filter=typing & Condition(self._naming) & (emacs_insert_mode | vi_insert_mode))(rub_out)
        keys.add("tab", filter=typing & (emacs_insert_mode | vi_insert_mode))(complete)
        alone = Condition(lambda: not self.app.key_processor.input_queue)  # no part of Alt-Enter
        keys.add("escape", filter=typing & has_completions & alone, eager=True)(close_menu)
        if hasattr(signal, "SIGTSTP"):
            keys.add("c-z")(self._suspend)
        return keys

    def _send(self, event: KeyPressEvent) -> None:
        shown = self._buffer.text
        if commands.block_open(self._pasted.whole(shown)):
            new_line(event)
        elif shown.strip():
            self._buffer.append_to_history()
            draft = self._other_draft()
            self._buffer.reset(Document(draft))
            self._listener.send(_valid(self._pasted.whole(shown)), _valid(shown))

    def _other_draft(self) -> str:
        """What was being typed when an older text was looked up and sent in its place."""
        before = self._buffer.working_index
        self._buffer.history_forward(sys.maxsize)
        return "" if self._buffer.working_index == before else self._buffer.text

    def _stop_or_clear(self, event: KeyPressEvent) -> None:
        """Undo (Ctrl-_) brings the text back, and Up once another one was sent."""
        if self.hidden or self._listener.stop():
            return
        self._buffer.save_to_undo_stack()
        if self._buffer.text.strip():
            self._remember(self._buffer.text)
        self._buffer.document = Document()
        self._hint = _LEAVE_HINT

    def _remember(self, text: str) -> None:
        if isinstance(self._buffer.history, PrivateHistory):
            self._buffer.history.remember(text)
        else:
            self._buffer.history.append_string(text)

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
        self._buffer.insert_text(self._pasted.folded(text), fire_event=False)  # which would open the menu
        if len(event.data) >= PASTED:
            self._hint = f"what was pasted is cut off after {PASTED:,} characters"

    def _edit(self, event: KeyPressEvent) -> None:
        self._while_hidden(event, self._editor())

    async def _editor(self) -> None:
        """A chat that is ended meanwhile waits for the editor, and keeps what came of it."""

        def edit(text: str) -> None:
            self._edited = edited(text)

        try:
            await run_in_terminal(partial(edit, self._pasted.whole(self._buffer.text)), in_executor=True)
        except UsageError as error:
            self._hint = sanitise_line(str(error))
        else:
            self._buffer.document, self._edited = Document(self._edited), ""

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


def _valid(text: str) -> str:
    """Bytes that are no UTF-8 come as lone surrogates."""
    return text.encode(errors="replace").decode()


def _prefix(line: int, wrapped: int) -> StyleAndTextTuples:
    return [("", "  ")] if line or wrapped else [("class:prompt", sign())]
