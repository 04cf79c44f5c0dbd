"""Meta's own releases: params.json and consolidated.NN.pth, one file a model-parallel rank, tokenizer.model.

Ranks hold equal parts of each matrix: by output rows (wq wk wv w1 w3 output) or by input columns (wo w2); the embedding
is split by columns in Llama 1 and 2 and by rows in Llama 3. RoPE pairs are interleaved. Source: the releases' model.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.checks import require, require_number, shown
from llamachat.core.spec import ModelSpec, RopeScaling
from llamachat.core.tensors import Array, FloatTensor, TensorInfo, half_split_rows
from llamachat.errors import FormatError, reader
from llamachat.formats.lazy import (
    FLOATS,
    LazyCheckpoint,
    LazyTensor,
    aligned,
    float_part,
    listed,
    matched,
    reordered,
    tokenizer_home,
)
from llamachat.formats.parts import Part, picked, taken
from llamachat.formats.pickled import read_pickled
from llamachat.formats.translated import Translated, feed_forward, head_share
from llamachat.system.metadata import Fields, naming, read_json

ROWS, COLUMNS = 0, 1  # the axis along which the ranks' parts are joined
LAYER: dict[str, tuple[str, int | None]] = {
    "attention.wq.weight": ("self_attn.q_proj.weight", ROWS),
    "attention.wk.weight": ("self_attn.k_proj.weight", ROWS),
    "attention.wv.weight": ("self_attn.v_proj.weight", ROWS),
    "attention.wo.weight": ("self_attn.o_proj.weight", COLUMNS),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", ROWS),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", COLUMNS),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", ROWS),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}
TOP: dict[str, tuple[str, int | None]] = {
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", ROWS),
}
SHARD = re.compile(r"consolidated\.(\d\d)\.pth")


@reader
def open_meta(folder: Path) -> LazyCheckpoint:
    """The model in this folder. Raises FormatError or ConfigError for what is damaged, missing or not supported."""
    params, paths = folder / "params.json", _shards(folder)
    shards = [read_pickled(path) for path in paths]
    for number, shard in enumerate(shards):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            raise FormatError(f"ranks 0 and {number} of {folder} differ in {listed(odd)}", "they are of two models")
    vocab_size = _vocab_size(shards, folder)
    translated = read_params(read_json(params), str(params), vocab_size)
    entries = {}
    for name in shards[0].keys() - {"rope.freqs"}:
        parts = [shard[name] for shard in shards]
        canonical, axis = _renamed(name, by_rows=parts[0].shape[:1] != (vocab_size,))
        entries[canonical] = _entry(canonical, parts, axis, translated.config)
    checked = matched(entries, translated.config, folder)
    home, files = tokenizer_home(folder), (params, *paths)
    return LazyCheckpoint(folder, translated.config, checked, home, translated.sampling, translated.ignored, files)


def _shards(folder: Path) -> list[Path]:
    """consolidated.00.pth and on, every one of them."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    if missing := sorted(set(range(max(found, default=0) + 1)) - found.keys()):
        files = listed([f"consolidated.{number:02}.pth" for number in missing])
        raise FormatError(f"{folder} lacks {files}", "the model is incomplete", "fetch its files again")
    return [found[number] for number in sorted(found)]


def _vocab_size(shards: list[dict[str, Array]], folder: Path) -> int:
    """From the head, whose rows every release splits; many a params.json says -1."""
    if "output.weight" not in shards[0]:
        raise FormatError(f"{folder} lacks output.weight", "the model is incomplete", "fetch its files again")
    return sum(len(np.atleast_1d(shard["output.weight"])) for shard in shards)


def _renamed(name: str, by_rows: bool) -> tuple[str, int | None]:
    """The canonical name, and the axis to join ranks on (None: each has the whole tensor)."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match and match[2] in LAYER:
        canonical, axis = LAYER[match[2]]
        return f"model.layers.{match[1]}.{canonical}", axis
    if name == "tok_embeddings.weight":
        return "model.embed_tokens.weight", ROWS if by_rows else COLUMNS
    if name in TOP:
        return TOP[name]
    raise FormatError(f"the checkpoint holds {shown(name)}", "no float model of Meta's has such a tensor")


def _entry(name: str, parts: Sequence[Array], axis: int | None, config: ModelSpec) -> LazyTensor:
    first = parts[0]
    if first.dtype not in FLOATS or any(part.dtype != first.dtype or part.shape != first.shape for part in parts):
        raise FormatError(
            f"the ranks' parts of {shown(name)} are not floats of one shape and type", "it cannot be joined"
        )
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    info = TensorInfo(shape, sum(part.nbytes for part in parts))
    rotated = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    heads = rotated.get(name.rpartition("self_attn.")[2])
    whole = LazyTensor(info, partial(float_part, first) if axis is None else partial(_joined, parts, axis))
    return whole if heads is None else reordered(whole, half_split_rows(heads, config.head_dim), info)


def _joined(arrays: Sequence[Array], axis: int, part: Part) -> FloatTensor:
    """A part of equal arrays that lie one behind the other along an axis, from those that hold some of it."""
    each, pieces = arrays[0].shape[axis], []
    wanted = picked(each * len(arrays), part.rows if axis == ROWS else part.columns)
    assert wanted.step == 1
    for number, array in enumerate(arrays):
        start, stop = (min(max(end - number * each, 0), each) for end in (wanted.start, wanted.stop))
        own = replace(part, rows=slice(start, stop)) if axis == ROWS else replace(part, columns=slice(start, stop))
        pieces += [taken(array, own)] if start < stop else []
    return FloatTensor(aligned(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces, axis))


def read_params(params: Mapping[str, Any], where: str, vocab_size: int) -> Translated:
    """Meta's params.json; `vocab_size`, from the weights, stands in for Llama 1's and 2's -1. Raises ConfigError.

    As in Meta's llama_models: use_scaled_rope means a factor of 8 unless the file has another, also for Llama 3.2.
    """
    fields = Fields(params, where)
    for key in ("quantization_args", "lora_args", "vision_model", "moe_args"):
        fields.neutral(key)
    fields.neutral("vision_num_cross_attention_layers", -1)
    hidden, heads = fields.size("dim", "hidden_size"), fields.size("n_heads", "num_attention_heads")
    multiplier = fields.number("ffn_dim_multiplier", 0) or 1.0
    require_number(f"{where}: ffn_dim_multiplier", multiplier, 1e-6, 1e6)
    theta = fields.number("rope_theta", 10000.0)  # Llama 1 and 2 do not name it, Llama 3 does
    eps, kv_heads = fields.number("norm_eps", 1e-5), fields.size("n_kv_heads", "num_key_value_heads", heads)
    given = fields.whole("vocab_size", -1, -1)
    require(given != 0, f"{where}: vocab_size", given, "-1, or the number of tokens")
    layers, scaling = fields.size("n_layers", "num_hidden_layers"), _rope(fields)
    with naming(where):
        config = ModelSpec(
            vocab_size=given if given > 0 else vocab_size,
            hidden_size=hidden,
            intermediate_size=feed_forward(fields, int(int(2 * 4 * hidden / 3) * multiplier), 256),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_share(fields, hidden, heads),
            max_position_embeddings=fields.size("max_seq_len", "max_position_embeddings", _trained_context(fields)),
            rms_norm_eps=eps,
            rope_theta=theta,
            rope_scaling=scaling,
        )
    ignored = fields.finish(("max_batch_size", "model_parallel_size", "vision_chunk_size", "vision_max_num_chunks"))
    return Translated(config, {}, ignored)


def _rope(fields: Fields) -> RopeScaling | None:
    factor, high = fields.number("rope_scaling_factor", 8), fields.number("rope_high_freq_factor", 4)
    if not fields.flag("use_scaled_rope", False):
        return None
    with naming(fields.where):
        return RopeScaling("llama3", factor, original_max_position_embeddings=8192, high_freq_factor=high)


def _trained_context(fields: Fields) -> int:
    """No params.json names the context that the model was trained on, but what tells the releases apart is in it."""
    if fields.flag("use_scaled_rope", False):
        return 131072  # Llama 3.1 and later
    if (theta := fields.number("rope_theta", 10000.0)) > 10000:
        return 8192 if theta <= 500000 else 16384  # Llama 3, Code Llama
    large1 = fields.get("n_layers") == 80 and fields.get("n_kv_heads") is None
    return 2048 if large1 or fields.number("norm_eps", 1e-5) < 1e-5 else 4096  # Llama 1, Llama 2
