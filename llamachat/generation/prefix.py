"""A long beginning that many prompts share, computed once and kept on disk: `llamachat complete --cache-prefix`."""

import hashlib
from collections.abc import Callable
from itertools import takewhile

from llamachat.core.cache import Cache
from llamachat.core.generate import Interrupted, prefill
from llamachat.generation import snapshot
from llamachat.models.load import LoadedModel


def joined(prefix: str, prompt: str) -> str:
    """The prompt as the model gets it."""
    return f"{prefix}\n\n{prompt}"


def hold(
    model: LoadedModel,
    cache: Cache,
    prefix: str,
    encode: Callable[[str], list[int]],
    interrupted: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Have an empty cache hold what every prompt with this prefix begins with, from disk or else computed and put there.

    `encode`: the ids of a whole prompt. `say` is told where what is on disk cannot be used. Raises DoesNotFitError, and
    OSError where it could not be put on disk.
    """
    prompts = [encode(joined(prefix, prompt)) for prompt in ("a", "1", "A")]
    ids = [row[0] for row in takewhile(lambda row: len(set(row)) == 1, zip(*prompts, strict=False))]
    path = snapshot.place(model, f"prefix {hashlib.sha256(repr(ids).encode()).hexdigest()}")
    if not ids or snapshot.restore(path, model.engine, cache, say):
        return
    try:
        prefill(model.engine, cache, ids, interrupted)
    except Interrupted:
        return
    snapshot.save(path, model.engine, cache, {"prefix": len(ids)})
