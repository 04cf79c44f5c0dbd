"""A model that thinks before it answers, as it is told."""

from collections.abc import Sequence

import numpy as np
from hash_engine import HashEngine, byte_tokenizer, hash_model
from numpy.typing import NDArray

from llamachat.core.dialog import ChatML
from llamachat.models.load import LoadedModel

SIZE = 261
OPEN, CLOSE, END = 259, 260, 257


def thinking_model(*said: int) -> LoadedModel:
    """A ChatML model with the tags of Qwen3 as tokens. It says these tokens, over again, and ends one token after a thought."""

    class Script(HashEngine):
        def row(self, tokens: Sequence[int]) -> NDArray[np.float32]:
            logits = np.zeros(SIZE, np.float32)
            start = max(i for i, token in enumerate(tokens) if token == 256) + 1 + len("assistant\n")
            answer = list(tokens[start:])
            over = CLOSE in answer and len(answer) - answer.index(CLOSE) > 4
            logits[END if over else said[len(answer) % len(said)]] = 9
            return logits

    model = hash_model()
    model.engine = Script(512, SIZE)
    specials = {**model.tokenizer.specials, "<think>": OPEN, "</think>": CLOSE}
    model.tokenizer = type(byte_tokenizer())(
        ids=lambda text, start: list(text.encode()),
        piece=lambda token: bytes([token]) if token < 256 else b"",
        vocab_size=SIZE,
        specials=specials,
        eos_ids=frozenset({END, 258}),
    )
    model.dialog = ChatML(model.tokenizer)
    return model
