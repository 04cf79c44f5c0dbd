"""Everything that reads what others wrote, each with good examples of it and a way to damage them: see fuzz_parsers.py."""

import hashlib
import io
import json
import pickle
import random
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from attacks import COMPLETE, FORBIDDEN, SPELLED
from checkpoints import save_bin, save_gguf, save_hf, save_lit, save_meta, save_tokenizer, tiny_model
from hash_engine import HashEngine, hash_model
from mutations import as_json, as_toml, changed, damaged
from safetensors.numpy import save_file
from t5_models import save_t5_gguf, t5_model
from vocabularies import byte_level_json, small_charsmap, spaced_json, spm_metadata, unigram_json

from llamachat import paths
from llamachat.chat import history, persona
from llamachat.cli import defaults
from llamachat.cli import main as cli
from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.core.tensors import FloatTensor
from llamachat.engines.native.pack import pack
from llamachat.engines.native.packed_file import PackedWeights
from llamachat.errors import FormatError
from llamachat.formats import Checkpoint, hf_config
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.gguf import open_gguf
from llamachat.formats.hf_t5 import hf_t5
from llamachat.formats.lit import read_config
from llamachat.formats.megatron import NAME
from llamachat.formats.megatron_arguments import BESIDE
from llamachat.formats.meta import read_params
from llamachat.formats.mindformers_config import translate
from llamachat.formats.peft import open_peft
from llamachat.formats.pickled import read_pickled
from llamachat.formats.quant_sources import quantization
from llamachat.formats.safetensors_file import read_safetensors
from llamachat.generation import jsonl, snapshot
from llamachat.generation.completer import Completer
from llamachat.generation.completion import AnswerSettings
from llamachat.models import catalog
from llamachat.models.fetch import hub, hub_answers, hub_search
from llamachat.models.sources import HubSource
from llamachat.system.metadata import read_json, read_yaml
from llamachat.system.sanitise import Sanitiser, sanitise
from llamachat.tokenizers import template_worker, templates
from llamachat.tokenizers.jinja import Jinja
from llamachat.tokenizers.open import from_gguf, open_folder
from llamachat.ui.markdown.stream import MarkdownStream

TEXT = "The quick <|im_end|> brown é日本 👩‍🚀\n  fox 123 <s>[INST]"


@dataclass(frozen=True)
class Parser:
    """`spoil` makes one damaged input from a generator; `read` reads it, and raises nothing but LlamachatError."""

    name: str
    share: int  # of the executions, relative to the others': what is cheap is tried more often
    spoil: Callable[[random.Random], Any]
    read: Callable[[Any], None]
    limited: bool = False  # it runs in a process with limits of its own: what takes too long here is stopped there


def of_bytes(seeds: list[bytes]) -> Callable[[random.Random], bytes]:
    return lambda chance: damaged(chance.choice(seeds), chance, seeds)


def of_json(*seeds: Any) -> Callable[[random.Random], bytes]:
    return lambda chance: as_json(changed(chance.choice(seeds), chance), chance)


def of_toml(seed: dict[str, Any]) -> Callable[[random.Random], bytes]:
    def spoil(chance: random.Random) -> bytes:
        text = as_toml(changed(seed, chance) if chance.random() < 0.7 else seed)
        return damaged(text, chance, [text]) if chance.random() < 0.4 else text

    return spoil


def in_file(file: Path, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def through_file(data: bytes) -> None:
        file.write_bytes(data)
        read(file)

    return through_file


def parsers(work: Path, sentencepiece: Path) -> list[Parser]:
    """All of them, with files below `work`. `sentencepiece`: a tokenizer.model of Mistral's."""
    model = tiny_model(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2
    )
    return [
        *_weights(work, model),
        *_configurations(work),
        *_tokenizers(work, sentencepiece),
        *_dialogs(work),
        *_texts(),
        *_own_files(work),
    ]


# Weights --------------------------------------------------------------------------------------------------------------


def _weights(work: Path, model: Any) -> Iterator[Parser]:
    made = {name: work / "seeds" / name for name in ("gguf", "hf", "bin", "meta", "lit")}
    for folder in made.values():
        folder.mkdir(parents=True)
    gguf = save_gguf(model, made["gguf"], metadata={"tokenizer.ggml.tokens": ["a", "b"], "general.name": "x"})
    stacks = save_t5_gguf(t5_model(num_layers=1, num_decoder_layers=1), made["gguf"] / "t5.gguf")
    seeds = [gguf.read_bytes(), stacks.read_bytes()]
    yield Parser("GGUF header", 24, of_bytes(seeds), in_file(work / "a.gguf", _whole(open_gguf)))
    whole = (save_hf(model, made["hf"]) / "model.safetensors").read_bytes()
    yield Parser("safetensors", 24, _safetensors(whole), in_file(work / "a.safetensors", read_safetensors))
    (work / "a").mkdir()
    for file in made["hf"].iterdir():
        (work / "a" / file.name).write_bytes(file.read_bytes())
    yield Parser("Hugging Face folder", 4, _folder(made["hf"]), lambda files: _read_folder(work / "a", files))
    folders = [save_bin(model, made["bin"]), save_lit(model, made["lit"]), save_meta(model, made["meta"])]
    pickles = [
        file.read_bytes() for folder in folders for file in sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])
    ]
    yield _adapter(work / "adapter", open_checkpoint(made["hf"]))
    yield Parser("torch pickle", 4, _pickle(pickles), in_file(work / "a.pth", read_pickled))
    megatron = [_megatron(work / "megatron.pt")]
    yield Parser("Megatron checkpoint", 4, _pickle(megatron), in_file(work / NAME, _whole(open_checkpoint)))


def _megatron(file: Path) -> bytes:
    """A T5 with one layer in each stack, arguments, and states of random numbers."""
    (file.parent / BESIDE).write_text('{"decoder_start_token_id": 1}')
    layer = {"self_attention.linear_qkv": (24, 8), "self_attention.linear_proj": (8, 8), "mlp.linear_fc1": (16, 8),
             "mlp.linear_fc2": (8, 16), "input_layernorm": (8,), "pre_mlp_layernorm": (8,)}  # fmt: skip
    cross = {"cross_attention.linear_q": (8, 8), "cross_attention.linear_kv": (16, 8), "pre_cross_attn_layernorm": (8,),
             "cross_attention.linear_proj": (8, 8)}  # fmt: skip
    shapes = {f"encoder.layers.0.{name}": shape for name, shape in layer.items()}
    shapes |= {f"decoder.layers.0.{name}": shape for name, shape in (layer | cross).items()}
    shapes |= {"encoder.final_layernorm": (8,), "decoder.final_layernorm": (8,)}
    model = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    model |= {f"{name}.bias": torch.zeros(shape[:1]) for name, shape in shapes.items()}
    model |= {"embedding.word_embeddings.weight": torch.ones(5, 8), "lm_head.output_layer.bias": torch.ones(5)}
    arguments = Namespace(
        hidden_size=8, num_attention_heads=2, ffn_hidden_size=16, num_layers=1, padded_vocab_size=5, seed=1, lr=0.1,
        max_position_embeddings=9, position_embedding_type="rope", params_dtype=torch.float32, data_path=["a"],
    )  # fmt: skip
    torch.save({"args": arguments, "model": model, "rng_state": [{"np": np.random.get_state()}]}, file)
    return file.read_bytes()


def _adapter(folder: Path, base: Checkpoint) -> Parser:
    """A PEFT folder, its configuration or its weights damaged; merged where it can be read."""
    folder.mkdir()
    prefix, ones = "base_model.model.model.", np.ones((4, 32), np.float32)
    arrays = {f"{prefix}layers.0.self_attn.{name}.lora_{part}.weight": ones if part == "A" else ones.T.copy()
              for name in ("q_proj", "o_proj") for part in "AB"}  # fmt: skip
    save_file(arrays | {f"{prefix}norm.weight": np.ones(32, np.float32)}, folder / "adapter_model.safetensors")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none", "use_dora": False, "loftq_config": {},
        "rank_pattern": {".*q_proj": 4, "(a|b)+o": 3}, "alpha_pattern": {"o_proj": 2.5}, "init_lora_weights": True,
        "target_parameters": ["x.weight"], "modules_to_save": ["norm"], "layer_replication": None, "megatron_core": "x",
    }  # fmt: skip
    weights = _safetensors(whole)

    def spoil(chance: random.Random) -> tuple[bytes, bytes]:
        if chance.random() < 0.5:
            return as_json(changed(config, chance), chance), whole
        return as_json(config, chance, False), weights(chance)

    def read(files: tuple[bytes, bytes]) -> None:
        for name, data in zip(("adapter_config.json", "adapter_model.safetensors"), files, strict=True):
            (folder / name).write_bytes(data)
        for _ in Changed(base, [(open_peft(folder, base), 1.0)], merge=True).tensors():
            pass

    return Parser("PEFT folder", 6, spoil, read)


def _whole(open_it: Callable[[Path], Any]) -> Callable[[Path], object]:
    return lambda path: sum(1 for _ in open_it(path).tensors())


def _safetensors(whole: bytes) -> Callable[[random.Random], bytes]:
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def spoil(chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return damaged(whole, chance, [whole])
        text = as_json(changed(header, chance), chance)
        return len(text).to_bytes(8, "little") + text + body

    return spoil


def _folder(good: Path) -> Callable[[random.Random], dict[str, bytes]]:
    """A folder's files, of which one or two are damaged; what a config.json may say of quantization included."""
    whole = (good / "model.safetensors").read_bytes()
    config = json.loads((good / "config.json").read_bytes())
    bnb = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    ours = {"quant_method": "llamachat", "scheme": "int4", "group_size": 32}
    configs = [config, config, {**config, "quantization_config": bnb}, {**config, "quantization_config": ours}]
    generation = {"eos_token_id": [2, 3], "temperature": 0.5, "top_k": 5, "do_sample": True}
    index = {
        "weight_map": dict.fromkeys(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]), "model.safetensors")
    }
    weights = _safetensors(whole)

    def spoil(chance: random.Random) -> dict[str, bytes]:
        return {
            "config.json": as_json(
                changed(chance.choice(configs), chance) if chance.random() < 0.5 else config, chance
            ),
            "generation_config.json": as_json(
                changed(generation, chance) if chance.random() < 0.2 else generation, chance, False
            ),
            "model.safetensors.index.json": as_json(changed(index, chance), chance),
            "model.safetensors": weights(chance) if chance.random() < 0.5 else whole,
        }

    return spoil


def _read_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for _ in open_checkpoint(folder).tensors():
        pass


def _pickle(seeds: list[bytes]) -> Callable[[random.Random], bytes]:
    """Archives with another program, whole otherwise; or with any bytes changed."""
    programs = [_program(seed) for seed in seeds]
    programs += [pickle.dumps(each, 2) for each in ({"a": [1, {2: "x"}]}, ["x" * 300], {1: 2})]
    builds = [
        b"}(X\x05\0\0\0itemsX\x01\0\0\0au",
        b"(K\x01K\x02t",
        b"}",
        b"]",
        b"N",
        b"(}N}t",
    ]  # states that BUILD may be given

    def spoil(chance: random.Random) -> bytes:
        seed = chance.choice(seeds)
        if chance.random() < 0.2:
            return damaged(seed, chance, seeds)
        program = chance.choice(programs)
        built = program[:-1] + chance.choice(builds) + b"b."
        return _archive(seed, built if chance.random() < 0.2 else damaged(program, chance, programs))

    return spoil


def _program(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        return next(entries.read(name) for name in entries.namelist() if name.endswith("data.pkl"))


def _archive(seed: bytes, program: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, program if entry.filename.endswith("data.pkl") else old.read(entry))
    return made.getvalue()


# Configurations -------------------------------------------------------------------------------------------------------

HF = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "head_dim": 16,
    "rope_theta": 5e5, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None, "hidden_act": "silu", "use_cache": True,
    "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "bfloat16", "temperature": 1.0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
HF_SEEDS = [
    HF,
    {**HF, "rope_scaling": LLAMA3, "layer_types": ["full_attention"] * 2},
    {**HF, "rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
    {**HF, "rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 32, "attention_factor": 1.2, "truncate": False}},
    {**HF, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    {**HF, "model_type": "mistral", "sliding_window": 64},
    {
        **HF,
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
        "problem_type": "regression",
        "num_labels": 2,
    },
    {
        **{k: v for k, v in HF.items() if k != "attention_bias"},
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": 1,
        "sliding_window": 32,
    },
]
T5 = {"model_type": "t5", "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
      "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "layer_norm_epsilon": 1e-6,
      "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "n_positions": 512, "vocab_size": 320,
      "tie_word_embeddings": False, "decoder_start_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": True,
      "llamachat": {"positions": "rope", "rotary_dim": 4, "rope_factor": 2.0, "norm_kind": "layer",
                    "qkv_bias": True}}  # fmt: skip
META = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 32, "norm_eps": 1e-5,
        "ffn_dim_multiplier": 1.3, "rope_theta": 5e5, "use_scaled_rope": True, "max_seq_len": 512}  # fmt: skip
LIT = {"n_embd": 64, "n_head": 4, "n_layer": 2, "block_size": 128, "vocab_size": 320, "padded_vocab_size": 320}
GENERATION = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "do_sample": True, "num_beams": 1,
              "eos_token_id": 2, "stop_strings": None, "max_length": 100, "min_p": 0.05}  # fmt: skip
QUANTIZED = [
    {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["lm_head"],
    },
    {"quant_method": "llamachat", "scheme": "int8", "group_size": 32, "kv_bits": 8, "skip": ["*.q_proj"]},
]
MINDFORMERS = {
    "seed": 0,
    "run_mode": "predict",
    "load_checkpoint": "weights",
    "context": {"mode": 0, "device_target": "Ascend"},
    "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "llama2_7b"},
    "processor": {"tokenizer": {"type": "LlamaTokenizer", "unk_token": "<unk>"}},
    "model": {
        "arch": {"type": "LlamaForCausalLM"},
        "model_config": {
            "type": "LlamaConfig", "batch_size": 1, "seq_length": 4096, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
            "n_kv_heads": 2, "vocab_size": 320, "multiple_of": 32, "ffn_dim_multiplier": 1.3, "rms_norm_eps": 0.01,
            "compute_dtype": "bfloat16", "layernorm_compute_type": "float32", "softmax_compute_type": "float32",
            "rotary_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "extend_method": "YARN",
            "scaling_factor": {"factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 32, "beta_slow": 1,
                               "mscale": 1, "mscale_all_dim": 1}, "use_past": True,
            "max_decode_length": 512, "block_size": 16, "num_blocks": 512, "is_dynamic": True, "qkv_concat": False,
            "repetition_penalty": 1, "temperature": 0.9, "top_k": 3, "top_p": 0.8, "do_sample": False, "offset": 0,
            "quant_config": {"quant_method": "rtn", "weight_dtype": "int8", "group_size": 0},
        },
    },
}  # fmt: skip


def _configurations(work: Path) -> Iterator[Parser]:
    file = work / "a.json"

    def translated(read: Callable[[dict[str, Any], str], object]) -> Callable[[bytes], None]:
        return in_file(file, lambda path: read(read_json(path), str(path)))

    yield Parser("config.json", 100, of_json(*HF_SEEDS), translated(hf_config.hf))
    yield Parser("config.json of T5", 60, of_json(T5, {**T5, "model_type": "mt5"}), translated(hf_t5))
    yield Parser("params.json", 60, of_json(META), translated(lambda raw, where: read_params(raw, where, 320)))
    yield Parser("lit_config.json", 30, of_json(LIT), translated(read_config))
    yield Parser("generation_config.json", 60, of_json(GENERATION), translated(_generation))
    yield Parser("quantization_config", 40, of_json(*QUANTIZED), translated(quantization))
    yield Parser(
        "MindFormers YAML",
        12,
        _yaml(MINDFORMERS),
        in_file(work / "a.yaml", lambda path: translate(read_yaml(path), str(path))),
    )


def _generation(raw: dict[str, Any], where: str) -> None:
    hf_config.eos_ids(raw, where)
    hf_config.generation(raw, where)


def _yaml(value: Any) -> Callable[[random.Random], bytes]:
    def spoil(chance: random.Random) -> bytes:
        text = json.dumps(changed(value, chance)).encode(errors="surrogatepass")  # which YAML includes
        return damaged(text, chance, [text]) if chance.random() < 0.3 else text

    return spoil


# Tokenizers and templates ---------------------------------------------------------------------------------------------


SIDES = {
    "added_tokens.json": {"<|new|>": 320, "<|im_end|>": 257},
    "special_tokens_map.json": {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "additional_special_tokens": ["<x>"],
    },
    "generation_config.json": {"eos_token_id": [2, 3]},
}


def _tokenizers(work: Path, sentencepiece: Path) -> Iterator[Parser]:
    folder = work / "tokenizer"
    folder.mkdir()
    libraries = [
        byte_level_json("<|im_end|>", "<tool_call>", merges=(("a", "b"),)),
        spaced_json("always", "<s>"),
        unigram_json("</s>", "<extra_id_0>"),
    ]
    texts = [json.loads(library.to_str()) for library in libraries]
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True, "chat_template": "x",
              "added_tokens_decoder": {"320": {"content": "<|x|>", "special": True}}}  # fmt: skip
    save_tokenizer(folder)
    proto = (folder / "tokenizer.model").read_bytes()
    ranks = b"".join(b"%s %d\n" % (_base64(bytes([i])), i) for i in range(256)) + b"%s 256\n" % _base64(b"ab")
    (folder / "tokenizer.model").unlink()

    def read(files: dict[str, bytes]) -> None:
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", *SIDES):
            (folder / name).unlink(missing_ok=True)
            if name in files:
                (folder / name).write_bytes(files[name])
        _used(open_folder(folder))

    def json_files(chance: random.Random) -> dict[str, bytes]:
        return {
            "tokenizer.json": as_json(changed(chance.choice(texts), chance), chance),
            "tokenizer_config.json": _side(chance),
        }

    def proto_files(chance: random.Random) -> dict[str, bytes]:
        return {"tokenizer.model": damaged(proto, chance, [proto]), "tokenizer_config.json": _side(chance)}

    def _side(chance: random.Random) -> bytes:
        return as_json(
            changed(config, chance) if chance.random() < 0.5 else config, chance, spoil=chance.random() < 0.2
        )

    yield Parser("tokenizer.json", 4, json_files, read)
    yield Parser("tokenizer.model, sentencepiece", 6, proto_files, read)
    yield Parser(
        "tokenizer.model, tiktoken", 4, lambda chance: {"tokenizer.model": damaged(ranks, chance, [ranks])}, read
    )
    yield Parser("GGUF vocabulary", 8, _vocabulary(sentencepiece), lambda metadata: _used(from_gguf(metadata)))
    yield Parser("chat template", 2, of_bytes(TEMPLATES), _template, limited=True)


def _base64(data: bytes) -> bytes:
    import base64

    return base64.b64encode(data)


def _used(tokenizer: Any) -> None:
    for text in (TEXT, "", "\ud800"):
        ids = [*tokenizer.encode(text), *tokenizer.encode_skeleton(text)]
        tokenizer.decode(ids)
        assert all(0 <= token < tokenizer.vocab_size for token in ids), "an id outside the vocabulary"


def _vocabulary(sentencepiece: Path) -> Callable[[random.Random], dict[str, Any]]:
    """GGUF keys of all kinds, cut to some 300 tokens."""
    whole, cut = spm_metadata(sentencepiece), 300
    short = {key: value[:cut] if isinstance(value, list) else value for key, value in whole.items()}
    tokens = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 324)]), "ab", "<|im_end|>", "<s>"]
    tokens = list(dict.fromkeys(tokens))
    bpe = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": ["a b"], "token_type": [1] * (len(tokens) - 2) + [3, 3],
           "bos_token_id": 1, "eos_token_id": len(tokens) - 2, "add_bos_token": False}  # fmt: skip
    t5 = {"model": "t5", "precompiled_charsmap": list(small_charsmap()), "remove_extra_whitespaces": True}
    unigram = short | {f"tokenizer.ggml.{key}": value for key, value in t5.items()}
    seeds = [short, unigram, {f"tokenizer.ggml.{key}": value for key, value in bpe.items()}]
    pres = ("llama-bpe", "qwen2", "smollm", "gpt-2", "tekken", "default")

    def spoil(chance: random.Random) -> dict[str, Any]:
        seed = chance.choice(seeds)
        made: dict[Any, Any] = {key: value for key, value in seed.items() if chance.random() < 0.98}
        key = chance.choice(list(made))
        made[key] = changed(made[key], chance)
        if chance.random() < 0.3 and "tokenizer.ggml.pre" in made:
            made["tokenizer.ggml.pre"] = chance.choice(pres)
        return {str(key): value for key, value in made.items()}

    return spoil


TEMPLATES = [
    b"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    b"{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    b"{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content|trim }} [/INST]"
    b"{% elif m.role == 'system' %}"
    b"{{ raise_exception('no system') }}{% else %}{{ ' ' ~ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    b"{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
    b"{%- set ns.n = ns.n + 1 -%}{{ m | tojson }}{{ m.content.split('x')[-1] }}"
    b"{%- generation -%}{{ m.content[ns.n:] }}{%- endgeneration -%}{%- endfor -%}{{ strftime_now('%d') }}",
]


def _template(source: bytes) -> None:
    tokenizer = hash_model().tokenizer
    with _replaced(templates, Limited=InProcess):
        layout = Jinja(tokenizer, source.decode(errors="replace"))
        for dialog in (["user"], ["system", "user", "assistant", "user"]):
            layout.encode([Message(role, f" {role} <|im_end|>") for role in dialog])  # type: ignore[arg-type]
        assert layout.stop_ids


class InProcess:
    """A Limited that has no process and so no limits: the handler's answers, as lines of JSON."""

    alive = True

    def __init__(self, *_: object) -> None:
        self._handler = template_worker.Handler(lambda question: None)

    def post(self, request: Any) -> None:
        self.ask(request)

    def ask(self, request: Any) -> Any:
        try:
            answer = self._handler(json.loads(json.dumps(request)))
        except Exception as error:  # noqa: BLE001 - as limited_worker.py has it
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        return json.loads(json.dumps(answer))


@contextmanager
def _replaced(module: Any, **names: Any) -> Iterator[None]:
    kept = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


# Dialogs, and what is kept of them ------------------------------------------------------------------------------------

RECORDS: list[dict[str, Any]] = [
    {"type": "session", "version": 1, "uid": "x"},
    {"type": "model", "name": "m", "tokenizer": "t"},
    {"type": "system", "text": "Be brief."},
    {"type": "parameters", "values": {"temperature": 0.5, "seed": None, "max_tokens": 12}},
    {"type": "message", "id": 1, "parent": 0, "role": "user", "text": "one"},
    {"type": "message", "id": 2, "parent": 1, "role": "assistant", "text": ""},
    {"type": "piece", "id": 2, "text": "two", "ids": [5, 6]},
    {"type": "end", "id": 2, "reason": "stop", "exact": True, "text": None},
    {"type": "fork", "id": 2},
    {"type": "message", "id": 3, "parent": 2, "role": "user", "text": "three"},
    {"type": "message", "id": 4, "parent": 3, "role": "assistant", "text": ""},
    {"type": "end", "id": 4, "reason": "interrupt", "exact": False, "text": "four"},
    {"type": "active", "id": 2},
    {"type": "drop", "id": 3},
    {"type": "system", "text": None},
]


def _records(chance: random.Random) -> list[bytes]:
    records = list(RECORDS)
    for _ in range(chance.choice((0, 0, 1, 3))):  # in another order, twice, or not at all
        at = chance.randrange(1, len(records))
        records.insert(chance.randrange(1, len(records)), records[at] if chance.random() < 0.3 else records.pop(at))
    if chance.random() < 0.8:
        at = chance.randrange(len(records))
        records[at] = changed(records[at], chance)
    lines = [json.dumps(record).encode() for record in records]
    if chance.random() < 0.2:
        at = chance.randrange(len(lines))
        lines[at] = damaged(lines[at], chance, lines)
    return lines


def _replay(lines: list[bytes]) -> None:
    """What opens is a dialog, whose own records make it again."""
    opened = history.replay(enumerate(lines, 1), "x.jsonl")
    history.mend(opened)
    again = history.replay(enumerate((json.dumps(r).encode() for r in history.everything(opened)), 1), "again")
    assert [(n.id, n.text) for n in again.tree] == [(n.id, n.text) for n in opened.tree] or not opened.uid


def _dialogs(work: Path) -> Iterator[Parser]:
    yield Parser("session records", 110, _records, _replay)
    folder = work / "sessions"
    folder.mkdir()
    whole = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    yield Parser("session file", 40, of_bytes([whole]), lambda data: _session_file(folder, data))
    engine, cache = HashEngine(), Cache(64)
    engine.held = {slot: (slot, slot % 50) for slot in range(20)}
    cache.log = list(range(20))
    kept = work / f"{'0' * 32}.kv"
    with _replaced(paths, cache_dir=lambda: work):
        assert snapshot.save(kept, engine, cache, {"turns": [1, 2]})
    yield Parser("snapshot", 40, _snapshot(kept.read_bytes()), in_file(kept, _restore))


def _session_file(folder: Path, data: bytes) -> None:
    from llamachat.chat import glance
    from llamachat.chat.store import Archive

    (folder / "a.jsonl").write_bytes(data)
    archive = Archive(folder)
    assert archive.saved() and archive.latest() == "a"
    archive.model_of("a")
    assert all(found.name == "a" for found in archive.search("a"))
    assert isinstance(glance.identity(folder / "a.jsonl"), str)
    lines, where = archive.read("a")
    history.mend(history.replay(lines, where))


def _snapshot(whole: bytes) -> Callable[[random.Random], bytes]:
    """Its header changed, with the digest that belongs to that, or any of its bytes."""
    line, _, body = whole.partition(b"\n")
    header = json.loads(line)

    def spoil(chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return damaged(whole, chance, [whole])
        held = changed(header, chance)
        if isinstance(held, dict) and "sha256" in held:
            held["sha256"] = snapshot.digest(held, [memoryview(body)])
        return as_json(held, chance, spoil=chance.random() < 0.1) + b"\n" + body

    return spoil


def _restore(path: Path) -> None:
    """What cannot be used is told, and no error: the tokens are computed anew."""
    told = list[str]()
    assert (snapshot.restore(path, HashEngine(), Cache(64), told.append) is None) == bool(told)
    if told:
        raise FormatError(told[0])


# Text on its way to the screen ----------------------------------------------------------------------------------------

ALPHABET = "\x1b[]P_\\;m0\x07\x9b\r\n\t ax❤\ufe0f\u200d\u200cم\u0651क\u094d\u0301字\U000e0100🏴\U000e0067\U000e007f\u202e\ud800"
MARKDOWN = ["# ", "## ", "- ", "* ", "1. ", "> ", "```py\n", "```", "~~~", "| a | b |\n", "|---|:-:|\n", "**", "_", "`", "[x](y)",
            "<b>", "\n", "\n\n", "    ", "\t", "word ", "日本語", "é", "\\", "&amp;", "http://x.y", "![](z)", "---\n",
            "==="]  # fmt: skip


def _texts() -> Iterator[Parser]:
    attacks = [*COMPLETE.values(), *SPELLED]

    def text(chance: random.Random) -> list[str]:
        parts = [
            chance.choice(attacks)
            if chance.random() < 0.3
            else "".join(chance.choices(ALPHABET, k=chance.randint(1, 12)))
            for _ in range(chance.randint(1, 6))
        ]
        return parts if chance.random() < 0.5 else list("".join(parts))

    def markdown(chance: random.Random) -> list[str]:
        return ["".join(chance.choices(MARKDOWN, k=chance.randint(1, 6))) for _ in range(chance.randint(1, 8))]

    yield Parser("sanitiser", 150, text, _sanitised)
    yield Parser("Markdown", 40, markdown, _markdown)


def _sanitised(pieces: list[str]) -> None:
    sanitiser = Sanitiser()
    shown = "".join(map(sanitiser.feed, pieces)) + sanitiser.finish()
    assert shown == sanitise("".join(pieces)) and sanitise(shown) == shown and not FORBIDDEN.search(shown)


def _markdown(pieces: list[str]) -> None:
    """However it is cut, the blocks are the same."""
    stream, whole = MarkdownStream(), MarkdownStream()
    blocks = [block for piece in pieces for block in stream.feed(piece)] + stream.finish()
    assert blocks == whole.feed("".join(pieces)) + whole.finish()


# Files of the person's own, requests, the hub -------------------------------------------------------------------------

CONFIG = {"temperature": 0.7, "seed": 1, "model": "x", "stop": ["###", "a"], "kv-bits": 8, "system-file": "~/s.txt",
          "overflow": "roll", "verbose": True}  # fmt: skip
MODELS = {
    "default": "a",
    "models": {
        "a": {
            "source": {"hub": "owner/repo", "revision": "main", "file": "x.gguf"}, "format": "gguf", "dialog": "chatml",
            "context": 2048, "sampling": {"temperature": 0.5, "top_k": 3}, "quant_config": {"scheme": "int4", "group_size": 32},
            "shape": {"layers": 1, "hidden": 8, "kv_heads": 1, "head_dim": 4, "vocab": 50, "params": 1000},
        },
        "b": {"source": {"path": "~/x"}, "system": "x"},
        "c": {"source": {"wheel": "a", "version": "1.0", "bytes": 5, "sha256": "0" * 64, "member": "a/b", "member_bytes": 3,
                         "member_sha256": "0" * 64}},
    },
}  # fmt: skip
PERSONA = {
    "system": "Be kind.",
    "model": "x",
    "messages": [["a", "b"], ["c", "d"]],
    "sampling": {"temperature": 0.5, "top_k": 3},
}
REQUESTS: list[Any] = [
    {"prompt": "Name a fruit."},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]},
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
    },
]
RESULTS = b'{"model": "m", "text": "t", "finish_reason": "stop"}\n{"error": "line 2"}\n'
RESULTS += b'{"model": "m", "text": "t", "finish_reason": "interrupt"}\n'
SHA = "0" * 40
ANSWER = {
    "id": "owner/tiny", "sha": SHA, "tags": ["x"], "gated": False, "downloads": 3,
    "lastModified": "2024-01-01T00:00:00.000Z", "gguf": {"total": 9, "architecture": "llama"},
    "siblings": [
        {"rfilename": "config.json", "size": 3, "blobId": SHA},
        {"rfilename": "m-Q4_K_M.gguf", "size": 9, "blobId": SHA, "lfs": {"sha256": "0" * 64, "size": 9, "pointerSize": 134}},
    ],
}  # fmt: skip


def _own_files(work: Path) -> Iterator[Parser]:
    root = typer.main.get_command(cli.app)
    chat = defaults.chat_context(root.make_context("llamachat", [], resilient_parsing=True))
    yield Parser(
        "config.toml", 40, of_toml(CONFIG), in_file(work / "config.toml", lambda file: defaults.read(file, chat))
    )
    yield Parser("models.toml", 12, of_toml(MODELS), in_file(work / "models.toml", catalog.load_catalog))
    yield Parser("persona", 40, of_toml(PERSONA), in_file(work / "p.toml", lambda _: persona.load("p", work)))
    completer = Completer(hash_model(), AnswerSettings(SamplingParams(), frozenset({257})), None, raw=False, echo=False)
    yield Parser("request lines", 70, of_json(*REQUESTS), lambda data: _request(completer, data))
    yield Parser("result lines", 30, of_bytes([RESULTS]), in_file(work / "out.jsonl", _results))
    yield Parser("hub's answer", 30, of_json(ANSWER), _hub_answer)
    yield Parser("packed weights", 30, *_packed_file(work / "x.arena"))


def _request(completer: Completer, data: bytes) -> None:
    error = completer.parsed(data.decode(errors="surrogateescape"), 1)
    if isinstance(error, Exception):
        raise error


def _results(file: Path) -> None:
    jsonl.open_results(file, resume=True)[0].close()


def _hub_answer(data: bytes) -> None:
    """A repository, up to where files would be fetched; and the rows of a search."""
    source = HubSource("owner/tiny")

    def quiet(*_: Any, **__: Any) -> None:
        """Nothing is fetched."""

    with _replaced(hub_search, get_json=lambda *_: [json.loads(data)]):
        hub_search.search("x", 5)
    with _replaced(hub_answers, get_json=lambda *_: json.loads(data)):
        hub.pick(source, quiet)


def _packed_file(file: Path) -> tuple[Callable[[random.Random], bytes], Callable[[bytes], None]]:
    """Its index changed, the trailer that belongs to that behind it; or any bytes."""
    generator = np.random.default_rng(0)
    tensors = {
        "a": FloatTensor(generator.standard_normal((4, 64)).astype(np.float32)),
        "b": FloatTensor(np.ones(8, np.float32)),
    }
    PackedWeights.write(((name, pack(tensor)) for name, tensor in tensors.items()), file)
    whole = file.read_bytes()
    trailer = struct.Struct("<32sQ16s")
    _, length, magic = trailer.unpack(whole[-trailer.size :])
    index = json.loads(whole[-trailer.size - length : -trailer.size])

    def spoil(chance: random.Random) -> bytes:
        if chance.random() < 0.2:
            return damaged(whole, chance, [whole])
        text = as_json(changed(index, chance), chance)
        return whole[: -trailer.size - length] + text + trailer.pack(hashlib.sha256(text).digest(), len(text), magic)

    return spoil, in_file(file, lambda path: PackedWeights.open(path))
