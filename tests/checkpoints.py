"""The same tiny random model in every format that llamachat reads, written the way each project writes it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from gguf_files import write_gguf
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from llamachat.core.tensors import FloatTensor, QuantTensor, Tensor, TensorInfo
from llamachat.engines.shards import shards
from llamachat.formats import Checkpoint
from llamachat.formats.parts import Part, cut, cut_info

State = Mapping[str, torch.Tensor]
VOCAB_SIZE = 320

META = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
LIT = {
    "self_attn.o_proj": "attn.c_proj.weight",
    "mlp.gate_proj": "mlp.c_fc1.weight",
    "mlp.up_proj": "mlp.c_fc2.weight",
    "mlp.down_proj": "mlp.c_proj.weight",
    "input_layernorm": "rms_1.scale",
    "post_attention_layernorm": "rms_2.scale",
}


def tiny_model(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """4 heads of 16, 2 layers, multi-head attention, and the feed-forward size that Meta and lit-llama derive: 256."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones say nothing about a norm's place
            torch.nn.init.normal_(weight, mean=1.0, std=0.1)
    return model.to(dtype).eval()


def arrays(model: LlamaForCausalLM) -> dict[str, NDArray[Any]]:
    """The state dict in numpy, bfloat16 as uint16."""
    return {
        name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, tensor in model.state_dict().items()
    }


def same_coding(packing: QuantTensor | None, tensor: Tensor) -> None:
    """An index's packing is the tensor without its rows; None for a float one."""
    if isinstance(tensor, FloatTensor):
        assert packing is None
        return
    none = tensor.rows(slice(0))
    assert isinstance(packing, QuantTensor)
    assert isinstance(none, QuantTensor)
    assert (packing.group, packing.bits) == (none.group, none.bits)
    for field in ("codes", "scale", "table", "minimum"):
        np.testing.assert_array_equal(getattr(packing, field), getattr(none, field), strict=True)


def same(ours: Tensor, expected: Tensor) -> None:
    """Of one kind, and every bit of it."""
    assert type(ours) is type(expected)
    for field in ("data", "codes", "scale", "minimum", "table", "group", "bits"):
        a, b = getattr(ours, field, None), getattr(expected, field, None)
        assert (a is None) == (b is None), field
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def as_wholes(checkpoint: Checkpoint) -> None:
    """What each rank of 2 and of 4 reads, and any other part, is cut of the wholes, and the index says how it is coded."""
    whole, index = dict(checkpoint.tensors()), checkpoint.index()
    plans = [shards(checkpoint.config, rank, size) for size in (2, 4) for rank in range(size)]
    for parts in (*plans, anywhere(index)):
        found = dict(checkpoint.tensors(parts))
        assert found.keys() == whole.keys() == parts.keys()
        for name, tensor in found.items():
            same(tensor, cut(whole[name], parts[name]))
            info = cut_info(index[name], parts[name])
            assert info.shape == tensor.shape
            same_coding(info.packing, tensor)


def anywhere(index: Mapping[str, TensorInfo]) -> dict[str, Part]:
    """Some rows and columns of each matrix."""
    random, parts = np.random.default_rng(0), dict[str, Part]()
    for name, info in index.items():
        spans = [slice(*sorted(random.choice(length + 1, 2, replace=False).tolist())) for length in info.shape]
        parts[name] = Part(*spans)
    return parts


def save_tokenizer(folder: Path) -> None:
    """A sentencepiece tokenizer.model with Llama's control tokens and byte fallback."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog while many others look on"] * 4),
        model_writer=written,
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())


def save_hf(model: LlamaForCausalLM, folder: Path, sharded: bool = False) -> Path:
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
    return folder


def save_bin(model: LlamaForCausalLM, folder: Path) -> Path:
    """The older way, pytorch_model.bin, with the RoPE buffers that old transformers saved along."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    torch.save(model.state_dict() | buffer, folder / "pytorch_model.bin")
    return folder


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Half-split rows to Meta's interleaved RoPE pairs: row i and row i + d/2 of a head become neighbours."""
    head_dim = weight.shape[0] // heads
    return weight.view(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)


def meta_state(model: LlamaForCausalLM, embedding_axis: int) -> dict[str, tuple[torch.Tensor, int | None]]:
    """Meta's names -> whole tensor, and the axis along which it is split."""
    config, state = model.config, model.state_dict()
    heads = {"attention.wq": config.num_attention_heads, "attention.wk": config.num_key_value_heads}
    result: dict[str, tuple[torch.Tensor, int | None]] = {
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], embedding_axis),
        "norm.weight": (state["model.norm.weight"], None),
        "output.weight": (state["lm_head.weight"], 0),
        "rope.freqs": (torch.ones(config.head_dim // 2), None),
    }
    for layer in range(config.num_hidden_layers):
        for ours, (theirs, axis) in META.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            weight = interleaved(weight, heads[theirs]) if theirs in heads else weight
            result[f"layers.{layer}.{theirs}.weight"] = (weight, axis)
    return result


def save_meta(model: LlamaForCausalLM, folder: Path, shards: int = 1, embedding_axis: int = 1, **params: Any) -> Path:
    """params.json and consolidated.NN.pth; embedding_axis 1 as in Llama 1 and 2, 0 as in Llama 3."""
    folder.mkdir(exist_ok=True)
    config, state = model.config, meta_state(model, embedding_axis)
    for rank in range(shards):
        part = {
            name: whole if axis is None else whole.chunk(shards, axis)[rank].clone()
            for name, (whole, axis) in state.items()
        }
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    values = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": -1,
        "multiple_of": 256,
        "norm_eps": config.rms_norm_eps,
    }
    (folder / "params.json").write_text(json.dumps(values | params))
    save_tokenizer(folder)
    return folder


def lit_state(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    config, state = model.config, model.state_dict()
    result = {
        "lm_head.weight": state["lm_head.weight"],
        "transformer.wte.weight": state["model.embed_tokens.weight"],
        "transformer.ln_f.scale": state["model.norm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"transformer.h.{layer}."
        result |= {theirs + name: state[f"{ours}{part}.weight"] for part, name in LIT.items()}
        query, key, value = (state[f"{ours}self_attn.{part}_proj.weight"] for part in "qkv")
        heads = config.num_attention_heads
        fused = torch.cat([interleaved(query, heads), interleaved(key, heads), value])
        result[f"{theirs}attn.c_attn.weight"] = fused
    return result


def save_lit(model: LlamaForCausalLM, folder: Path) -> Path:
    """lit-llama.pth with its tokenizer one folder up, and the number of heads, which is not one that lit-llama knew."""
    folder.mkdir(exist_ok=True)
    torch.save(lit_state(model), folder / "lit-llama.pth")
    (folder / "lit_config.json").write_text(json.dumps({"n_head": model.config.num_attention_heads}))
    save_tokenizer(folder.parent)
    return folder


def save_gguf(model: LlamaForCausalLM, folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    return write_gguf(folder / "model.gguf", state, model.config.to_dict(), **options)[0]


def quantized(state: State, name: str) -> dict[str, torch.Tensor]:
    """A matrix rounded to nearest the way lit-llama's gptq.int4 stores one: a scale and a whole zero point a row."""
    weight = state[name]
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(weight / scale) + zero, 0, 15).to(torch.uint8)
    module = name.removesuffix(".weight")
    pairs = (codes[:, ::2] | codes[:, 1::2] << 4).t().contiguous().t()  # lit-llama kept it column by column
    return {f"{module}.quant_weight": pairs, f"{module}.scales": scale, f"{module}.zeros": zero}
