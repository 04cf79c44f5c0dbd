"""Slash commands: a few small files of them, and what a typed text means (typed.py)."""

from llamachat.ui.commands.command import Command, Context, EmptyLibrary, LeaveError, Library, Persona
from llamachat.ui.commands.settings import apply
from llamachat.ui.commands.text import is_reply, is_yes
from llamachat.ui.commands.typed import (
    COMMANDS,
    ask,
    at_once,
    block_open,
    find,
    literal,
    message,
    messages,
    named,
    respond,
)

__all__ = [
    "COMMANDS",
    "Command",
    "Context",
    "EmptyLibrary",
    "LeaveError",
    "Library",
    "Persona",
    "apply",
    "ask",
    "at_once",
    "block_open",
    "find",
    "is_reply",
    "is_yes",
    "literal",
    "message",
    "messages",
    "named",
    "respond",
]
