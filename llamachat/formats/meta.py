"""Meta's own releases: params.json and consolidated.NN.pth, one file a model-parallel rank, tokenizer.model.

Ranks hold equal parts of each matrix: by output rows (wq wk wv w1 w3 output) or by input columns (wo w2); the embedding
is split by columns in Llama 1 and 2 and by rows in Llama 3. RoPE pairs are interleaved. Source: the releases' model.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llamachat.checks import shown
from llamachat.core.spec import LlamaConfig
from llamachat.core.tensors import Array, FloatTensor, TensorInfo, half_split_rows
from llamachat.errors import FormatError, reader
from llamachat.formats import config_sources
from llamachat.formats.lazy import FLOATS, LazyCheckpoint, LazyTensor, aligned, listed, matched, tokenizer_home
from llamachat.formats.pickled import read_pickled
from llamachat.system.metadata import read_json

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
    translated = config_sources.meta(read_json(params), str(params), vocab_size)
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


def _entry(name: str, parts: Sequence[Array], axis: int | None, config: LlamaConfig) -> LazyTensor:
    first = parts[0]
    if first.dtype not in FLOATS or any(part.dtype != first.dtype or part.shape != first.shape for part in parts):
        raise FormatError(
            f"the ranks' parts of {shown(name)} are not floats of one shape and type", "it cannot be joined"
        )
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    info = TensorInfo(shape, sum(part.nbytes for part in parts))
    rotated = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    heads = rotated.get(name.rpartition("self_attn.")[2])

    def read() -> FloatTensor:
        whole = aligned(first) if axis is None or len(parts) == 1 else np.concatenate(parts, axis)
        return FloatTensor(whole if heads is None else whole[half_split_rows(heads, config.head_dim)])

    return LazyTensor(info, read)
