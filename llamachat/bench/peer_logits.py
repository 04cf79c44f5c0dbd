"""llama.cpp as something that `llamachat eval` can ask: logits of a window, by the file's own tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llamachat.bench.runners import import_peer
from llamachat.core.cache import CacheStep
from llamachat.formats.gguf import open_gguf


class LlamaCppLogits:
    """An eval.Predictor. Raises UsageError where llama-cpp-python is not installed."""

    def __init__(self, file: Path, window: int, threads: int | None) -> None:
        llama_cpp = import_peer("llama_cpp", "llama-cpp-python")
        self.config, self.slots = open_gguf(file).config, window
        self._llm = llama_cpp.Llama(
            str(file),
            n_ctx=window,
            n_batch=512,
            logits_all=True,
            verbose=False,
            n_threads=threads,
            n_threads_batch=threads,
        )

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["all"]) -> NDArray[np.float32]:
        """Of a window that stands alone."""
        self._llm.reset()
        self._llm.eval(list(ids))
        return np.array(self._llm.scores[: len(ids)])
