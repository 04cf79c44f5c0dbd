"""GGUF's architecture `t5` -> spec. What the file does not say, its tensors do.

llama.cpp's facts: a file with gates runs them through the tanh approximation of GELU, one without has ReLU; distances of 128 and
more fall into one bucket. That original T5, the one without gates, scales what its head is given, is in no key either; it is done
here as in transformers, and llama.cpp leaves it out, which changes no greedy answer.
"""

from collections.abc import Collection, Mapping
from typing import Any

from llamachat.errors import FormatError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats.gguf_file import StoredTensor
from llamachat.system.metadata import Fields, naming
from llamachat.tokenizers.gguf import ENDS, special_ids

ARCH, ENCODER = "t5", "t5encoder"
REACH = 128
VOCABULARY = "token_embd.weight"


def refuse_encoder(metadata: Mapping[str, Any], where: str) -> None:
    """Raises FormatError for a file that has T5's encoder alone."""
    if metadata.get("general.architecture") == ENCODER:
        cause = f"{where} is of {ENCODER}: an encoder without its decoder"
        raise FormatError(cause, "nothing in it writes an answer", "use a file of the whole model")


def t5_spec(
    own: Fields, general: Fields, stored: Mapping[str, StoredTensor], neutral: Mapping[str, Any]
) -> EncoderDecoderSpec:
    """`own`: the keys under the architecture; `neutral`: those that may be there, and what they then have to be."""
    if VOCABULARY not in stored:
        raise FormatError(f"{own.where} has no {VOCABULARY}", "it does not hold a whole model")
    key, vocab = (ARCH + ".{}").format, stored[VOCABULARY].shape[0]
    heads, hidden = (
        own.size(key("attention.head_count"), "num_attention_heads"),
        own.size(key("embedding_length"), "hidden_size"),
    )
    head_dim = own.size(key("attention.key_length"), "head_dim", max(hidden // heads, 1))
    epsilon = own.number(key("attention.layer_norm_rms_epsilon"))
    layers = own.size(key("block_count"), "num_hidden_layers")
    same = {"attention.value_length": head_dim, "attention.head_count_kv": heads, "vocab_size": vocab}
    for name, value in ({**neutral, **same, "attention.layer_norm_epsilon": epsilon}).items():
        own.neutral(key(name), value)
    special, _ = special_ids(general.raw, vocab, own.where)
    with naming(own.where):
        return EncoderDecoderSpec(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=own.size(key("feed_forward_length"), "intermediate_size"),
            num_hidden_layers=own.size(key("decoder_block_count"), "num_hidden_layers", layers),
            encoder_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim,
            max_position_embeddings=own.size(key("context_length"), "max_position_embeddings"),
            rms_norm_eps=epsilon,
            attention_scale=1.0,
            relative_buckets=own.whole(key("attention.relative_buckets_count")),
            relative_distance=REACH,
            tie_word_embeddings="output.weight" not in stored,
            decoder_start_token_id=own.whole(key("decoder_start_token_id")),
            bos_token_id=special.get("bos"),
            eos_token_ids=tuple(dict.fromkeys(special[name] for name in ENDS if name in special)),
            pad_token_id=special.get("padding"),
            **_feed_forward(stored, hidden),
        )


def _feed_forward(tensors: Collection[str], hidden: int) -> dict[str, Any]:
    if "enc.blk.0.ffn_gate.weight" in tensors:
        return {"gated": True, "activation": "gelu_pytorch_tanh"}
    return {"gated": False, "activation": "relu", "logit_multiplier": hidden**-0.5}
