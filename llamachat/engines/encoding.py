"""Engines of encoder-decoder models, which read a source before they answer it."""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from llamachat.core.engine import Engine
from llamachat.core.generate import never
from llamachat.families.t5 import EncoderDecoderSpec


class Encoding(Engine, Protocol):
    """An engine whose slots are the decoder's. A text's first slot names its source: `forward` of a step whose visible slots
    begin there looks at what was last encoded for it."""

    config: EncoderDecoderSpec

    def encode(self, first: int, ids: Sequence[int], interrupted: Callable[[], bool] = never) -> None:
        """Read the source of the text whose slots begin at `first`, in place of the one before.

        Raises DoesNotFitError where memory has no room for it, and Interrupted.
        """
        ...

    def release(self, first: int) -> None:
        """The text has ended: what was kept of its source goes."""
        ...

    def source_room(self) -> int:
        """Tokens of a source that there is memory for now, and that the model has positions for."""
        ...


def encoding(engine: Engine) -> Encoding | None:
    """The same engine, where it reads sources."""
    return cast(Encoding, engine) if isinstance(engine.config, EncoderDecoderSpec) else None


def started(engine: Engine, prompt: list[int]) -> list[int]:
    """What an answer goes on from: the prompt itself, or where that is a source, the one token that all answers begin behind."""
    config = engine.config
    return [config.decoder_start_token_id] if isinstance(config, EncoderDecoderSpec) else prompt
