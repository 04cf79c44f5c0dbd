"""Which command is for which head, and the error for a model that has another one."""

from collections.abc import Collection

from llamachat.core.spec import HeadKind, ModelSpec
from llamachat.errors import UsageError
from llamachat.families.t5 import EncoderDecoderSpec

PREDICTS: tuple[HeadKind, ...] = ("next_token",)
# What a model with such a head does, for people, and the commands that use it.
USES: dict[HeadKind, tuple[str, str]] = {
    "next_token": ("predicts how a text goes on", "llamachat complete or chat"),
    "sequence_labels": ("has a head that labels whole texts", "llamachat classify"),
    "token_labels": ("has a head that labels tokens", "llamachat tag"),
    "span": ("has a head that finds answers in a text", "llamachat extract"),
    "none": ("has no head", "llamachat embed"),
}


def require_head(name: str, config: ModelSpec, wanted: Collection[HeadKind]) -> None:
    """Raises UsageError, which names the right command, for a model called `name` unless its head is one of these."""
    if config.head not in wanted:
        reads = isinstance(config, EncoderDecoderSpec)
        what, command = ("answers a source text", "llamachat complete") if reads else USES[config.head]
        raise UsageError(f"{name} {what}", "it cannot do what is asked", f"use {command}")
