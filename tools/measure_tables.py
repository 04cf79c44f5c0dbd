"""What the native engine's rounding costs where weights stand for NF4's or FP4's values: python tools/measure_tables.py FILE.gguf

A model whose weights have outliers (some columns thirty times the others, the norm before them as much less) is coded anew in
each of these types. Printed is the KL divergence, in nats a token, between exact arithmetic on the codes and (a) the same with
activations rounded as the engine rounds them, which is the least it can cost, (b) the engine.
"""

import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamachat.core.cache import CacheStep
from llamachat.core.tensors import CODEBOOKS, Array, FloatTensor, QuantTensor, Tensor, dequantize, pack_nibbles
from llamachat.engines.native.engine import NativeEngine
from llamachat.formats.detect import open_checkpoint

WINDOW, WINDOWS = 512, 6
AFTER_NORM = {
    "input_layernorm": [f"self_attn.{name}_proj" for name in "qkv"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}


def with_outliers(weights: dict[str, Array], layers: int) -> dict[str, Array]:
    """The same function: what a column gains, the norm before it loses."""
    rng = np.random.default_rng(0)
    for layer in range(layers):
        for norm, matrices in AFTER_NORM.items():
            vector = weights[f"model.layers.{layer}.{norm}.weight"]
            columns, factor = rng.choice(len(vector), 6, replace=False), rng.uniform(10, 40, 6).astype(np.float32)
            vector[columns] /= factor
            for name in matrices:
                weights[f"model.layers.{layer}.{name}.weight"][:, columns] *= factor
    return weights


def coded(weights: Array, table: Array) -> QuantTensor:
    """Each weight as the nearest entry times the largest of its 64."""
    groups = weights.reshape(len(weights), -1, 64)
    largest = np.abs(groups).max(-1)
    nearest = np.abs((groups / np.maximum(largest, 1e-30)[..., None])[..., None] - table).argmin(-1)
    return QuantTensor(pack_nibbles(nearest.astype(np.uint8).reshape(weights.shape)), largest, 64, 4, table)


def rounded(steps: int) -> Any:
    """A hook that rounds activations to so many steps of 1/127 of the largest of 32."""

    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = inputs
        grouped = x.unflatten(-1, (-1, 32))
        step = grouped.abs().amax(-1, keepdim=True) / 127 / steps
        return ((torch.round(grouped / step.clamp_min(1e-30)) * step).flatten(-2),)

    return hook


def exact(config: Any, tensors: dict[str, Tensor], ids: list[int], rounds: bool) -> Array:
    """Logits of transformers in float32, with activations rounded as the native engine's if so wished."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads, head_dim=config.head_dim, rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta, tie_word_embeddings=config.tie_word_embeddings, max_position_embeddings=2048,
        )
    ).eval()  # fmt: skip
    state = {name: torch.from_numpy(dequantize(tensor).copy()) for name, tensor in tensors.items()}
    model.load_state_dict({"lm_head.weight": state["model.embed_tokens.weight"]} | state)
    for name, module in model.named_modules() if rounds else ():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":  # a float head's activations are not rounded
            module.register_forward_pre_hook(rounded(256 if name.endswith(("q_proj", "k_proj", "v_proj")) else 1))
    with torch.no_grad():
        windows = torch.tensor(ids).view(WINDOWS, WINDOW)
        return np.concatenate([model(window[None]).logits[0].numpy() for window in windows])


def native(config: Any, tensors: dict[str, Tensor], ids: list[int]) -> Array:
    engine = NativeEngine.build(config, tensors.items(), slots=WINDOW, kv="float32")
    index = np.arange(WINDOW, dtype=np.int64)
    step = CacheStep(index, index, (range(WINDOW),))
    return np.concatenate([engine.forward(ids[i : i + WINDOW], step, "all") for i in range(0, len(ids), WINDOW)])


def divergence(reference: Array, other: Array) -> float:
    """Mean KL divergence of rows of logits, in nats."""
    first, second = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (reference, other))
    return float((first.exp() * (first - second)).sum(-1).mean())


def main(file: str) -> None:
    checkpoint = open_checkpoint(Path(file))
    config = checkpoint.config
    ids = checkpoint.tokenizer().encode("\n".join(pydoc_data.topics.topics.values()))[5000 : 5000 + WINDOW * WINDOWS]
    weights = {name: dequantize(tensor).copy() for name, tensor in checkpoint.tensors()}
    weights = with_outliers(weights, config.num_hidden_layers)
    for name, values in CODEBOOKS.items():
        table = np.array(values, np.float32)
        tensors: dict[str, Tensor] = {
            key: coded(value, table) if key.endswith("_proj.weight") else FloatTensor(value)
            for key, value in weights.items()
        }
        reference = exact(config, tensors, ids, rounds=False)
        least = divergence(reference, exact(config, tensors, ids, rounds=True))
        ours = divergence(reference, native(config, tensors, ids))
        print(f"{name}: exact table {least:.5f}, native engine {ours:.5f}, {ours / least:.3f} x")


if __name__ == "__main__":
    main(sys.argv[1])
