"""What a converted model's folder holds beside its weights: configuration, tokenizer, template, sampling."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamachat.config import LlamaConfig, RopeScaling
from llamachat.formats import Checkpoint
from llamachat.formats.gguf import GGUFCheckpoint
from llamachat.metadata import names, read_json
from llamachat.tokenizer import GGUF_VOCABULARY
from quantize.recipe import Recipe

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    GGUF_VOCABULARY,
)


def write_metadata(source: Checkpoint, recipe: Recipe, folder: Path) -> None:
    """Everything but the weights; a Hugging Face source's own files are kept as they are."""
    home = getattr(source, "tokenizer_folder", source.path)
    for name in COPIED:
        if (file := home / name).is_file():
            shutil.copyfile(file, folder / name)
    if isinstance(source, GGUFCheckpoint):
        vocabulary = {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.ggml.")}
        _write_json(folder / GGUF_VOCABULARY, vocabulary)
    if source.chat_template and not (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    if not (folder / "generation_config.json").exists():
        _write_json(folder / "generation_config.json", _generation(source))
    own = source.path / "config.json"
    config = dict(read_json(own)) if own.is_file() else hf_config(source.config)
    config["tie_word_embeddings"] = source.config.tie_word_embeddings
    compute = config.get("dtype") or config.get("torch_dtype") or "float32"
    _write_json(folder / "config.json", {**config, "quantization_config": recipe.quantization_config(compute)})


def hf_config(config: LlamaConfig) -> dict[str, Any]:
    """Hugging Face's config.json of a model that came without one."""
    fields = {key: value for key, value in asdict(config).items() if key in SAME_NAME}
    family = "qwen2" if config.qkv_bias and not config.attention_out_bias else "llama"
    if config.sliding_window and family == "llama":
        family = "mistral"
    raw = {"model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"], **fields}
    if family == "llama":
        raw |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if config.sliding_window:
        raw["sliding_window"] = config.sliding_window
        if family == "qwen2":
            raw |= {"use_sliding_window": True, "max_window_layers": config.full_attention_layers}
    if config.rope_scaling:
        raw["rope_scaling"] = _rope(config.rope_scaling)
    return {**raw, "hidden_act": "silu", "eos_token_id": list(config.eos_token_ids)}


SAME_NAME = names(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    max_position_embeddings rms_norm_eps rope_theta bos_token_id pad_token_id
    """
)


def _rope(scaling: RopeScaling) -> dict[str, Any]:
    """GGUF's bare factors are longrope's, the same for every length."""
    if scaling.kind == "factors":
        factors = list(scaling.factors)
        same = {"factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 1}
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **same}
    fields = {key: value for key, value in asdict(scaling).items() if key != "kind" and value not in (None, (), 0)}
    return {"rope_type": scaling.kind, **{key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}}


def _generation(source: Checkpoint) -> dict[str, Any]:
    sampling: Mapping[str, Any] = source.sampling
    known = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {key: sampling[key] for key in known if key in sampling}
    return {"eos_token_id": list(source.config.eos_token_ids), **({"do_sample": True, **given} if given else {})}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
