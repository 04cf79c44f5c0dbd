"""Models of real shapes with random weights, for speed alone: packed for the native engine, or as a GGUF file for a peer."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from llamachat import paths
from llamachat.core.spec import Experts, ModelSpec
from llamachat.core.tensors import Array
from llamachat.engines.memory import active_bytes
from llamachat.engines.native.pack import F32, PAGE, Q4, Q8, TILE, Header, aligned, bytes_of
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import UsageError
from llamachat.formats.adapter import Adapter, LowRank

Scheme = Literal["int4", "int4-head8", "int8"]
Coding = Literal["q4_0", "q8_0", "f16"]  # of a file's layers; in q4_0, embedding and head are in Q8_0
BLOCK = 1 << 24  # random bytes that are drawn; more are these again


def _llama3(hidden: int, inner: int, layers: int, heads: int, tied: bool) -> ModelSpec:
    return ModelSpec(
        vocab_size=128256, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=hidden // heads, max_position_embeddings=8192,
        rope_theta=500000.0, tie_word_embeddings=tied,
    )  # fmt: skip


SHAPES = {
    "135m": ModelSpec(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True,
    ),
    "0.5b": ModelSpec(  # Qwen2.5's
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=8192, rope_theta=1e6, tie_word_embeddings=True,
    ),
    "1b": _llama3(2048, 8192, 16, 32, True),
    "3b": _llama3(3072, 8192, 28, 24, True),
    "8b": _llama3(4096, 14336, 32, 32, False),
    "a3b": ModelSpec(  # a third of Qwen3-30B-A3B's 48 layers, so that two of it fit 20 GB
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, max_position_embeddings=8192, rope_theta=1e6, rms_norm_eps=1e-6,
        qk_norm="head", experts=Experts(128, 8, 768),
    ),
}  # fmt: skip


def config_of(shape: str) -> ModelSpec:
    """Raises UsageError for a shape that is not known."""
    if shape not in SHAPES:
        raise UsageError(f"{shape} is no shape", remedy=f"take one of {', '.join(SHAPES)}")
    return SHAPES[shape]


@dataclass(frozen=True)
class Noise:
    """Random bytes, the same at every call; drawn once, as drawing gigabytes would take longer than measuring."""

    block: Array

    @classmethod
    def drawn(cls, seed: int = 0, size: int = BLOCK) -> "Noise":
        return cls(np.random.default_rng(seed).integers(0, 256, size, np.uint8))

    def fill(self, out: Array) -> None:
        """All of a flat uint8 array."""
        for start in range(0, len(out), len(self.block)):
            part = out[start : start + len(self.block)]
            part[:] = self.block[: len(part)]

    def floats(self, count: int) -> Array:
        """So many, evenly from -0.06 to 0.06."""
        values = np.empty(count, np.int8)
        self.fill(values.view(np.uint8))
        return values.astype(np.float32) / 2048


def random_weights(config: ModelSpec, scheme: Scheme) -> PackedWeights:
    """Packed weights in memory: every matrix of codes with a scale per 32 columns, norms of ones."""
    headers = {name: _header(name, shape, scheme) for name, shape in config.tensor_shapes().items()}
    starts = np.cumsum([0, *(-(-bytes_of(header) // PAGE) * PAGE for header in headers.values())]).tolist()
    block, noise = aligned(starts[-1]), Noise.drawn()  # one block, as a mapped file is: it lies in huge pages
    tensors = {}
    for (name, header), start in zip(headers.items(), starts, strict=False):
        data = block[start : start + bytes_of(header)]
        _fill(header, data, noise)
        tensors[name] = header, data
    return PackedWeights(tensors)


def weight_bytes(config: ModelSpec, scheme: Scheme) -> int:
    """Of these."""
    return sum(bytes_of(_header(name, shape, scheme)) for name, shape in config.tensor_shapes().items())


def random_adapter(config: ModelSpec, rank: int) -> Adapter:
    """On all linears of all layers, in float32, as PEFT writes it."""
    noise, matrices = Noise.drawn(), dict[str, LowRank]()
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 2 and ".layers." in name:
            a, b = (noise.floats(rank * size) * np.float32(1 / 3) for size in reversed(shape))
            matrices[name.removesuffix(".weight")] = LowRank(a.reshape(rank, -1), b.reshape(-1, rank), 2.0)
    return Adapter(Path(f"random, rank {rank}"), (), matrices, {})


def _is_eight(name: str, scheme: Scheme) -> bool:
    return scheme == "int8" or (scheme == "int4-head8" and ("embed" in name or "lm_head" in name))


def _header(name: str, shape: tuple[int, ...], scheme: Scheme) -> Header:
    if len(shape) == 1:
        return Header(0, shape[0], F32)
    rows, columns = shape
    if name.endswith("mlp.gate.weight"):  # a router
        return Header(rows, columns, F32)
    return Header(rows, columns, Q8, first=-128) if _is_eight(name, scheme) else Header(rows, columns, Q4, first=-8)


def _fill(header: Header, out: Array, noise: Noise) -> None:
    if header.rows == 0:
        out.view(np.float32)[: header.columns] = 1.0
        return
    if header.kind == F32:
        out.view(np.float32)[:] = noise.floats(len(out) // 4)
        return
    noise.fill(out)
    eight = header.kind == Q8
    tiles = out.reshape(-1, TILE * 16 + 64 if eight else TILE * 8 + 64)  # packed.h: two rows of fp16 scales, then codes
    tiles[:, :64].view(np.float16)[:] = _scale(eight)


def _scale(eight: bool) -> float:
    return 0.02 / (127 if eight else 8)


def read_per_token(config: ModelSpec, sizes: dict[str, int]) -> int:
    """Bytes of weights that a token's step reads, of tensors of these sizes: all but an embedding that is not the head too, and
    but the experts that are not picked."""
    if (active := active_bytes(config, sizes)) is not None:
        return active
    return sum(size for name, size in sizes.items() if config.tie_word_embeddings or "embed_tokens" not in name)


@contextmanager
def gguf_file(shape: str, *, eight: bool) -> Iterator[Path]:
    """The path of a random GGUF file that is there as long as the context. Raises UsageError without the gguf package."""
    with TemporaryDirectory(prefix="llamachat-bench-", dir=_roomy()) as folder:
        path = Path(folder) / f"{shape}.gguf"
        try:
            write_gguf(path, config_of(shape), "q8_0" if eight else "q4_0")
        except ImportError as error:
            cause = "a GGUF file is written with the gguf package, which is not installed"
            raise UsageError(cause, "there is no peer to measure", "pip install gguf") from error
        yield path


def _roomy() -> Path:
    """Our cache folder: /tmp may be memory."""
    folder = paths.cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file: its rows are of codes, but for vectors and routers."""

    name: str
    shape: tuple[int, ...]
    plain: bool = False
    outer: bool = False  # the embedding or the head

    def kind(self, coding: Coding) -> Any:
        import gguf

        coded = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q8_0" if self.outer else "Q4_0"}[coding]
        return gguf.GGMLQuantizationType["F32" if self.plain else coded]

    def data(self, kind: Any, noise: Noise) -> Array:
        import gguf

        if len(self.shape) == 1:
            return np.ones(self.shape, np.float32)
        if self.plain:
            return noise.floats(math.prod(self.shape)).reshape(self.shape)
        if kind == gguf.GGMLQuantizationType.F16:
            return np.resize(_normal(), self.shape)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.empty((math.prod(self.shape) // block, size), np.uint8)
        noise.fill(data.reshape(-1))
        data[:, :2] = np.array([_scale(kind == gguf.GGMLQuantizationType.Q8_0)], np.float16).view(np.uint8)
        return data.reshape(*self.shape[:-1], -1)


@lru_cache(maxsize=1)
def _normal() -> Array:
    """Random weights with the spread of a model's, in fp16; drawn once."""
    return (np.random.default_rng(0).standard_normal(BLOCK // 4 + 7, np.float32) * 0.02).astype(np.float16)


def write_gguf(path: Path, config: ModelSpec, coding: Coding, vocabulary: Mapping[str, Any] | None = None) -> None:
    """A random GGUF, written tensor by tensor. `vocabulary`: metadata of the file whose tokenizer it gets, if any."""
    import gguf

    writer, noise = gguf.GGUFWriter(path, "qwen3moe" if config.experts else "llama"), Noise.drawn()
    _write_header(writer, config)
    _write_tokenizer(writer, config, vocabulary)
    stored = [(each, each.kind(coding)) for each in _gguf_tensors(config)]
    for each, kind in stored:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        floats = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        shape = each.shape if kind in floats else (*each.shape[:-1], each.shape[-1] // block * size)
        dtype = np.dtype(floats.get(kind, np.uint8))
        writer.add_tensor_info(each.name, shape, dtype, math.prod(each.shape) // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each, kind in stored:
        writer.write_tensor_data(each.data(kind, noise))
    writer.close()


def _gguf_tensors(config: ModelSpec) -> Iterator[_Stored]:
    hidden, size, experts = config.hidden_size, config.head_dim, config.experts
    attention, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    yield _Stored("token_embd.weight", (config.vocab_size, hidden), outer=True)
    for layer in range(config.num_hidden_layers):
        p = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            yield _Stored(f"{p}{name}.weight", (hidden,), plain=True)
        for name in ("attn_q_norm", "attn_k_norm") if config.qk_norm else ():
            yield _Stored(f"{p}{name}.weight", (size,), plain=True)
        for name, rows in (("attn_q", attention), ("attn_k", kv), ("attn_v", kv)):
            yield _Stored(f"{p}{name}.weight", (rows, hidden))
        yield _Stored(p + "attn_output.weight", (hidden, attention))
        inner = experts.intermediate_size if experts else config.intermediate_size
        stack, ending = ((experts.count,), "_exps") if experts else ((), "")
        if experts:
            yield _Stored(p + "ffn_gate_inp.weight", (experts.count, hidden), plain=True)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield _Stored(f"{p}ffn_{name}{ending}.weight", (*stack, rows, columns))
    yield _Stored("output_norm.weight", (hidden,), plain=True)
    if not config.tie_word_embeddings:
        yield _Stored("output.weight", (config.vocab_size, hidden), outer=True)


def _write_header(writer: Any, config: ModelSpec) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.experts:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.per_token)
        writer.add_expert_feed_forward_length(config.experts.intermediate_size)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, config: ModelSpec, vocabulary: Mapping[str, Any] | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    tokens, prefix, unused = vocabulary["tokenizer.ggml.tokens"], "tokenizer.ggml.", 5  # llama.cpp's type of a token
    more = range(config.vocab_size - len(tokens))
    writer.add_tokenizer_model(vocabulary[prefix + "model"])
    writer.add_tokenizer_pre(vocabulary[prefix + "pre"])
    writer.add_token_list([*tokens, *(f"<|unused_{number}|>" for number in more)])
    writer.add_token_types([*vocabulary[prefix + "token_type"], *(unused for _ in more)])
    writer.add_token_merges(vocabulary[prefix + "merges"])
    writer.add_bos_token_id(vocabulary[prefix + "bos_token_id"])
    writer.add_eos_token_id(vocabulary[prefix + "eos_token_id"])
    writer.add_chat_template(vocabulary["tokenizer.chat_template"])
