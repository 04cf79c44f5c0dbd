"""A model's shape under Meta's names."""

import math
from dataclasses import dataclass

from llamachat.core.spec import ModelSpec


@dataclass
class ModelArgs:
    """The fields of Meta's `params.json`, and the two limits that a model is built with."""

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None  # None: n_heads
    vocab_size: int = -1  # -1: not known before the tokenizer is
    multiple_of: int = 256  # of which the feed-forward size is one
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500000
    use_scaled_rope: bool = False
    max_batch_size: int = 32
    max_seq_len: int = 2048

    @classmethod
    def of(cls, config: ModelSpec, max_batch_size: int, max_seq_len: int) -> "ModelArgs":
        """Of a model from any format; multiple_of and ffn_dim_multiplier are a pair that gives its feed-forward size."""
        multiple_of, multiplier = _feed_forward(config.hidden_size, config.intermediate_size)
        return cls(
            dim=config.hidden_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            vocab_size=config.vocab_size,
            multiple_of=multiple_of,
            ffn_dim_multiplier=multiplier,
            norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            use_scaled_rope=config.rope_scaling is not None and config.rope_scaling.kind == "llama3",
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
        )


def _feed_forward(dim: int, size: int) -> tuple[int, float | None]:
    """Meta computes the size: 8/3 dim, times the multiplier, up to the next multiple, each step cut to a whole number."""
    usual, plain = ModelArgs.multiple_of, int(8 * dim / 3)
    if -(-plain // usual) * usual == size:
        return usual, None
    multiple_of = math.gcd(size, usual)
    return multiple_of, (size - multiple_of // 2 + 0.5) / plain  # the middle of what is rounded to it
