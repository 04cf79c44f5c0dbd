"""Slash commands: a few small files of them, and what a typed text means (typed.py)."""

from llamachat.ui.commands.command import Command, Context, EmptyLibrary, LeaveError, Library, Persona
from llamachat.ui.commands.settings import apply
from llamachat.ui.commands.text import as_typed, is_reply, is_yes, literal
from llamachat.ui.commands.typed import (
    COMMANDS,
    ask,
    at_once,
    block_open,
    find,
    is_message,
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
    "as_typed",
    "ask",
    "at_once",
    "block_open",
    "find",
    "is_message",
    "is_reply",
    "is_yes",
    "literal",
    "message",
    "messages",
    "named",
    "respond",
]
