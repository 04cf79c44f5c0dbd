"""What a backend wants to know of a model that nobody else does."""

import hashlib
from math import prod

from llamachat.core.tokenizer import Tokenizer
from llamachat.engines.memory import size
from llamachat.models.load import LoadedModel


def depends_on_length(model: LoadedModel) -> bool:
    """Whether its positions mean something else in a longer context: keys cannot stay when others go."""
    return model.engine.config.depends_on_length(model.engine.slots)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Tells tokenizers apart: of the number of ids, the control tokens, and the bytes of some of the others."""
    sample = range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 1000))
    facts = (tokenizer.vocab_size, sorted(tokenizer.specials.items()), [tokenizer.token_bytes(id) for id in sample])
    return hashlib.sha256(repr(facts).encode(errors="surrogatepass")).hexdigest()[:16]


def weights(model: LoadedModel) -> str:
    """Their kinds, the largest share first, and the size of all."""
    shares: dict[str, int] = {}
    for info in model.checkpoint.index().values():
        kind = f"int{info.packing.bits}" if info.packing else f"float{8 * info.nbytes // prod(info.shape)}"
        shares[kind] = shares.get(kind, 0) + info.nbytes
    kinds = sorted(shares, key=shares.__getitem__, reverse=True)
    return f"{', '.join(kinds[:3])}; {size(sum(shares.values()))}"
