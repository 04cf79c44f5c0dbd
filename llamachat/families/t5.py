"""T5 (arXiv 1910.10683): an encoder reads a source, a decoder writes the answer to it. T5, v1.1, flan-T5, mT5; Megatron-core's.

Layers are pre-norm, as in a decoder alone; a decoder's has cross attention, over what the encoder made of the source, between its
own attention and the feed-forward part. Positions are distances: each head adds to its scores a learned number for the bucket
that the distance falls into, the same in all layers of a stack. Scores are not scaled by 1/sqrt(d).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from llamachat.checks import LARGEST, require, require_choice, require_whole
from llamachat.core.spec import ModelSpec, Rope

Positions = Literal["relative", "learned_absolute", "rope"]
NormKind = Literal["rms", "layer"]  # "layer": mean and variance, with a bias
Inner = Literal["relu", "gelu", "gelu_pytorch_tanh", "silu"]
Stack = Literal["encoder", "decoder"]
STACKS: tuple[Stack, ...] = get_args(Stack)
MODEL_TYPES = ("t5", "mt5")  # config.json's model_type
RELATIVE, ABSOLUTE = (
    "relative_attention_bias",
    "embed_positions",
)  # tables that are looked up in, no matrices to multiply
FARTHEST = 2**16  # no model tells such distances apart; bounds the table of what each adds
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class EncoderDecoderSpec(ModelSpec):
    """Shape and arithmetic of an encoder with a decoder. ModelSpec's fields are the decoder's; the encoder differs in its
    number of layers alone. `logit_multiplier` is d_model ** -0.5 where the configuration scales what the head is given."""

    encoder_layers: int = 1
    decoder_start_token_id: int = 0  # every answer begins behind it
    activation: Inner = "relu"  # in place of hidden_act
    gated: bool = False  # act(gate(x)) * up(x), else act(up(x))
    positions: Positions = "relative"
    relative_buckets: int = 32
    relative_distance: int = 128  # from here on all distances fall into the last bucket
    norm_kind: NormKind = "rms"
    head_bias: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError, as of ModelSpec."""
        super().__post_init__()
        require_whole("number of encoder layers", self.encoder_layers, 1, LARGEST["num_hidden_layers"])
        require_whole("decoder_start_token_id", self.decoder_start_token_id, 0, self.vocab_size - 1)
        for name, kinds in (("activation", Inner), ("positions", Positions), ("norm_kind", NormKind)):
            require_choice(name, getattr(self, name), get_args(kinds))
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        require(heads == shared, "num_key_value_heads", shared, f"num_attention_heads ({heads})")
        require_whole("number of relative buckets", self.relative_buckets, 4, FARTHEST)
        least = self.relative_buckets // 2 + 1  # half of the decoder's buckets have one distance each
        require_whole("largest relative distance", self.relative_distance, least, FARTHEST)

    @property
    def longest_source(self) -> int | None:
        """Tokens of a source that there are positions for; None: any number."""
        return self.max_position_embeddings if self.positions == "learned_absolute" else None

    def layers(self, stack: Stack) -> int:
        return self.encoder_layers if stack == "encoder" else self.num_hidden_layers

    def rope(self, layer: int) -> Rope | None:
        return self.main_rope if self.positions == "rope" else None

    def tensor_shapes(self) -> Shapes:
        """See ModelSpec. Names are those of a decoder alone, behind the name of their stack."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        if self.positions == "learned_absolute":
            shapes[f"model.{ABSOLUTE}.weight"] = (self.max_position_embeddings, self.hidden_size)
        for stack in STACKS:
            shapes |= self._stack_shapes(stack)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes | ({"lm_head.bias": (self.vocab_size,)} if self.head_bias else {})

    def _stack_shapes(self, stack: Stack) -> Shapes:
        shapes: Shapes = {}
        if self.positions == "relative":
            shapes[f"{stack}.{RELATIVE}.weight"] = (self.relative_buckets, self.num_attention_heads)
        for layer in range(self.layers(stack)):
            shapes |= {f"{stack}.layers.{layer}.{name}": shape for name, shape in self._layer_shapes(stack)}
        return shapes | {f"{stack}.{name}": shape for name, shape in self._norm_shapes("norm")}

    def _layer_shapes(self, stack: Stack) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._norm_shapes("input_layernorm")
        yield from self._attention("self_attn")
        if stack == "decoder":
            yield from self._norm_shapes("cross_attn_layernorm")
            yield from self._attention("cross_attn")
        yield from self._norm_shapes("post_attention_layernorm")
        hidden, inner = self.hidden_size, self.intermediate_size
        for name in ("gate", "up") if self.gated else ("up",):
            yield from _linear(f"mlp.{name}_proj", inner, hidden, self.mlp_bias)
        yield from _linear("mlp.down_proj", hidden, inner, self.mlp_bias)

    def _attention(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden_size, self.num_attention_heads * self.head_dim
        for part in "qkv":
            yield from _linear(f"{name}.{part}_proj", inner, hidden, self.qkv_bias)
        yield from _linear(f"{name}.o_proj", hidden, inner, self.attention_out_bias)

    def _norm_shapes(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for kind in ("weight", "bias") if self.norm_kind == "layer" else ("weight",):
            yield f"{name}.{kind}", (self.hidden_size,)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


# Names in files -------------------------------------------------------------------------------------------------------

OUTER = {"shared": "model.embed_tokens", "token_embd": "model.embed_tokens", "output": "lm_head"} | {
    theirs: f"{stack}.norm" for stack in STACKS for theirs in (f"{stack}.final_layer_norm", f"{stack[:3]}.output_norm")
}
FEED_FORWARD = {"wi_0": "mlp.gate_proj", "wi_1": "mlp.up_proj", "wi": "mlp.up_proj", "wo": "mlp.down_proj"}


def _in_hugging_face(stack: Stack) -> dict[str, str]:
    """A part of a block there -> ours of a layer. Blocks have two layers, and three where one is cross attention."""
    attentions = {"SelfAttention": "self_attn"} | ({"EncDecAttention": "cross_attn"} if stack == "decoder" else {})
    norms = ["input_layernorm", "cross_attn_layernorm"][: len(attentions)]
    names = {f"layer.{at}.layer_norm": name for at, name in enumerate([*norms, "post_attention_layernorm"])}
    for at, (theirs, ours) in enumerate(attentions.items()):
        names |= {f"layer.{at}.{theirs}.{part}": f"{ours}.{part}_proj" for part in "qkvo"}
    last = len(attentions)
    return names | {f"layer.{last}.DenseReluDense.{theirs}": ours for theirs, ours in FEED_FORWARD.items()}


HUGGING_FACE = {f"{stack}": _in_hugging_face(stack) for stack in STACKS}
GGUF = {  # llama.cpp's, of both stacks
    "attn_norm": "input_layernorm",
    "cross_attn_norm": "cross_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"cross_attn_{x}": f"cross_attn.{x}_proj" for x in "qkvo"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
UNUSED = (  # in files, and read by nobody: cross attention has no distances
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    "dec.blk.0.cross_attn_rel_b.weight",
)
TABLES = {"layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"}  # of a stack's first block
PLACE = re.compile(
    r"(?P<stack>enc|dec)(?:oder\.block|\.blk)\.(?P<layer>\d+)\.(?P<part>layer\.\d\.layer_norm|layer\.\d\.\w+\.\w+|\w+)\."
)


def our_name(name: str) -> str:
    """A file's name of a tensor, Hugging Face's or llama.cpp's, or of a part of one -> ours. Unknown ones stay, and are refused
    as unknown later."""
    module = next((each for each in OUTER if name.startswith(f"{each}.")), None)
    if module is not None:
        return OUTER[module] + name[len(module) :]
    match = PLACE.match(name)
    if match is None:
        return name
    stack, part = f"{match['stack']}oder", match["part"]
    if part in TABLES and match["layer"] == "0":
        return f"{stack}.{RELATIVE}.{name[match.end() :]}"
    ours = (HUGGING_FACE[stack] if match["part"].startswith("layer.") else GGUF).get(part)
    return name if ours is None else f"{stack}.layers.{match['layer']}.{ours}.{name[match.end() :]}"
