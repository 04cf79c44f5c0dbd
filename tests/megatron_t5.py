"""Megatron-core's own T5Model, tiny and random, on the CPU in one process; what that takes is patched here and nowhere else."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it would use on a GPU
    pytest.importorskip("megatron.core", reason="megatron-core 0.9.0 has wheels for Python 3.11 on Linux only")
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.enums import ModelType
    from megatron.core.models.T5 import t5_model, t5_spec
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.torch_layer_norm import WrappedTorchLayerNorm
    from megatron.core.transformer.transformer_config import TransformerConfig

PAD = 0
Masks = tuple[Tensor, Tensor, Tensor]


def forget_distutils() -> None:
    """Something of it imports that, and setuptools, asked for pip by a later test, warns of it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "distutils"]:
        del sys.modules[name]


class Embedding(t5_model.LanguageModelEmbedding):  # type: ignore[misc]
    """Without learned positions it has none, and says so."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if not self.add_position_embedding:
            self.position_embeddings = None


class Norm:
    """Transformer Engine has both kinds; of its own, which need no GPU, Megatron-core has one."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> Any:
        if config.normalization == "RMSNorm":
            return torch.nn.RMSNorm(hidden_size, eps)
        return WrappedTorchLayerNorm(config, hidden_size, eps)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Its one device is the CPU, and dropout, of which there is none, needs no state of a GPU.

    The final norm of its plain layers is Transformer Engine's by mistake; and it asks a model that rotates for its
    learned positions, which that does not have.
    """
    tracker = SimpleNamespace(fork=nullcontext)
    with (
        patch.object(torch.cuda, "current_device", lambda: "cpu"),
        patch.object(tensor_parallel, "get_cuda_rng_tracker", lambda: tracker),
        patch.object(t5_spec, "TENorm", Norm, create=True),
        patch.object(t5_spec, "LNImpl", Norm),
        patch.object(t5_model, "LanguageModelEmbedding", Embedding),
    ):
        yield


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Its groups of processes, each of this one alone."""
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Shape:
    """Of a model; by Megatron's names of arguments."""

    position_embedding_type: str = "learned_absolute"
    untie_embeddings_and_output_weights: bool = False
    rotary_percent: float = 1.0
    rotary_seq_len_interpolation_factor: float | None = None
    rotary_interleaved: bool = False
    swiglu: bool = False
    add_bias_linear: bool = True
    bias_gelu_fusion: bool = False
    kv_channels: int = 8
    hidden_size: int = 32
    num_attention_heads: int = 4
    ffn_hidden_size: int = 48
    encoder_num_layers: int = 2
    decoder_num_layers: int = 3
    padded_vocab_size: int = 40
    max_position_embeddings: int = 48
    norm_epsilon: float = 1e-5
    normalization: str = "LayerNorm"

    def arguments(self, **more: Any) -> Namespace:
        """What Megatron-LM's training script would save beside the weights, and leave to a reader to make sense of."""
        return Namespace(**{**vars(self), **COMMON, "num_layers": self.decoder_num_layers, **more})


COMMON: dict[str, Any] = {  # of some hundred arguments of the script, one of each kind
    **{"apply_layernorm_1p": False, "squared_relu": False, "openai_gelu": False},
    **{"group_query_attention": False, "num_query_groups": 1, "num_experts": None, "qk_layernorm": False, "spec": None},
    **{"rotary_base": 10000, "use_rotary_position_embeddings": False, "add_position_embedding": True, "fp8": None},
    **{"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "context_parallel_size": 1, "world_size": 1},
    **{
        "encoder_tensor_model_parallel_size": 0,
        "virtual_pipeline_model_parallel_size": None,
        "use_legacy_models": False,
    },
    **{"add_qkv_bias": False, "attention_softmax_in_fp32": False, "apply_query_key_layer_scaling": False, "seed": 1234},
    **{
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "lr": 1e-4,
        "lr_warmup_iters": 0,
        "adam_beta1": 0.9,
        "bf16": False,
    },
    **{"train_iters": 100, "save": "/checkpoints", "load": None, "data_path": ["a", "b"], "moe_router_topk": 2},
    **{
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": "/t5.model",
        "vocab_extra_ids": 5,
        "vocab_size": 36,
    },
    **{"encoder_seq_length": 48, "decoder_seq_length": 48, "seq_length": 48, "mask_prob": 0.15, "iteration": 100},
    **{"transformer_impl": "local", "params_dtype": torch.float32, "model_type": ModelType.encoder_and_decoder},
    **{"cp_comm_type": ["p2p"], "attention_backend": AttnMaskType.causal, "wandb_project": "", "log_interval": 100},
}


def config(shape: Shape, layers: int) -> TransformerConfig:
    """As its training script makes it of these arguments."""
    return TransformerConfig(
        num_layers=layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        kv_channels=shape.kv_channels,
        ffn_hidden_size=shape.ffn_hidden_size,
        layernorm_epsilon=shape.norm_epsilon,
        normalization=shape.normalization,
        add_bias_linear=shape.add_bias_linear,
        gated_linear_unit=shape.swiglu,
        activation_func=silu if shape.swiglu else gelu,
        bias_activation_fusion=shape.bias_gelu_fusion,
        rotary_interleaved=shape.rotary_interleaved,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
    )


def build(shape: Shape, seed: int = 0) -> Any:
    """A T5Model of it, every weight of which is random, those that are ones or zeros when made too."""
    encoder, decoder = shape.encoder_num_layers, shape.decoder_num_layers
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")  # of its own old arguments
    model = t5_model.T5Model(
        config(shape, decoder),
        config(shape, encoder),
        t5_spec.get_t5_encoder_with_local_block_spec(encoder),
        t5_spec.get_t5_decoder_with_local_block_spec(decoder),
        vocab_size=shape.padded_vocab_size,
        max_sequence_length=shape.max_position_embeddings,
        share_embeddings_and_output_weights=not shape.untie_embeddings_and_output_weights,
        position_embedding_type=shape.position_embedding_type,
        rotary_percent=shape.rotary_percent,
        seq_len_interpolation_factor=shape.rotary_seq_len_interpolation_factor,
        parallel_output=False,
    )
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=chance)
            weight.copy_(1 + random / 5 if "layernorm.weight" in name else random / 4)
    return model.eval()


def save(folder: Path, model: Any, shape: Shape, **arguments: Any) -> Path:
    """A checkpoint as Megatron-LM's script writes one, with the states of random numbers that it has besides."""
    place = folder / "iter_0000100/mp_rank_00"
    place.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("100")
    numbers = {
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "random_rng_state": (3,),
    }
    content = {
        "args": shape.arguments(**arguments), "checkpoint_version": 3.0, "iteration": 100, "model": model.state_dict(),
        "num_floating_point_operations_so_far": 0, "optimizer": None, "opt_param_scheduler": {"lr": 0.1},
        "rng_state": [numbers],
    }  # fmt: skip
    torch.save(content, place / "model_optim_rng.pt")
    return folder


def padded(rows: list[list[int]]) -> Tensor:
    """[rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def masks(sources: list[list[int]], texts: list[list[int]]) -> Masks:
    """True where something is not seen: padding on either side, and what comes later in the decoder's text."""
    enc, dec = (padded([[1] * len(row) for row in rows]) > 0 for rows in (sources, texts))
    later = torch.ones(dec.shape[1], dec.shape[1], dtype=torch.bool).triu(1)
    seen = enc[:, :, None] & enc[:, None], dec[:, :, None] & dec[:, None] & ~later, dec[:, :, None] & enc[:, None]
    return ~seen[0], ~seen[1], ~seen[2]


@torch.no_grad()
def logits(model: Any, sources: list[list[int]], texts: list[list[int]]) -> list[Tensor]:
    """Of each text's tokens behind its source, all in one padded batch."""
    made = model(padded(sources), padded(texts), *masks(sources, texts))
    return [rows[: len(row)] for rows, row in zip(made, texts, strict=True)]


def greedy(model: Any, source: list[int], start: int, end: int, tokens: int) -> list[int]:
    """What it answers, run anew for every token, as it keeps no keys and values."""
    text = [start]
    for _ in range(tokens):
        best = int(logits(model, [source], [text])[0][-1].argmax())
        text.append(best)
        if best == end:
            break
    return text[1:]
