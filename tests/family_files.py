"""Tiny random models of every family as transformers saves them, and as llama.cpp's converter writes them.

CASES: what a family's class is called there, its settings, and the changes under which a GGUF file can say the same (llama.cpp
knows fewer ways); None: no file of that kind is such a model's.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_files import add_value, interleaved
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from llamachat.core.spec import ModelSpec
from llamachat.core.tensors import Tensor
from llamachat.formats.detect import open_checkpoint

FULL, SLIDING = "full_attention", "sliding_attention"
TYPES = [SLIDING, SLIDING, FULL, SLIDING]
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
WINDOWS = {"sliding_window": 7, "layer_types": TYPES}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16,
        "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
BASE = ModelSpec(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-6,
)  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 97, 40).tolist()
Settings = dict[str, Any]
CASES: dict[str, tuple[str, Settings, tuple[str, Settings] | None]] = {
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 32}, ("llama", {"sliding_window": None})),
    "qwen3": ("Qwen3", {}, ("qwen3", {})),
    "gemma2": (
        "Gemma2",
        WINDOWS
        | {
            "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
            "attn_implementation": "eager", "tie_word_embeddings": True,
        },
        ("gemma2", {"query_pre_attn_scalar": 16}),
    ),
    "gemma3": (
        "Gemma3Text",
        WINDOWS
        | {
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        ("gemma3", {"query_pre_attn_scalar": 16}),
    ),
    "ministral3": (
        "Ministral3",
        {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}},
        ("mistral3", {}),
    ),
    "phi3": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": PLAIN
            | {
                "rope_type": "longrope", "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16,
                "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0],
            },
        },
        ("phi3", {}),
    ),
    "smollm3": (
        "SmolLM3",
        {"use_sliding_window": True, "sliding_window": 7, "rope_parameters": PLAIN},
        ("smollm3", {"use_sliding_window": False, "sliding_window": None}),
    ),
    "olmo2": ("Olmo2", {}, ("olmo2", {})),
    "olmo3": (
        "Olmo3", WINDOWS | {"rope_parameters": {FULL: YARN, SLIDING: PLAIN}}, ("olmo2", {}),
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3, "logits_scaling": 4.0},
        ("granite", {}),
    ),
    "glm4": ("Glm4", {}, ("glm4", {})),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}, ("llama", {})),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": False,
            "mlp_only_layers": [1],
        },
        ("qwen3moe", {"norm_topk_prob": True, "mlp_only_layers": []}),
    ),
    "gpt-oss": (
        "GptOss",
        WINDOWS
        | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager",
            "rope_parameters": YARN | {"truncate": False},
        },
        ("gpt-oss", {"rope_parameters": YARN | {"truncate": True}}),
    ),
}  # fmt: skip
INTERLEAVED = ("llama", "granite", "smollm3", "mistral3")  # which the converter reorders; glm4's rows are so already


def model_of(case: str, **changes: Any) -> Any:
    """With norms, biases and sinks that say something of their place."""
    kind, settings, _ = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | settings | changes))
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith(("sinks", "bias")):
            offset = "bias" in name or kind.startswith("Gemma")  # Gemma's norms are stored less 1
            torch.nn.init.normal_(weight, mean=float(not offset), std=0.3)
    return model


def case_of(case: str) -> tuple[ModelSpec, dict[str, Tensor], NDArray[np.float32]]:
    """Spec and weights as the folder that transformers writes is read, and the logits that are right."""
    model = model_of(case)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        checkpoint = open_checkpoint(Path(folder))
        return checkpoint.config, dict(checkpoint.tensors()), logits(model, IDS)


def logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        rows: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return rows


def save_family_gguf(model: Any, arch: str, path: Path, experts: str = "F32", **further: Any) -> Path:
    """All in F32 but the experts' matrices; names by the gguf package's own map."""
    config, number = model.config, next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, writer = gguf.get_tensor_name_map(number, config.num_hidden_layers), gguf.GGUFWriter(path, arch)
    for key, value in (metadata(config, arch) | {f"{arch}.{key}": value for key, value in further.items()}).items():
        add_value(writer, key, value)
    for name, data in converted(model, arch):
        stem, dot, kind = name.rpartition(".")
        found = "cls.output" if stem == "score" else names.get_name(stem) or f"blk.{name.split('.')[2]}.attn_sinks"
        stack = gguf.GGMLQuantizationType[experts if data.ndim == 3 else "F32"]
        writer.add_tensor(
            f"{found}{dot}{kind}", gguf.quants.quantize(np.ascontiguousarray(data), stack), raw_dtype=stack
        )
    rope = getattr(config, "rope_parameters", {})
    for length in ("long", "short") if "long_factor" in rope else ():
        writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(model: Any, arch: str) -> list[tuple[str, NDArray[np.float32]]]:
    """transformers' tensors as the converter passes them on: stacks of gate and up apart, rows reordered, norms with their 1."""
    found = list[tuple[str, NDArray[np.float32]]]()
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if name == "lm_head.weight" and tied:
            continue
        if "gemma" in arch and "norm" in name:
            data = data + np.float32(1)
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        if arch in INTERLEAVED and (module := name.split(".")[-2]) in heads:
            data = interleaved(data, heads[module])
        found += expert_stacks(name, data, arch) if ".experts." in name else [(_named(name), data)]
    return found


def _named(name: str) -> str:
    return f"{name}.weight" if name.endswith("sinks") else name


def expert_stacks(name: str, data: NDArray[np.float32], arch: str) -> list[tuple[str, NDArray[np.float32]]]:
    """[E, out, in]; gpt-oss has [E, in, out], with gate and up in turn."""
    kind = "bias" if name.endswith("_bias") else "weight"
    prefix, _, module = name.removesuffix("_bias").rpartition(".")
    if arch == "gpt-oss" and kind == "weight":
        data = data.swapaxes(1, 2)
    if not module.startswith("gate_up"):
        return [(f"{prefix}.{module}.{kind}", data)]
    gate, up = (data[:, 0::2], data[:, 1::2]) if arch == "gpt-oss" else np.split(data, 2, 1)
    return [(f"{prefix}.gate_proj.{kind}", gate), (f"{prefix}.up_proj.{kind}", up)]


def metadata(config: Any, arch: str) -> dict[str, Any]:
    """The keys that the converter of this architecture writes, and what llama.cpp needs of a file without a vocabulary."""
    ropes = config.rope_parameters
    rope, head_dim = ropes.get(FULL, ropes), getattr(config, "head_dim", 16)
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
        "rope.freq_base": rope["rope_theta"],
        "vocab_size": config.vocab_size,
    }
    if FULL in ropes:
        own["rope.freq_base_swa"] = ropes[SLIDING]["rope_theta"]
    own |= _scaling(rope, config) | _windows(config) | _experts(config) | _scalars(config, arch)
    return {f"{arch}.{key}": value for key, value in own.items()} | {"tokenizer.ggml.model": "no_vocab"}


def _scaling(rope: Settings, config: Any) -> Settings:
    kind, original = rope["rope_type"], rope.get("original_max_position_embeddings")
    if kind == "default":
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    found = {"rope.scaling.original_context_length": original}
    if kind == "longrope":  # whose type the converter leaves out
        stretch = np.log(config.max_position_embeddings / original) / np.log(original)
        return found | {"rope.scaling.attn_factor": float(np.sqrt(1 + stretch))}
    found |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    found |= {f"rope.scaling.yarn_{key}": rope[key] for key in ("beta_fast", "beta_slow")}
    if beta := rope.get("llama_4_scaling_beta"):
        found |= {"rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"], "attention.temperature_scale": beta}
    return found


def _windows(config: Any) -> Settings:
    if not getattr(config, "sliding_window", None):
        return {}
    pattern = [kind == SLIDING for kind in config.layer_types]
    return {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": pattern}


def _experts(config: Any) -> Settings:
    if not (count := getattr(config, "num_local_experts", None)):
        return {}
    width = getattr(config, "moe_intermediate_size", config.intermediate_size)
    return {"expert_count": count, "expert_used_count": config.num_experts_per_tok, "expert_feed_forward_length": width}


def _scalars(config: Any, arch: str) -> Settings:
    if arch == "granite":
        names = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale")
        theirs = ("logits_scaling", "residual_multiplier", "embedding_multiplier", "attention_multiplier")
        return {name: getattr(config, their) for name, their in zip(names, theirs, strict=True)}
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    return {name: getattr(config, name) for name in names if getattr(config, name, None)}


def microscaled(folder: Path) -> dict[str, Any]:
    """gpt-oss's own form of the experts' matrices, random, written over those that transformers saved; what they stand for."""
    arrays, random = load_file(folder / "model.safetensors"), np.random.default_rng(3)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    meant = dict[str, Any]()
    for name in [name for name in arrays if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        stack, width, height = arrays.pop(name).shape
        blocks = random.integers(0, 256, (stack, height, width // 32, 16), np.uint8)
        scales = random.integers(122, 125, (stack, height, width // 32), np.uint8)
        arrays |= {f"{name}_blocks": torch.from_numpy(blocks), f"{name}_scales": torch.from_numpy(scales)}
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        both = np.stack((blocks & 15, blocks >> 4), -1).reshape(*scales.shape, 32)
        numbers = np.where(both & 8, -1, 1) * values[both & 7] * np.exp2(scales.astype(np.float32) - 127)[..., None]
        meant[name] = numbers.reshape(stack, height, width).swapaxes(1, 2).astype(np.float32)
    save_file(arrays, folder / "model.safetensors")
    return meant
