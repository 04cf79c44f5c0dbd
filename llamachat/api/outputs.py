"""What a model computes of ids besides text: logits, hidden states, attention."""

import numpy as np
from numpy.typing import NDArray

from llamachat.core.cache import Cache
from llamachat.core.engine import Outputs
from llamachat.core.generate import PREFILL_CHUNK
from llamachat.engines.memory import available_memory
from llamachat.errors import DoesNotFitError, ModelError, UsageError
from llamachat.generation.texts import in_pieces
from llamachat.models.load import LoadedModel

Floats = NDArray[np.float32]


def outputs_of(model: LoadedModel, ids: list[int], outputs: Outputs) -> Floats:
    """Of a sequence that nothing precedes, for every token of it; attention in one step, all else in chunks."""
    model.require_continuing(outputs.replace("_", " "))
    config = model.checkpoint.config
    if not ids:
        raise UsageError("there are no tokens", "nothing was computed")
    if unknown := next((token for token in ids if not 0 <= token < config.vocab_size), None):
        raise ModelError(f"token {unknown} is not in the vocabulary of {config.vocab_size}", "nothing was computed")
    Cache(model.context).require(len(ids))
    each = {
        "logits": config.outputs,
        "hidden": config.hidden_size,
        "hidden_states": (config.num_hidden_layers + 1) * config.hidden_size,
        "attentions": config.num_hidden_layers * config.num_attention_heads * len(ids),
    }[outputs]
    _require_memory(3 * 4 * each * len(ids), outputs)  # the pieces, the whole, and what torch makes it of
    chunk = len(ids) if outputs == "attentions" else PREFILL_CHUNK
    return in_pieces(model.engine, ids, chunk, outputs=outputs)


def _require_memory(size: int, outputs: str) -> None:
    if size > available_memory():
        cause = f"{outputs.replace('_', ' ')} of so many tokens take {size / 1e9:.1f} GB"
        raise DoesNotFitError(cause, "nothing was computed", "give fewer tokens")
