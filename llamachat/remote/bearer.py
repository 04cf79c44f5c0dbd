"""A server's key: read from the environment when it is needed, sent, and shown to nobody."""

import os
import re

from llamachat.errors import UsageError

SENDABLE = re.compile(r"[\x21-\x7e]+")


def key(variable: str) -> str:
    """The key in an environment variable. Raises UsageError, which does not say what is in it."""
    value = os.environ.get(variable, "")
    if not value:
        raise UsageError(
            f"{variable} is not set", "the server was asked nothing", f"put its key there: export {variable}=…"
        )
    if not SENDABLE.fullmatch(value):
        cause = f"{variable} has a character that no key has, such as a space or an end of line"
        raise UsageError(cause, "the server was asked nothing", "set it again")
    return value
