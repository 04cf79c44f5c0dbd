"""What a converted model's folder holds beside its weights: configuration, tokenizer, template, sampling."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from llamachat.core.spec import Dtype
from llamachat.formats import Checkpoint
from llamachat.formats.adapter import base_of
from llamachat.formats.gguf import GGUFCheckpoint
from llamachat.formats.hf import chat_template, described
from llamachat.formats.hf_config import OWN, text_part
from llamachat.formats.megatron import MegatronCheckpoint
from llamachat.formats.translated import Translated
from llamachat.system.metadata import read_json
from llamachat.tokenizers import megatron as tokens
from llamachat.tokenizers.open import GGUF_VOCABULARY
from quantize.recipe import Recipe
from quantize.to_hf import head_config, hf_config

CONFIG, TOKENIZER_CONFIG, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    GGUF_VOCABULARY,
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # generation_config.json's words
OWN_SAMPLING = ("seed", "max_length")  # for which it has none, or none that is heeded


def write_metadata(source: Checkpoint, recipe: Recipe, folder: Path) -> None:
    """Everything but the weights. A Hugging Face folder's own files are kept as they are, unless another file (of
    MindFormers) has the last word on what they say."""
    own = own_files(source)
    _write_tokenizer(source, folder)
    for name in (GENERATION, TEMPLATE) if own else ():
        if (file := source.path / name).is_file():
            shutil.copyfile(file, folder / name)
    if source.chat_template is not None and source.chat_template != chat_template(folder):
        (folder / TEMPLATE).write_text(source.chat_template, encoding="utf-8", newline="")
    if not (folder / GENERATION).exists():
        _write_json(folder / GENERATION, _generation(source))
    _write_json(folder / CONFIG, _config(source, recipe, own))


def tokenizer_folder(source: Checkpoint) -> Path:
    return getattr(base_of(source), "tokenizer_folder", source.path)


def own_files(source: Checkpoint) -> Translated | None:
    """What the source's config.json and generation_config.json say, if they are what it goes by."""
    if not (source.path / CONFIG).is_file():
        return None
    told = described(source.path)
    mine, theirs = (
        replace(each, tie_word_embeddings=False, quantization=None) for each in (source.config, told.config)
    )
    return told if mine == theirs and dict(source.sampling) == dict(told.sampling) else None


def _write_tokenizer(source: Checkpoint, folder: Path) -> None:
    home = tokenizer_folder(source)
    for name in COPIED:
        if (file := home / name).is_file():
            shutil.copyfile(file, folder / name)
    if isinstance(opened := base_of(source), GGUFCheckpoint):
        vocabulary = {key: value for key, value in opened.metadata.items() if key.startswith("tokenizer.ggml.")}
        _write_json(folder / GGUF_VOCABULARY, vocabulary)
    if isinstance(source, MegatronCheckpoint) and source.sentencepiece is not None:
        _write_json(folder / TOKENIZER_CONFIG, tokens.config(source.sentencepiece, source.sentinels))
    if (file := folder / TOKENIZER_CONFIG).is_file() and not (source.path / CONFIG).is_file():
        # readers of other formats look for no template there
        _write_json(file, {key: value for key, value in read_json(file).items() if key != "chat_template"})


def _config(source: Checkpoint, recipe: Recipe, own: Translated | None) -> dict[str, Any]:
    """The source's own, or one made from its configuration, with how the weights are quantized now."""
    theirs = _text_config(source.path / CONFIG)
    stored = theirs.get("dtype") or theirs.get("torch_dtype")
    compute = source.config.dtypes.compute or (str(stored) if stored in get_args(Dtype) else "float32")
    config = theirs if own else hf_config(source.config, source.labels) | ({"dtype": stored} if stored else {})
    beyond = {key: value for key, value in (config.get(OWN) or {}).items() if key != "kv_bits"}
    if not own:
        beyond |= {name: source.sampling[name] for name in OWN_SAMPLING if source.sampling.get(name) is not None}
    if recipe.foreign and recipe.kv_bits:  # ours says it in quantization_config
        beyond["kv_bits"] = recipe.kv_bits
    if source.pooling:
        beyond["pooling"] = source.pooling
    config |= head_config(source.config) | {OWN: beyond}
    quantized = recipe.quantization_config(source.config.tensor_shapes(), compute)
    return {key: value for key, value in config.items() if key != OWN or value} | {"quantization_config": quantized}


def _text_config(path: Path) -> dict[str, Any]:
    """A config.json's keys; of a model that sees pictures too, those of its text."""
    return dict(text_part(read_json(path), str(path))[0]) if path.is_file() else {}


def _generation(source: Checkpoint) -> dict[str, Any]:
    ends = {"eos_token_id": list(source.config.eos_token_ids)} if source.config.eos_token_ids else {}
    given = {key: source.sampling[key] for key in SAMPLING if key in source.sampling}
    if given.get("temperature") == 0:  # which transformers calls otherwise
        return {**ends, "do_sample": False, **{key: given[key] for key in given if key != "temperature"}}
    return {**ends, **({"do_sample": True, **given} if given else {})}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
