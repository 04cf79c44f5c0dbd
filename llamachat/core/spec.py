"""What a model is and how to run it: frozen, checked, and named as in Hugging Face's config.json.

The vocabularies of other projects (Meta's params.json, lit-llama, MindFormers, GGUF) are translated to these names
where they are read; nothing here knows a file format.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llamachat.checks import LARGEST, require, require_choice, require_number, require_whole
from llamachat.errors import UsageError

RopeKind = Literal["linear", "dynamic", "yarn", "longrope", "llama3", "factors"]
Dtype = Literal["float32", "float16", "bfloat16"]
KvBits = Literal[8, 16, 32]


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies differ from theta^(-2i/d); fields as in Hugging Face's `rope_scaling`, unused at default."""

    kind: RopeKind
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    attention_factor: float | None = None  # yarn, longrope: multiplies cos and sin; None: the method's own formula
    short_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]
    long_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]
    factors: tuple[float, ...] = ()  # "factors" (GGUF's rope_freqs): each frequency is divided by its factor

    def __post_init__(self) -> None:
        require_choice("RoPE scaling", self.kind, get_args(RopeKind))
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            require_number(f"RoPE {name}", getattr(self, name), 1e-6, 1e6)
        for name in ("mscale", "mscale_all_dim"):
            require_number(f"RoPE {name}", getattr(self, name), 0, 1e6)
        if self.attention_factor is not None:
            require_number("RoPE attention_factor", self.attention_factor, 1e-6, 1e6)
        for name in ("short_factor", "long_factor", "factors"):
            for value in getattr(self, name):
                require_number(f"RoPE {name}", value, 1e-6, 1e6)
        least = 1 if self.kind in ("yarn", "longrope", "llama3") else 0
        original = self.original_max_position_embeddings
        require_whole("RoPE original_max_position_embeddings", original, least, LARGEST["max_position_embeddings"])
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            require(low < high, "RoPE high_freq_factor", high, f"above low_freq_factor ({low})")

    @classmethod
    def longrope(
        cls,
        factor: float,
        original: int,
        attention: float | None,
        short: tuple[float, ...],
        long: tuple[float, ...],
    ) -> "RopeScaling":
        """Kind longrope; or, where the factors are the same for every length and nothing else is scaled, "factors"."""
        if short == long and (attention == 1 or (attention is None and factor <= 1)):
            return cls("factors", factors=short)
        return cls("longrope", factor, original, attention_factor=attention, short_factor=short, long_factor=long)

    @property
    def length_dependent(self) -> bool:
        """True when the frequencies depend on how long the context is."""
        return self.kind in ("dynamic", "longrope")


@dataclass(frozen=True)
class Dtypes:
    """Arithmetic types a configuration asks for; None leaves the choice to the engine."""

    compute: Dtype | None = None
    norm: Dtype = "float32"
    softmax: Dtype = "float32"
    rotary: Dtype = "float32"
    residual: Dtype | None = None  # None: as compute

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None or name not in ("compute", "residual"):
                require_choice(f"{name} dtype", value, get_args(Dtype))


@dataclass(frozen=True)
class QuantConfig:
    """How weights are, or are to be, quantized. Whoever makes one looks `scheme` up in the registry, SCHEMES."""

    scheme: str
    group_size: int | None = None  # None: the scheme's default
    kv_bits: KvBits | None = None
    skip: tuple[str, ...] = ()  # patterns of module names left in float

    def __post_init__(self) -> None:
        named = isinstance(self.scheme, str) and self.scheme != ""
        require(named, "quantization scheme", self.scheme, "a scheme's name")
        if self.group_size is not None:
            require_whole("quantization group_size", self.group_size, 32, 2**16)
            require(self.group_size % 32 == 0, "quantization group_size", self.group_size, "a multiple of 32")
        require_choice("kv_bits", self.kv_bits, (None, 8, 16, 32))


@dataclass(frozen=True)
class LlamaConfig:
    """Shape and arithmetic of a Llama-family decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None  # a query sees this many positions, its own included
    full_attention_layers: int = 0  # the first so many layers ignore the sliding window (Qwen2's max_window_layers)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtypes: Dtypes = field(default_factory=Dtypes)
    quantization: QuantConfig | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError on sizes that are no sizes, absurd, or contradict each other."""
        for name, largest in LARGEST.items():
            if name != "sliding_window" or self.sliding_window is not None:
                require_whole(name, getattr(self, name), 1, largest)
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        require(heads % shared == 0, "num_key_value_heads", shared, f"a divisor of num_attention_heads ({heads})")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number, as RoPE turns pairs")
        require_number("rms_norm_eps", self.rms_norm_eps, 1e-12, 0.1)
        require_number("rope_theta", self.rope_theta, 1.001, 1e15)
        require_whole("full_attention_layers", self.full_attention_layers, 0, self.num_hidden_layers)
        for name in ("tie_word_embeddings", "qkv_bias", "attention_out_bias", "mlp_bias"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        self._check_ids()
        self._check_rope_factors()

    def _check_ids(self) -> None:
        if self.bos_token_id is not None:  # it is looked up in the embedding
            require_whole("bos_token_id", self.bos_token_id, 0, self.vocab_size - 1)
        for token in self.eos_token_ids:
            require_whole("eos_token_id", token, 0, LARGEST["vocab_size"])
        if self.pad_token_id is not None:
            require_whole("pad_token_id", self.pad_token_id, 0, LARGEST["vocab_size"])

    def _check_rope_factors(self) -> None:
        kind = self.rope_scaling.kind if self.rope_scaling else None
        for name in {"longrope": ("short_factor", "long_factor"), "factors": ("factors",)}.get(kind or "", ()):
            length, needed = len(getattr(self.rope_scaling, name)), self.head_dim // 2
            require(length == needed, f"number of RoPE {name} values", length, f"{needed}, half of head_dim")

    def window(self, layer: int) -> int | None:
        """The sliding window of this layer, or None when it sees everything."""
        return self.sliding_window if layer >= self.full_attention_layers else None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every tensor this model has; matrices are [out, in]."""
        hidden, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        heads = self.num_attention_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            p = f"model.layers.{layer}."
            shapes[p + "input_layernorm.weight"] = (hidden,)
            shapes[p + "post_attention_layernorm.weight"] = (hidden,)
            projections = (
                ("self_attn.q_proj", heads, hidden, self.qkv_bias),
                ("self_attn.k_proj", kv, hidden, self.qkv_bias),
                ("self_attn.v_proj", kv, hidden, self.qkv_bias),
                ("self_attn.o_proj", hidden, heads, self.attention_out_bias),
                ("mlp.gate_proj", self.intermediate_size, hidden, self.mlp_bias),
                ("mlp.up_proj", self.intermediate_size, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, self.intermediate_size, self.mlp_bias),
            )
            for name, rows, columns, bias in projections:
                shapes[f"{p}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{p}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


_RANGES = {
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
}


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits; the order is that of the fields. See sample.py."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.6
    top_k: int = 0  # 0: no limit
    top_p: float = 0.9
    min_p: float = 0.0
    seed: int | None = None  # None: different each time

    def __post_init__(self) -> None:
        """Raises UsageError naming field, value and what is allowed."""
        for name, (low, high) in _RANGES.items():
            require_number(name, getattr(self, name), low, high, UsageError)
        require_whole("top_k", self.top_k, 0, LARGEST["vocab_size"], UsageError)
        if self.seed is not None:
            require_whole("seed", self.seed, 0, 2**64 - 1, UsageError)
        for token, bias in self.logit_bias.items():
            require_whole("token id of logit_bias", token, 0, LARGEST["vocab_size"], UsageError)
            if bias != -math.inf:  # which bans the token
                require_number(f"logit_bias of token {token}", bias, -1e6, 1e6, UsageError)

    def replace(self, /, **changes: Any) -> "SamplingParams":
        """A copy with these fields changed. Raises UsageError on an unknown field or a bad value."""
        known = [each.name for each in dataclasses.fields(self)]
        for name in changes:
            require(name in known, "sampling parameter", name, "one of " + ", ".join(known), UsageError)
        return dataclasses.replace(self, **changes)
