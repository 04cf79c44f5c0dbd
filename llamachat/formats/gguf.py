"""GGUF models: their keys and tensor names in our terms."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llamachat.checks import LARGEST, shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import ModelSpec, RopeScaling
from llamachat.core.tensors import Tensor, TensorInfo, dequantize, half_split_rows
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, FormatError, reader
from llamachat.families import FAMILIES
from llamachat.families.family import Family
from llamachat.formats.ggml import packing
from llamachat.formats.gguf_file import MAGIC, Metadata, StoredTensor, part_paths, read_parts
from llamachat.formats.lazy import LazyTensor, matched, read_all
from llamachat.system.metadata import Fields, naming
from llamachat.tokenizers.gguf import ENDS, special_ids

NO_FILES = ("mistral",)  # their architecture is llama
ARCHITECTURES = {name: family for name, family in FAMILIES.items() if name not in NO_FILES}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FREQS, LONG, SHORT = (f"rope_{name}.weight" for name in ("freqs", "factors_long", "factors_short"))

# Keys under the architecture's name that may be there as long as they say what is true of every model here.
NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}
NO_EFFECT = "rope.scaling.finetuned"
SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}


@reader
def is_gguf(path: Path) -> bool:
    """Whether this is a file that begins as every GGUF file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@reader
def open_gguf(path: Path) -> "GGUFCheckpoint":
    """The model in this file, or in the split files that this is one of. Raises FormatError or ConfigError."""
    metadata, stored = read_parts(path)
    general = Fields(metadata, str(path))
    general.neutral("general.type", "model")
    family = general.choice("general.architecture", ARCHITECTURES)
    arch = family.name
    own = Fields({key: _of_all_layers(metadata[key]) for key in metadata if key.startswith(f"{arch}.")}, str(path))
    config = _config(family, own, general, stored)
    weights = {name: tensor for name, tensor in stored.items() if name not in (FREQS, LONG, SHORT)}
    entries = {_canonical(name, family): _entry(tensor, config, family) for name, tensor in weights.items()}
    return GGUFCheckpoint(
        path,
        config,
        _sampling(general),
        general.text("tokenizer.chat_template", "") or None,
        own.finish((f"{arch}.{NO_EFFECT}",)) + _without_effect(metadata, arch) + _nonsense(metadata, config),
        metadata,
        matched(entries, config, path),
        tuple(part_paths(path, metadata)),
    )


@dataclass
class GGUFCheckpoint:
    """See formats.Checkpoint, which this is one of. `metadata` has the file's keys as they are; arrays become lists."""

    path: Path
    config: ModelSpec
    sampling: Mapping[str, Any]
    chat_template: str | None
    ignored: tuple[str, ...]
    metadata: Mapping[str, Any]
    entries: Mapping[str, LazyTensor]
    files: tuple[Path, ...]
    tokenizer_files: tuple[Path, ...] = ()
    recipe: None = None

    def index(self) -> Mapping[str, TensorInfo]:
        return {name: entry.info for name, entry in self.entries.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return read_all(self.entries, self.path)

    def tokenizer(self) -> Tokenizer:
        from llamachat.tokenizers.open import from_gguf

        if self.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
            raise FormatError(
                f"{self.path} has no tokenizer", "nothing can be said to its model", "use another file of it"
            )
        return from_gguf(self.metadata)


def _canonical(name: str, family: Family) -> str:
    """GGUF's name -> Hugging Face's; an unknown one stays, and is refused as unknown later."""
    if match := re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.(weight|bias)", name):
        block, layer, part, kind = match.groups()
        parts = PARTS | dict(family.gguf_parts)
        if block and part in parts:
            return f"model.layers.{layer}.{parts[part]}.{kind}"
        if not block and part in OUTER:
            return f"{OUTER[part]}.{kind}"
    return name


def _entry(tensor: StoredTensor, config: ModelSpec, family: Family) -> LazyTensor:
    """Some architectures have query and key rows in interleaved order, as one of ggml's two rotations wants it."""
    read: Callable[[], Tensor] = tensor.read
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = tensor.name.split(".")[-2:-1]
    if family.gguf_interleaved and part and part[0] in heads:
        read = partial(_half_split, tensor, heads[part[0]], config.head_dim)
    return LazyTensor(TensorInfo(tensor.shape, tensor.nbytes, packing(tensor.kind, tensor.shape[-1])), read)


def _half_split(tensor: StoredTensor, heads: int, head_dim: int) -> Tensor:
    return tensor.read().rows(half_split_rows(heads, head_dim))


def _of_all_layers(value: Any) -> Any:
    """A list with one value for each layer says as much as the value, if it is always the same."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def _config(family: Family, own: Fields, general: Fields, stored: Mapping[str, StoredTensor]) -> ModelSpec:
    arch = family.name
    if "token_embd.weight" not in stored:
        raise FormatError(f"{own.where} has no token_embd.weight", "it does not hold a whole model")
    vocab = stored["token_embd.weight"].shape[0]
    key = (arch + ".{}").format
    heads = own.size(key("attention.head_count"), "num_attention_heads")
    hidden = own.size(key("embedding_length"), "hidden_size")
    head_dim = own.whole(key("attention.key_length"), hidden // heads, 2)
    context = own.size(key("context_length"), "max_position_embeddings")
    same = {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "vocab_size": vocab}
    for name, value in (same | NEUTRAL).items():
        own.neutral(key(name), value)
    special, _ = special_ids(general.raw, vocab, own.where)
    with naming(own.where):
        return ModelSpec(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=own.size(key("feed_forward_length"), "intermediate_size"),
            num_hidden_layers=own.size(key("block_count"), "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=own.size(key("attention.head_count_kv"), "num_key_value_heads", heads),
            head_dim=head_dim,
            max_position_embeddings=context,
            rms_norm_eps=own.number(key("attention.layer_norm_rms_epsilon")),
            rope_theta=own.number(key("rope.freq_base"), 10000.0),
            rope_scaling=_rope_scaling(arch, own, _rope_tables(stored), context),
            tie_word_embeddings="output.weight" not in stored,
            qkv_bias="blk.0.attn_q.bias" in stored,
            attention_out_bias="blk.0.attn_output.bias" in stored,
            mlp_bias="blk.0.ffn_gate.bias" in stored,
            sliding_window=own.whole(key("attention.sliding_window"), 0) or None,
            bos_token_id=special.get("bos"),
            eos_token_ids=tuple(dict.fromkeys(special[key] for key in ENDS if key in special)),
            pad_token_id=special.get("padding"),
            **family.gguf,
        )


def _rope_tables(stored: Mapping[str, StoredTensor]) -> dict[str, tuple[float, ...]]:
    return {name: _factors(stored[name]) for name in (FREQS, LONG, SHORT) if name in stored}


def _factors(tensor: StoredTensor) -> tuple[float, ...]:
    if len(tensor.shape) != 1 or tensor.shape[0] > LARGEST["head_dim"]:
        raise FormatError(f"{tensor.name} of {tensor.path} is {tensor.shape}", "one factor a frequency is needed")
    return tuple(dequantize(tensor.read()).tolist())


def _rope_scaling(arch: str, own: Fields, tables: Mapping[str, tuple[float, ...]], context: int) -> RopeScaling | None:
    """As llama.cpp reads the keys: a factor without a type is linear, and no factor is no scaling."""
    key = (arch + ".rope.scaling.{}").format
    kind = own.text(key("type"), "linear")
    factor = own.number(key("factor"), 0.0) or own.number(f"{arch}.rope.scale_linear", 0.0) or 1.0
    original = own.whole(key("original_context_length"), context, 1)
    attention = own.number(key("attn_factor"), 1.0)
    factor = 1.0 if kind == "none" else factor
    if kind == "yarn" and not tables:
        return _yarn(key, own, factor, original, attention)
    if kind == "longrope" and tables.keys() == {LONG, SHORT} and factor == 1:
        reach = max(1.0, context / original)
        return RopeScaling.longrope(reach, original, attention, tables[SHORT], tables[LONG])
    if kind in ("none", "linear") and attention == 1:
        if tables.keys() == {FREQS} and factor == 1:
            return RopeScaling("factors", factors=tables[FREQS])
        if not tables:
            return RopeScaling("linear", factor) if factor != 1 else None
    said = f"factor {factor}, attn_factor {attention} and tensors {', '.join(tables) or 'none'}"
    raise ConfigError(f"{own.where}: {key('type')} is {shown(kind)}, with {said}", "no RoPE here combines these")


def _yarn(key: Callable[[str], str], own: Fields, factor: float, original: int, attention: float) -> RopeScaling:
    """Converters write Hugging Face's attention_factor as yarn_attn_factor; attn_factor multiplies what there is."""
    own.neutral(key("yarn_ext_factor"), 1.0)
    fast, slow = own.number(key("yarn_beta_fast"), 32.0), own.number(key("yarn_beta_slow"), 1.0)
    given = own.number(key("yarn_attn_factor"), 0.0)
    if attention != 1:
        given = attention * (given or 0.1 * math.log(max(factor, 1.0)) + 1)
    return RopeScaling("yarn", factor, original, beta_fast=fast, beta_slow=slow, attention_factor=given or None)


def _sampling(general: Fields) -> dict[str, Any]:
    """Fields of SamplingParams that the file recommends."""
    prefix, found = "general.sampling.", dict[str, Any]()
    for name, field in SAMPLING.items():
        if prefix + name in general.raw:
            found[field] = general.number(prefix + name)
    if prefix + "top_k" in general.raw:
        found["top_k"] = general.whole(prefix + "top_k")
    with naming(general.where):
        SamplingParams(**found)
    return found


def _nonsense(metadata: Metadata, config: ModelSpec) -> tuple[str, ...]:
    """Nothing is ever padded, and old files have an id for it that no token has."""
    key = "tokenizer.ggml.padding_token_id"
    return (key,) if key in metadata and config.pad_token_id is None else ()


def _without_effect(metadata: Metadata, arch: str) -> tuple[str, ...]:
    """Keys beyond the architecture's that nothing here reads; the tokenizer's are its own concern."""
    read = {"general.architecture", "general.type", "general.alignment", "general.sampling.top_k"}
    read |= {f"general.sampling.{name}" for name in SAMPLING}
    elsewhere = (f"{arch}.", "tokenizer.", "split.")
    return tuple(shown(key)[1:-1] for key in metadata if key not in read and not key.startswith(elsewhere))
