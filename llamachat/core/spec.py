"""What a model is, as data: frozen, checked, and named as in Hugging Face's config.json.

The families (llamachat/families) and the formats translate other projects' words to these; nothing here knows a file. What
a layer does with them is in model.py.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from llamachat.checks import LARGEST, require, require_choice, require_number, require_whole

RopeKind = Literal["linear", "dynamic", "yarn", "longrope", "llama3", "factors"]
Dtype = Literal["float32", "float16", "bfloat16"]
KvBits = Literal[4, 8, 16, 32]
LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES: tuple[LayerType, ...] = get_args(LayerType)
Placement = Literal["before", "after", "both"]
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "clamped_swiglu"]
HeadKind = Literal["next_token", "sequence_labels", "token_labels", "span", "none"]


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
class Rope:
    """How a layer rotates queries and keys: the first `dim` elements of each head, as pairs (i, i + dim / 2)."""

    theta: float
    scaling: RopeScaling | None
    dim: int


@dataclass(frozen=True)
class QueryScale:
    """A query at position p is multiplied by 1 + beta * ln(1 + floor(p / original)) (Llama 4, Ministral 3)."""

    beta: float
    original: int

    def __post_init__(self) -> None:
        require_number("beta of the queries' scale", self.beta, 0, 100)
        largest = LARGEST["max_position_embeddings"]
        require_whole("original length of the queries' scale", self.original, 1, largest)


@dataclass(frozen=True)
class Experts:
    """A mixture in place of the feed-forward part: a router picks `per_token` of `count` (Mixtral, arXiv 2401.04088)."""

    count: int
    per_token: int
    intermediate_size: int
    softmax_first: bool = True  # over all experts, else over those picked
    normalized: bool = True  # the picked ones' shares are made to add up to 1
    bias: bool = False  # in router and experts

    def __post_init__(self) -> None:
        require_whole("number of experts", self.count, 1, 4096)
        require_whole("experts a token", self.per_token, 1, self.count)
        require_whole("intermediate_size of the experts", self.intermediate_size, 1, LARGEST["intermediate_size"])


# Roles of a layer's norms -> names of their weights, by where norms stand.
NORMS: dict[Placement, dict[str, str]] = {
    "before": {"attention_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
    "after": {"attention_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"},
    "both": {
        "attention_in": "input_layernorm",
        "attention_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    },
}
HEADS: dict[HeadKind, tuple[str, bool]] = {  # name, and whether it has a bias
    "next_token": ("lm_head", False),
    "sequence_labels": ("score", False),
    "token_labels": ("score", True),
    "span": ("qa_outputs", True),
    "none": ("", False),
}


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
        require_choice("kv_bits", self.kv_bits, (None, 4, 8, 16, 32))


FACTORS = (
    "attention_scale", "attention_softcap", "swiglu_limit", "embedding_multiplier", "residual_multiplier",
    "logit_multiplier", "logit_softcap",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """Shape and arithmetic of a decoder; a Llama's where nothing else is said."""

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
    layer_types: tuple[LayerType, ...] = ()  # which layers have that window; (): all, where there is one
    rotary_dim: int | None = None  # None: whole heads
    sliding_rope: Rope | None = None  # of layers with a window, where they rotate in another way
    unrotated_layers: tuple[int, ...] = ()  # these do not rotate (NoPE)
    norms: Placement = "before"  # of attention and of the feed-forward part, or after them, or both
    norm_offset: float = 0.0  # added to every norm's weight
    qk_norm: Literal["head", "projection"] | None = None  # RMSNorm of queries and keys before they are rotated
    attention_scale: float | None = None  # of scores; None: head_dim ** -0.5
    query_scale: QueryScale | None = None
    attention_softcap: float | None = None  # scores become cap * tanh(score / cap)
    attention_sinks: bool = False  # each head has one more score, learned, that no value goes with
    hidden_act: Activation = "silu"
    swiglu_limit: float = 7.0  # of clamped_swiglu
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()  # these have a feed-forward part of intermediate_size all the same
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and the feed-forward part add
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    head: HeadKind = "next_token"
    num_labels: int = 0  # of a head that classifies
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    return_hidden_states: bool = False  # beside logits, to whoever asks for these
    dtypes: Dtypes = field(default_factory=Dtypes)
    quantization: QuantConfig | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError on sizes that are no sizes, absurd, or contradict each other."""
        for name, largest in LARGEST.items():
            if name != "sliding_window" or self.sliding_window is not None:
                require_whole(name, getattr(self, name), 1, largest)
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        require(heads % shared == 0, "num_key_value_heads", shared, f"a divisor of num_attention_heads ({heads})")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number, as RoPE rotates pairs")
        require_number("rms_norm_eps", self.rms_norm_eps, 1e-12, 0.1)
        require_number("rope_theta", self.rope_theta, 1.001, 1e15)
        for name in ("tie_word_embeddings", "qkv_bias", "attention_out_bias", "mlp_bias"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        for name in FACTORS:
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), 1e-9, 1e9)
        require_number("norm_offset", self.norm_offset, -100, 100)
        self._check_layers()
        self._check_ids()
        self._check_rope_factors()

    def _check_layers(self) -> None:
        count = self.num_hidden_layers
        require(len(self.layer_types) in (0, count), "number of layer_types", len(self.layer_types), f"0 or {count}")
        for kind in self.layer_types:
            require_choice("layer type", kind, get_args(LayerType))
        for layer in (*self.unrotated_layers, *self.dense_layers):
            require_whole("number of a layer", layer, 0, count - 1)
        for name, kinds in (("norms", Placement), ("hidden_act", Activation), ("head", HeadKind)):
            require_choice(name, getattr(self, name), get_args(kinds))
        for dim in (self.rotary_dim, self.sliding_rope.dim if self.sliding_rope else None):
            if dim is not None:
                require(dim % 2 == 0 and 0 < dim <= self.head_dim, "rotated part of a head", dim, "even, and within it")
        classifies = self.head not in ("next_token", "none")
        require_whole("num_labels", self.num_labels, int(classifies), LARGEST["vocab_size"] if classifies else 0)

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
            length, needed = len(getattr(self.rope_scaling, name)), (self.rotary_dim or self.head_dim) // 2
            require(length == needed, f"number of RoPE {name} values", length, f"{needed}, half of what is rotated")

    def window(self, layer: int) -> int | None:
        """The sliding window of this layer, or None when it sees everything."""
        return self.sliding_window if not self.layer_types or self.layer_types[layer] == "sliding_attention" else None

    def rope(self, layer: int) -> Rope | None:
        """How this layer rotates; None: not at all."""
        if layer in self.unrotated_layers:
            return None
        return self.sliding_rope if self.sliding_rope and self.window(layer) else self.main_rope

    def depends_on_length(self, context: int) -> bool:
        """Whether tokens mean something else at other positions, in a context of so many: a window of it cannot roll."""
        absolute = self.query_scale is not None and context > self.query_scale.original
        return absolute or (self.rope_scaling is not None and self.rope_scaling.length_dependent)

    @property
    def main_rope(self) -> Rope:
        """How all layers rotate that nothing else is said of."""
        return Rope(self.rope_theta, self.rope_scaling, self.rotary_dim or self.head_dim)

    def mixture(self, layer: int) -> Experts | None:
        """The experts of this layer; None: it has one feed-forward part."""
        return None if layer in self.dense_layers else self.experts

    @property
    def outputs(self) -> int:
        """Rows of the head: logits of a token; 0 where there is no head."""
        return 0 if self.head == "none" else self.num_labels or self.vocab_size

    @property
    def tied_head(self) -> bool:
        """Whether the head is the embedding."""
        return self.head == "next_token" and self.tie_word_embeddings

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every tensor this model has; matrices are [out, in]."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            names = [*NORMS[self.norms].values()]
            shapes |= {f"model.layers.{layer}.{name}.weight": (self.hidden_size,) for name in names}
            for part in (self._attention_shapes(), self._mlp_shapes(self.mixture(layer))):
                shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in part.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        name, bias = HEADS[self.head]
        return shapes | (_linear(name, self.outputs, self.hidden_size, bias) if name and not self.tied_head else {})

    def _attention_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, size = self.hidden_size, self.head_dim
        heads, kv = self.num_attention_heads * size, self.num_key_value_heads * size
        shapes = dict[str, tuple[int, ...]]()
        for name, rows in (("q", heads), ("k", kv), ("v", kv)):
            shapes |= _linear(f"self_attn.{name}_proj", rows, hidden, self.qkv_bias)
        shapes |= _linear("self_attn.o_proj", hidden, heads, self.attention_out_bias)
        for name, width in (("q", heads), ("k", kv)) if self.qk_norm else ():
            shapes[f"self_attn.{name}_norm.weight"] = (size if self.qk_norm == "head" else width,)
        if self.attention_sinks:
            shapes["self_attn.sinks"] = (self.num_attention_heads,)
        return shapes

    def _mlp_shapes(self, experts: Experts | None) -> dict[str, tuple[int, ...]]:
        if experts is None:
            return self._gated("mlp.", self.intermediate_size, self.mlp_bias)
        shapes = _linear("mlp.gate", experts.count, self.hidden_size, experts.bias)
        for number in range(experts.count):
            shapes |= self._gated(f"mlp.experts.{number}.", experts.intermediate_size, experts.bias)
        return shapes

    def _gated(self, prefix: str, width: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shapes = dict[str, tuple[int, ...]]()
        for name in ("gate", "up"):
            shapes |= _linear(f"{prefix}{name}_proj", width, self.hidden_size, bias)
        return shapes | _linear(f"{prefix}down_proj", self.hidden_size, width, bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
