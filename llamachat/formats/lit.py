"""lit-llama checkpoints: one lit-llama.pth, float or gptq.int4. Source: lit_llama's model.py and quantization.py.

The project kept its model sizes in code, so the configuration is read off the tensors. The number of heads cannot: it
comes from a lit_config.json beside the file (lit-llama's names: n_head, block_size, ...), else heads are of 128, as in
every size that lit-llama knew. RoPE pairs are interleaved.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.checks import shown
from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import (
    GROUP,
    Array,
    QuantTensor,
    Tensor,
    TensorInfo,
    half_split_rows,
    pack_nibbles,
    to_float32,
)
from llamachat.errors import ConfigError, FormatError, reader
from llamachat.formats.lazy import LazyCheckpoint, LazyTensor, float_entry, matched, packing, reordered, tokenizer_home
from llamachat.formats.parts import Part, covering, cut
from llamachat.formats.pickled import read_pickled
from llamachat.formats.translated import Translated, head_share
from llamachat.system.metadata import Fields, naming, read_json

WEIGHTS, CONFIG_FILE = "lit-llama.pth", "lit_config.json"
TOP = {
    "lm_head.weight": "lm_head.weight",
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.scale": "model.norm.weight",
}
LAYER = {
    "rms_1.scale": "input_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "rms_2.scale": "post_attention_layernorm.weight",
    "mlp.c_fc1.weight": "mlp.gate_proj.weight",
    "mlp.c_fc2.weight": "mlp.up_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
FOLDER = "give the folder of a model in another format"
QUANTIZED = ("quant_weight", "scales", "zeros")


@reader
def open_lit(path: Path) -> LazyCheckpoint:
    """The model in this file, or in a folder's file of the usual name.

    Raises FormatError or ConfigError for what is damaged, missing or not supported.
    """
    file = path / WEIGHTS if path.is_dir() else path
    weights = _weights(read_pickled(file), file)
    translated = read_config(_config(weights, file), str(file))
    entries: dict[str, LazyTensor] = {}
    for name, weight in weights.items():
        entries |= _renamed(name, weight, translated.config)
    checked = matched(entries, translated.config, file)
    home, beside = tokenizer_home(file.parent), file.parent / CONFIG_FILE
    files = (file, beside) if beside.is_file() else (file,)
    return LazyCheckpoint(file, translated.config, checked, home, translated.sampling, translated.ignored, files)


def _config(weights: Mapping[str, LazyTensor], file: Path) -> dict[str, Any]:
    """lit-llama's own configuration keys, read off the shapes; a lit_config.json has the last word."""
    try:
        vocabulary, width = weights["transformer.wte.weight"].info.shape
    except (KeyError, ValueError) as error:
        raise FormatError(f"{file} has no matrix transformer.wte.weight", "it is not lit-llama's", FOLDER) from error
    layers = sum(name.endswith(".rms_1.scale") for name in weights)
    raw: dict[str, Any] = {"n_layer": layers, "n_embd": width, "padded_vocab_size": vocabulary}
    beside = file.parent / CONFIG_FILE
    raw |= read_json(beside) if beside.is_file() else {}
    if "n_head" not in raw and width % 128:
        raise ConfigError(
            f"{file} does not say how many heads its width of {width} has",
            "it cannot be run",
            f'put {{"n_head": ...}} in {beside}',
        )
    return {"n_head": width // 128, **raw}


def _weights(arrays: Mapping[str, Array], file: Path) -> dict[str, LazyTensor]:
    """lit-llama's names -> tensors, the three parts of a quantized one joined under `.weight`."""
    weights: dict[str, LazyTensor] = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        if part == "quant_weight":
            weights[f"{module}.weight"] = _gptq(module, arrays, file)
        elif part not in QUANTIZED or f"{module}.quant_weight" not in arrays:
            weights[name] = float_entry(name, array)
    return weights


def _gptq(module: str, arrays: Mapping[str, Array], file: Path) -> LazyTensor:
    """gptq.int4: uint8 [rows, columns / 2], even columns in the low nibble; w = (code - zero) * scale."""
    try:
        codes, scale, zero = (arrays[f"{module}.{part}"] for part in QUANTIZED)
    except KeyError as error:
        raise FormatError(f"{file} lacks {shown(str(error.args[0]))}", "the model is incomplete") from error
    fits = codes.dtype == np.uint8 and codes.ndim == scale.ndim == 2 and scale.shape == zero.shape
    if not fits or len(scale) != len(codes) or f"{module}.weight" in arrays:
        raise FormatError(f"the parts of {shown(module)} in {file} do not fit together", "it is damaged")
    rows, columns = codes.shape[0], codes.shape[1] * 2
    if columns % (scale.shape[1] * GROUP):
        raise FormatError(f"{shown(module)} in {file} has {columns} columns", f"groups of {GROUP} or more are needed")
    coded = packing(columns, columns // scale.shape[1], 4, np.arange(16, dtype=np.float32), minimum=True)
    stored = replace(coded, codes=codes, scale=scale, minimum=zero)  # of which 32 columns lie in another order

    def source(part: Part) -> Tensor:
        outer, rest = covering(part, columns, GROUP)
        some = cut(stored, outer)
        assert isinstance(some, QuantTensor) and some.minimum is not None
        step = to_float32(some.scale)
        each = np.stack([some.codes & 15, some.codes >> 4], axis=-1).reshape(some.shape)
        minimum = -to_float32(some.minimum) * step
        return cut(replace(some, codes=pack_nibbles(each), scale=step, minimum=minimum), rest)

    return LazyTensor(TensorInfo((rows, columns), codes.nbytes + scale.nbytes + zero.nbytes, coded), source)


def _renamed(name: str, weight: LazyTensor, config: ModelSpec) -> dict[str, LazyTensor]:
    """One tensor under its canonical name, or the three of the fused c_attn."""
    match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", name)
    prefix, part, names = (f"model.layers.{match[1]}.", match[2], LAYER) if match else ("", name, TOP)
    if part in names:
        return {prefix + names[part]: weight}
    if not match or part != "attn.c_attn.weight":
        raise FormatError(f"the checkpoint holds {shown(name)}", "no model of lit-llama's has such a tensor")
    if weight.info.shape[:1] == () or weight.info.shape[0] % 3:
        raise FormatError(f"{shown(name)} is {weight.info.shape}", "queries, keys and values cannot be told apart")
    return {f"{prefix}self_attn.{part}_proj.weight": _third(weight, i, config) for i, part in enumerate("qkv")}


def _third(weight: LazyTensor, number: int, config: ModelSpec) -> LazyTensor:
    """The query (0), key (1) or value (2) rows of a fused matrix."""
    rows = weight.info.shape[0] // 3
    info = replace(weight.info, shape=(rows, *weight.info.shape[1:]), nbytes=weight.info.nbytes // 3)
    order = np.arange(rows) if number == 2 else half_split_rows(config.num_attention_heads, config.head_dim)
    return reordered(weight, number * rows + order, info)


def read_config(raw: Mapping[str, Any], where: str) -> Translated:
    """lit-llama's LLaMAConfig; absent keys have its defaults. Raises ConfigError."""
    fields = Fields(raw, where)
    hidden, heads = fields.size("n_embd", "hidden_size", 4096), fields.size("n_head", "num_attention_heads", 32)
    padded = -(-fields.size("vocab_size", "vocab_size", 32000) // 64) * 64
    with naming(where):
        config = ModelSpec(
            vocab_size=fields.size("padded_vocab_size", "vocab_size", padded),
            hidden_size=hidden,
            intermediate_size=-(-int(2 * 4 * hidden / 3) // 256) * 256,
            num_hidden_layers=fields.size("n_layer", "num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_share(fields, hidden, heads),
            max_position_embeddings=fields.size("block_size", "max_position_embeddings", 2048),
            rms_norm_eps=1e-5,
        )
    return Translated(config, {}, fields.finish(()))
