"""Hugging Face folders: config.json, generation_config.json, safetensors or pickled weights in one file or shards.

Also reads the kinds of quantized weights that such folders hold: see prequantized/schemes.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamachat.checks import shown
from llamachat.core.spec import HEADS, HeadKind, ModelSpec
from llamachat.core.tensors import Array
from llamachat.errors import FormatError, reader
from llamachat.families.family import Layout
from llamachat.families.t5 import MODEL_TYPES, STACKS, UNUSED, EncoderDecoderSpec, our_name
from llamachat.formats import hf_config
from llamachat.formats.hf_t5 import hf_t5
from llamachat.formats.labels import classifying
from llamachat.formats.layout import placed
from llamachat.formats.lazy import LazyCheckpoint, LazyTensor, float_entry, listed, matched
from llamachat.formats.pickled import read_pickled
from llamachat.formats.pooling import of_folder
from llamachat.formats.prequantized.schemes import OURS, STORAGES
from llamachat.formats.safetensors_file import read_safetensors
from llamachat.formats.translated import Translated
from llamachat.system.metadata import Fields, naming, read_json, read_text

Reader = Callable[[Path], dict[str, Array]]
WEIGHTS: tuple[tuple[str, Reader], ...] = (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickled))
CONFIG_READERS = dict.fromkeys(hf_config.KNOWN, hf_config.hf) | dict.fromkeys(MODEL_TYPES, hf_t5)  # by model_type
EMBEDDING = "model.embed_tokens.weight"
CONFIGS = ("config.json", "generation_config.json")
TEMPLATE_LIMIT = 1 << 20  # bytes; the longest in use have some 20,000


@reader
def open_hf(folder: Path) -> LazyCheckpoint:
    """The model in this folder. Raises FormatError or ConfigError for what is damaged, missing or not supported."""
    told = described(folder)
    arrays, weights = _weights(folder)
    if isinstance(told.config, EncoderDecoderSpec):
        arrays = _of_stacks(arrays, folder)
    else:
        arrays = of_text(arrays)
        if told.config.head == "next_token" and (head := classifying(arrays)):
            told = described(folder, head)
        arrays = {_called(name, told.config.head): array for name, array in _below_model(arrays).items()}
    config = _with_head(told.config, arrays)
    entries = matched(_entries(config, arrays, folder, told.layout), config, folder)
    files = [folder / name for name in CONFIGS if (folder / name).is_file()] + weights
    template = chat_template(folder)
    return LazyCheckpoint(
        folder,
        config,
        entries,
        folder,
        told.sampling,
        told.ignored,
        tuple(files),
        template,
        told.pooling,
        told.labels,
        layout=told.layout,
    )


def described(folder: Path, head: HeadKind | None = None) -> Translated:
    """What config.json and generation_config.json say, before the weights are seen; `sampling` has max_length too.

    generation_config.json adds the ids that end a turn (Llama 3's <|eot_id|>) and overrides sampling defaults.
    """
    raw, where = read_json(folder / "config.json"), str(folder / "config.json")
    read = Fields(raw, where).choice("model_type", CONFIG_READERS)
    told = read(raw, where) if head is None else hf_config.hf(raw, where, head)
    length = {"max_length": told.max_length} if told.max_length else {}
    told = replace(told, sampling={**told.sampling, **length}, pooling=told.pooling or of_folder(folder))
    path = folder / "generation_config.json"
    if not path.is_file():
        return told
    raw, where = read_json(path), str(path)
    eos = dict.fromkeys((*told.config.eos_token_ids, *hf_config.eos_ids(raw, where)))
    config = replace(told.config, eos_token_ids=tuple(eos))
    if isinstance(config, EncoderDecoderSpec) and "decoder_start_token_id" in raw:
        with naming(where):
            config = replace(config, decoder_start_token_id=Fields(raw, where).whole("decoder_start_token_id"))
    return replace(told, config=config, sampling={**told.sampling, **hf_config.generation(raw, where)})


def _below_model(arrays: dict[str, Array]) -> dict[str, Array]:
    """A class without a head, saved by itself, calls its own parts as nobody else does: layers.0 for model.layers.0."""
    if "embed_tokens.weight" not in arrays:
        return arrays
    heads = tuple(f"{name}." for name, _ in HEADS.values() if name)
    return {name if name.startswith(heads) else f"model.{name}": array for name, array in arrays.items()}


def _called(name: str, head: HeadKind) -> str:
    """Our name of a tensor: some of transformers' classes with such heads call the model below them, or the head, apart."""
    if head == "span" and name.startswith("transformer."):
        return "model." + name.removeprefix("transformer.")
    if head == "token_labels" and name.startswith("classifier."):
        return "score." + name.removeprefix("classifier.")
    return name


def _with_head(config: ModelSpec, arrays: dict[str, Array]) -> ModelSpec:
    """A tied model's file may repeat the head, or hold the one matrix under its name.

    A copy is dropped, and one that differs unties the model, as transformers does; so does one that is packed. To be compared
    both are read whole, by each process.
    """
    head, embedding = arrays.get("lm_head.weight"), arrays.get(EMBEDDING)
    if not config.tied_head:
        return config
    if head is None:
        packed = any(name.startswith("lm_head.weight.") for name in arrays)
        return replace(config, tie_word_embeddings=False) if packed else config
    if embedding is None:
        arrays[EMBEDDING] = arrays.pop("lm_head.weight")
        return config
    if head.dtype == embedding.dtype and np.array_equal(head, embedding):
        del arrays["lm_head.weight"]
        return config
    return replace(config, tie_word_embeddings=False)


def of_text(arrays: dict[str, Array]) -> dict[str, Array]:
    """Those of the text model alone, where pictures have weights too and its own are called apart."""
    prefixes = {"model.language_model.": "model.", "language_model.": ""}
    prefixes |= {f"{name}.": f"{name}." for name, _ in HEADS.values() if name}
    if not any(name.startswith(tuple(prefixes)[:2]) for name in arrays):
        return arrays
    found = {name: prefix for name in arrays for prefix in prefixes if name.startswith(prefix)}
    return {prefixes[prefix] + name.removeprefix(prefix): arrays[name] for name, prefix in found.items()}


def _of_stacks(arrays: dict[str, Array], folder: Path) -> dict[str, Array]:
    """T5's by our names. Each stack may have its own copy of the embedding, which is then left out."""
    named = {our_name(name): array for name, array in arrays.items() if name not in UNUSED}
    if len(named) < sum(name not in UNUSED for name in arrays):
        raise FormatError(f"{folder} names a tensor in two ways", "it is not clear which is meant")
    copies = [name for stack in STACKS if (name := f"{stack}.embed_tokens.weight") in named]
    for name in copies:
        shared = named.setdefault(EMBEDDING, named[name])
        if named[name] is shared or (named[name].dtype == shared.dtype and np.array_equal(named[name], shared)):
            del named[name]
    return named


def _entries(config: ModelSpec, arrays: Mapping[str, Array], folder: Path, layout: Layout) -> dict[str, LazyTensor]:
    """By our names. What we wrote ourselves is laid out as here, whatever its family."""
    if config.quantization is None:
        entries = {name: float_entry(name, array) for name, array in arrays.items()}
    else:
        storage = STORAGES[config.quantization.scheme]
        entries = storage.entries(arrays, str(folder))
        layout = Layout() if storage is OURS else layout
    return entries if layout == Layout() else placed(entries, layout, config)


def _weights(folder: Path) -> tuple[dict[str, Array], list[Path]]:
    """All tensors of the folder, in transformers' order of preference, and the files that they are from.

    Old files' constant RoPE tables are left out.
    """
    for name, read in WEIGHTS:
        if (folder / name).is_file():
            arrays, files = read(folder / name), [folder / name]
        elif (folder / f"{name}.index.json").is_file():
            arrays, files = _sharded(folder, folder / f"{name}.index.json", read)
        else:
            continue
        return {name: array for name, array in arrays.items() if not name.endswith("rotary_emb.inv_freq")}, files
    names = " nor ".join(f"{name}[.index.json]" for name, _ in WEIGHTS)
    raise FormatError(f"{folder} has neither {names}", "there are no weights", "fetch its files again")


def _sharded(folder: Path, index: Path, read: Reader) -> tuple[dict[str, Array], list[Path]]:
    listing = read_json(index).get("weight_map")
    if not isinstance(listing, dict) or not all(isinstance(file, str) for file in listing.values()):
        raise FormatError(f"{index} has no usable weight_map")
    arrays: dict[str, Array] = {}
    files = sorted(set(listing.values()))
    for file in files:
        shard = read(_shard(folder, file, index))
        expected = {name for name, home in listing.items() if home == file}
        if wrong := sorted(expected ^ shard.keys()):
            raise FormatError(
                f"{shown(file)} and {index} disagree about {listed(wrong)}", "they do not belong together"
            )
        arrays |= shard
    return arrays, [index, *(folder / file for file in files)]


def _shard(folder: Path, file: str, index: Path) -> Path:
    if Path(file).name != file or "\\" in file or "\0" in file:
        raise FormatError(f"{index} names {shown(file)}", "shards must lie beside their index")
    if not (folder / file).is_file():
        raise FormatError(f"{folder} lacks the shard {shown(file)}", "the model is incomplete", "fetch its files again")
    return folder / file


def chat_template(folder: Path) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's chat_template: one template, or named ones with a "default"."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja", TEMPLATE_LIMIT)
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise FormatError(f"chat_template in {path} is a {type(template).__name__}", "a Jinja template is needed")
    return template
