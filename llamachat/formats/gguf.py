"""GGUF models: their keys and tensor names in our terms."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamachat.checks import LARGEST, shown
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import NORMS, ModelSpec, Rope, RopeScaling
from llamachat.core.tensors import Tensor, TensorInfo, dequantize
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, FormatError, reader
from llamachat.families import ARCHITECTURES, FAMILIES
from llamachat.families.family import Gguf, Layout
from llamachat.families.t5 import UNUSED, our_name
from llamachat.formats import gguf_t5
from llamachat.formats.ggml import BlockInfo, packing
from llamachat.formats.gguf_file import MAGIC, Metadata, StoredTensor, part_paths, read_parts
from llamachat.formats.labels import Labels, gguf_labels
from llamachat.formats.layout import Cut, Places, half_split
from llamachat.formats.lazy import LazyTensor, matched, read_all
from llamachat.formats.parts import Parts
from llamachat.formats.pooling import GGUF_POOLING
from llamachat.system.metadata import Fields, naming
from llamachat.tokenizers.gguf import ENDS, special_ids

CLASSIFIER = "cls.output"
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", CLASSIFIER: "score"}
PARTS: dict[str, tuple[str, ...]] = {
    "attn_q": ("self_attn.q_proj",),
    "attn_k": ("self_attn.k_proj",),
    "attn_v": ("self_attn.v_proj",),
    "attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_output": ("self_attn.o_proj",),
    "attn_q_norm": ("self_attn.q_norm",),
    "attn_k_norm": ("self_attn.k_norm",),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": ("mlp.up_proj",),
    "ffn_down": ("mlp.down_proj",),
    "ffn_gate_inp": ("mlp.gate",),
    "ffn_gate_exps": ("mlp.experts.{}.gate_proj",),
    "ffn_up_exps": ("mlp.experts.{}.up_proj",),
    "ffn_gate_up_exps": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
    "ffn_down_exps": ("mlp.experts.{}.down_proj",),
}
NORM_ROLES = {
    "attention_in": "attn_norm",
    "attention_out": "post_attention_norm",
    "mlp_in": "ffn_norm",
    "mlp_out": "post_ffw_norm",
}
FREQS, LONG, SHORT = (f"rope_{name}.weight" for name in ("freqs", "factors_long", "factors_short"))

# Keys under the architecture's name that may be there as long as they say what is true of every model here.
NEUTRAL = {
    "attention.causal": True,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}
NO_EFFECT = ("rope.scaling.finetuned",)
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
    gguf_t5.refuse_encoder(metadata, str(path))
    arch = general.choice("general.architecture", {name: name for name in (*ARCHITECTURES, gguf_t5.ARCH)})
    own = Fields({key: _of_all_layers(metadata[key]) for key in metadata if key.startswith(f"{arch}.")}, str(path))
    labels: Labels | None = None
    if arch == gguf_t5.ARCH:
        config: ModelSpec = gguf_t5.t5_spec(own, general, stored, NEUTRAL)
        entries = _stack_entries(stored, path)
    else:
        family = ARCHITECTURES[arch].gguf
        assert family is not None
        classifier = stored.get(f"{CLASSIFIER}.weight")
        labels = gguf_labels(own, arch, classifier.shape[0]) if classifier else None
        config = _config(family, own, general, stored, labels)
        replaced = ["output.weight"] if labels else []  # rerankers' files keep the head that they had
        unused = (FREQS, LONG, SHORT, *replaced)
        entries = _entries(
            {name: tensor for name, tensor in stored.items() if name not in unused}, config, family.layout
        )
    pooling = GGUF_POOLING[own.whole(f"{arch}.pooling_type", 0, 0, len(GGUF_POOLING) - 1)]
    return GGUFCheckpoint(
        path,
        config,
        _sampling(general),
        general.text("tokenizer.chat_template", "") or None,
        own.finish([f"{arch}.{key}" for key in NO_EFFECT])
        + _without_effect(metadata, arch)
        + _nonsense(metadata, config),
        metadata,
        matched(entries, config, path),
        tuple(part_paths(path, metadata)),
        pooling,
        labels=labels,
        layout=_in_transformers(arch, config),
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
    pooling: str | None = None
    tokenizer_files: tuple[Path, ...] = ()
    labels: Labels | None = None
    recipe: None = None
    layout: Layout = field(default_factory=Layout)

    def index(self) -> Mapping[str, TensorInfo]:
        return {name: entry.info for name, entry in self.entries.items()}

    def tensors(self, parts: Parts | None = None) -> Iterator[tuple[str, Tensor]]:
        return read_all(self.entries, self.path, parts)

    def tokenizer(self) -> Tokenizer:
        from llamachat.tokenizers.open import from_gguf

        if self.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
            raise FormatError(
                f"{self.path} has no tokenizer", "nothing can be said to its model", "use another file of it"
            )
        return from_gguf(self.metadata)


def _in_transformers(arch: str, config: ModelSpec) -> Layout:
    """Of the class that transformers has for such a model. Mixtral's files are of the architecture llama."""
    if arch == "llama" and config.experts is not None:
        return FAMILIES["mixtral"].layout
    return ARCHITECTURES[arch].layout if arch in ARCHITECTURES else Layout()


def _entries(stored: Mapping[str, StoredTensor], config: ModelSpec, layout: Layout) -> dict[str, LazyTensor]:
    """By our names; unknown ones stay, and are refused as unknown later."""
    norms = {NORM_ROLES[role]: (name,) for role, name in NORMS[config.norms].items()}
    places = Places(replace(layout, parts=PARTS | norms | dict(layout.parts)), config)
    entries = dict[str, LazyTensor]()
    for name, tensor in stored.items():
        match = re.fullmatch(rf"(blk\.(\d+)\.)?(\w+|{re.escape(CLASSIFIER)})\.(weight|bias)", name)
        if match and match[1]:
            prefix = f"model.layers.{match[2]}."
            entries |= {
                ours: _entry(tensor, what) for ours, what in places.of(prefix, match[3], match[4], tensor.shape[0])
            }
        elif match and match[3] in OUTER:
            entries[f"{OUTER[match[3]]}.{match[4]}"] = _entry(tensor, Cut(slice(None)))
        else:
            entries[name] = _entry(tensor, Cut(slice(None)))
    turned = {name: half_split(name, lazy, config) for name, lazy in entries.items()}
    return turned if layout.interleaved else entries


def _stack_entries(stored: Mapping[str, StoredTensor], path: Path) -> dict[str, LazyTensor]:
    """T5's by our names."""
    used = {name: tensor for name, tensor in stored.items() if name not in UNUSED}
    entries = {our_name(name): _entry(tensor, Cut(slice(None))) for name, tensor in used.items()}
    if len(entries) < len(used):
        raise FormatError(f"{path} names a tensor in two ways", "it is not clear which is meant")
    return entries


def _entry(tensor: StoredTensor, what: Cut) -> LazyTensor:
    some = tensor.some(what.rows, what.number)
    return LazyTensor(BlockInfo(some.shape, some.nbytes, packing(some.kind, some.shape[-1]), some.blocks()), some.read)


def _of_all_layers(value: Any) -> Any:
    """A list with one value for each layer says as much as the value, if it is always the same."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def _config(
    family: Gguf, own: Fields, general: Fields, stored: Mapping[str, StoredTensor], labels: Labels | None
) -> ModelSpec:
    arch = family.arch
    if "token_embd.weight" not in stored:
        raise FormatError(f"{own.where} has no token_embd.weight", "it does not hold a whole model")
    vocab = stored["token_embd.weight"].shape[0]
    key = (arch + ".{}").format
    heads = own.size(key("attention.head_count"), "num_attention_heads")
    hidden = own.size(key("embedding_length"), "hidden_size")
    head_dim = own.whole(key("attention.key_length"), hidden // heads, 2)
    context = own.size(key("context_length"), "max_position_embeddings")
    same = {"attention.value_length": head_dim, "vocab_size": vocab}
    layers = own.size(key("block_count"), "num_hidden_layers")
    for name, value in (same | NEUTRAL).items():
        own.neutral(key(name), value)
    special, _ = special_ids(general.raw, vocab, own.where)
    with naming(own.where):
        ways = (
            _rope(family, own, _rope_tables(stored), context, head_dim)
            | dict(family.said)
            | family.read(own, key, layers)
        )
        if ways.get("sliding_window") is None:
            ways["sliding_rope"] = None
        if not ways.get("experts"):
            own.neutral(key("expert_count"), 0)
            own.neutral(key("expert_used_count"), 0)
        if labels:
            ways |= {"head": "sequence_labels", "num_labels": len(labels.names)}
            ways |= {"logit_multiplier": 1.0, "logit_softcap": None}
        return ModelSpec(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=own.size(key("feed_forward_length"), "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=own.size(key("attention.head_count_kv"), "num_key_value_heads", heads),
            head_dim=head_dim,
            max_position_embeddings=context,
            rms_norm_eps=own.number(key("attention.layer_norm_rms_epsilon")),
            tie_word_embeddings="output.weight" not in stored,
            qkv_bias="blk.0.attn_q.bias" in stored or "blk.0.attn_qkv.bias" in stored,
            attention_out_bias="blk.0.attn_output.bias" in stored,
            mlp_bias="blk.0.ffn_gate.bias" in stored,
            bos_token_id=special.get("bos"),
            eos_token_ids=tuple(dict.fromkeys(special[key] for key in ENDS if key in special)),
            pad_token_id=special.get("padding"),
            **ways,
        )


def _rope(
    family: Gguf, own: Fields, tables: Mapping[str, tuple[float, ...]], context: int, head_dim: int
) -> dict[str, Any]:
    """The spec's fields of how layers rotate; those with a window have no scaling where they have a theta of their own."""
    key = (family.arch + ".{}").format
    theta = own.number(key("rope.freq_base"), 10000.0)
    dim = own.whole(key("rope.dimension_count"), head_dim, 2)
    if not family.partial:
        own.neutral(key("rope.dimension_count"), head_dim)
    main = Rope(theta, _rope_scaling(family.arch, own, tables, context), dim)
    windowed = main
    if family.window_theta is not None:
        windowed = Rope(own.number(key("rope.freq_base_swa"), family.window_theta or theta), None, dim)
    else:
        own.neutral(key("rope.freq_base_swa"), theta)
    return {
        "rope_theta": theta,
        "rope_scaling": main.scaling,
        "rotary_dim": None if dim == head_dim else dim,
        "sliding_rope": None if windowed == main else windowed,
    }


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
    if kind in ("longrope", "linear") and tables.keys() == {LONG, SHORT} and factor == 1:
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
    given, all_dim = own.number(key("yarn_attn_factor"), 0.0), own.number(key("yarn_log_multiplier"), 0.0)
    if attention != 1:
        own.neutral(key("yarn_log_multiplier"), 0.0)
        given = attention * (given or 0.1 * math.log(max(factor, 1.0)) + 1)
    mscale = 1.0 if all_dim else 0.0  # llama.cpp knows no other
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=fast,
        beta_slow=slow,
        mscale=mscale,
        mscale_all_dim=all_dim,
        attention_factor=given or None,
    )


def _sampling(general: Fields) -> dict[str, Any]:
    """Fields of SamplingParams that the file recommends."""
    prefix, found = "general.sampling.", dict[str, Any]()
    for name, ours in SAMPLING.items():
        if prefix + name in general.raw:
            found[ours] = general.number(prefix + name)
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
