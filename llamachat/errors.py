"""Every error a user can meet: one line that says cause, consequence and remedy, and the process's exit code.

Anything else that escapes is a bug of ours, and is shown as one.
"""


class LlamachatError(Exception):
    """`str(error)` is one line: the cause, what it means for the user, what to do about it."""

    exit_code = 3

    def __init__(self, cause: str, consequence: str = "", remedy: str = "") -> None:
        super().__init__("; ".join(part for part in (cause, consequence, remedy) if part))


class UsageError(LlamachatError):
    """The command, a flag, a parameter or a prompt is wrong."""

    exit_code = 2


class ModelError(LlamachatError):
    """A model, or a file of one, cannot be used."""


class FormatError(ModelError):
    """A checkpoint's bytes are damaged, dishonest or of a kind that is not read."""


class ConfigError(ModelError):
    """A configuration names something unknown, contradictory or unsupported."""


class CatalogError(ModelError):
    """A model name is unknown, or its files could not be fetched."""


class DoesNotFitError(LlamachatError):
    """The weights, the context or the prompt need more than there is."""

    exit_code = 4
