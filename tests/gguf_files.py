"""Writes tiny GGUF models with the gguf package from a Hugging Face state dict, the way llama.cpp's converter does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip


def gguf_name(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    if name in OUTER:
        return OUTER[name]
    _, _, layer, part = name.split(".", 3)
    stem, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[stem]}.{kind}"


def interleaved(data: NDArray[Any], heads: int) -> NDArray[Any]:
    """Half-split rows -> interleaved pairs, as llama.cpp's converter orders query and key rows of `llama` models."""
    return data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def model_metadata(config: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """GGUF keys of a Hugging Face config (theta may also be in transformers 5's `rope_parameters`)."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    values = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        f"{arch}.attention.sliding_window": config.get("sliding_window"),
        f"{arch}.rope.freq_base": float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.vocab_size": config["vocab_size"],
    }
    for key in ("bos", "eos", "pad"):
        token = config.get(f"{key}_token_id")
        name = "padding" if key == "pad" else key
        values[f"tokenizer.ggml.{name}_token_id"] = token[0] if isinstance(token, list) else token
    return values


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Integers as uint32 and floats as float32, as converters write them."""
    if isinstance(value, gguf.GGUFValue):
        writer.add_key_value(key, value.value, value.type, value.sub_type)
    elif isinstance(value, int) and not isinstance(value, bool):
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if value >= 0 else gguf.GGUFValueType.INT32)
    else:
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))


def write_gguf(
    path: Path,
    state: Mapping[str, NDArray[Any]],
    hf_config: Mapping[str, Any],
    *,
    arch: str = "llama",
    quant: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    raw: Mapping[str, tuple[str, NDArray[np.uint8]]] | None = None,
    extra: Mapping[str, NDArray[np.float32]] | None = None,
    split: int = 0,
) -> list[Path]:
    """Write a model, and return the paths of its files.

    state: float arrays by Hugging Face name, query and key rows half-split (as Hugging Face has them).
    quant: type of matrices, one that gguf.quants can quantize to; vectors are F32.
    metadata: values by raw GGUF key (tokenizer, chat template...), over those from hf_config; None leaves a key out.
    raw: ready-made bytes [rows, row bytes] and their type, by GGUF name, instead of the state's.
    extra: float32 tensors by GGUF name that have no Hugging Face name, e.g. rope_freqs.weight.
    split: at most so many tensors a file.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    values = model_metadata(hf_config, arch) | {"tokenizer.ggml.model": "no_vocab"} | dict(metadata or {})
    for key, value in values.items():
        if value is not None:
            add_value(writer, key, value)
    add_tensors(writer, state, hf_config, gguf.GGMLQuantizationType[quant], arch == "llama", raw or {})
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path] if not split else sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def add_tensors(
    writer: gguf.GGUFWriter,
    state: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    quant: gguf.GGMLQuantizationType,
    permute: bool,
    raw: Mapping[str, tuple[str, NDArray[np.uint8]]],
) -> None:
    heads = config["num_attention_heads"]
    rotated = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    for hf_name, source in state.items():
        name, data = gguf_name(hf_name), np.asarray(source, np.float32)
        projection = hf_name.split(".")[-2]
        if permute and projection in rotated:
            data = interleaved(data, rotated[projection])
        if name in raw:
            kind, blocks = raw[name]
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
        elif data.ndim == 1 or quant == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(data))
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, quant), raw_dtype=quant)


def random_state(config: Mapping[str, Any], seed: int = 0, qkv_bias: bool = False) -> dict[str, NDArray[np.float32]]:
    """A random Hugging Face state dict for a tiny config; no lm_head when embeddings are tied."""
    random = np.random.default_rng(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv, middle = (config.get("num_key_value_heads") or heads) * head_dim, config["intermediate_size"]
    shapes: dict[str, Sequence[int]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block: dict[str, Sequence[int]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (heads * head_dim, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, heads * head_dim),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (middle, hidden),
            "mlp.up_proj.weight": (middle, hidden),
            "mlp.down_proj.weight": (hidden, middle),
        }
        if qkv_bias:
            block |= {f"self_attn.{p}_proj.bias": (n,) for p, n in (("q", heads * head_dim), ("k", kv), ("v", kv))}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return {name: random.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
