"""Meta's architecture with fairscale's layers, as Meta's reference builds it, beside ours on the same shards and in the same two
processes: `torchrun --nproc_per_node 2 tools/measure_fairscale.py [FOLDER]`.

Without FOLDER (consolidated.00.pth, consolidated.01.pth, params.json, tokenizer.model) on tiny random models: Llama 2's, whose
embedding is split by columns, and Llama 3's, by rows and with fewer heads of keys. Needs `pip install fairscale==0.4.13`.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fairscale.nn.model_parallel.initialize import initialize_model_parallel
from fairscale.nn.model_parallel.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn
from torch.distributed import PrefixStore
from torch.nn.functional import scaled_dot_product_attention, silu

from llamachat.core.cache import Cache
from llamachat.core.spec import ModelSpec
from llamachat.engines.torch.links import ProcessLinks
from llamachat.engines.torch.ranks import Tensors, follow, load
from llamachat.formats.detect import open_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

IDS = np.random.default_rng(0).integers(3, 320, 48).tolist()


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x: Tensor, theta: float) -> Tensor:
    """[T, heads, D], in interleaved pairs."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None] * theta ** -(torch.arange(half).double() / half)
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], half, 2))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, params: dict[str, Any], size: int) -> None:
        super().__init__()
        dim, heads = params["dim"], params["n_heads"]
        groups, self.head = params.get("n_kv_heads") or heads, dim // heads
        self.heads, self.groups, self.theta = heads // size, groups // size, params.get("rope_theta", 10000.0)
        self.wq = ColumnParallelLinear(dim, heads * self.head, bias=False, gather_output=False)
        self.wk = ColumnParallelLinear(dim, groups * self.head, bias=False, gather_output=False)
        self.wv = ColumnParallelLinear(dim, groups * self.head, bias=False, gather_output=False)
        self.wo = RowParallelLinear(heads * self.head, dim, bias=False, input_is_parallel=True)

    def forward(self, x: Tensor) -> Tensor:
        q = rotated(self.wq(x).view(len(x), self.heads, self.head), self.theta)
        k = rotated(self.wk(x).view(len(x), self.groups, self.head), self.theta)
        v = self.wv(x).view(len(x), self.groups, self.head)
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        out = scaled_dot_product_attention(*(each.transpose(0, 1) for each in (q, k, v)), is_causal=True)
        return self.wo(out.transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(dim, inner, bias=False, gather_output=False)
        self.w2 = RowParallelLinear(inner, dim, bias=False, input_is_parallel=True)
        self.w3 = ColumnParallelLinear(dim, inner, bias=False, gather_output=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, params: dict[str, Any], inner: int, size: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(params, size), FeedForward(params["dim"], inner)
        self.attention_norm, self.ffn_norm = (Norm(params["dim"], params["norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """Names as in Meta's checkpoints."""

    def __init__(self, params: dict[str, Any], vocabulary: int, inner: int, by_rows: bool, size: int) -> None:
        super().__init__()
        dim = params["dim"]
        self.tok_embeddings = (VocabParallelEmbedding if by_rows else ParallelEmbedding)(vocabulary, dim)
        self.layers = nn.ModuleList([Block(params, inner, size) for _ in range(params["n_layers"])])
        self.norm = Norm(dim, params["norm_eps"])
        self.output = ColumnParallelLinear(dim, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


@torch.inference_mode()
def theirs(folder: Path, ids: list[int]) -> Tensor:
    """The logits of fairscale's layers, each rank with its own file."""
    rank, size = dist.get_rank(), dist.get_world_size()
    params = json.loads((folder / "params.json").read_text())
    state = torch.load(folder / f"consolidated.{rank:02}.pth", mmap=True, weights_only=True)
    vocabulary = len(state["output.weight"]) * size
    by_rows = state["tok_embeddings.weight"].shape[1] == params["dim"]
    model = Transformer(params, vocabulary, len(state["layers.0.feed_forward.w1.weight"]) * size, by_rows, size)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.missing_keys and {*missing.unexpected_keys} <= {"rope.freqs"}, missing
    return model.float()(torch.tensor(ids))


def folders(given: list[str]) -> list[Path]:
    """Those given, or tiny ones, which rank 0 makes."""
    if given:
        return [*map(Path, given)]
    from checkpoints import save_meta, tiny_model

    told: list[Any] = [tempfile.mkdtemp()]
    dist.broadcast_object_list(told, 0)
    top = Path(told[0])
    if dist.get_rank() == 0:
        save_meta(tiny_model(), top / "llama2", shards=2)
        save_meta(tiny_model(num_key_value_heads=2, rope_theta=500000.0), top / "llama3", 2, 0, rope_theta=500000.0)
    dist.barrier()
    return [top / "llama2", top / "llama3"]


def opened(told: str) -> tuple[ModelSpec, Tensors]:
    checkpoint = open_checkpoint(Path(told))
    return checkpoint.config, checkpoint.tensors


def ours(folder: Path, ids: list[int], links: ProcessLinks) -> Tensor | None:
    """Our logits, at rank 0."""
    if links.rank:
        follow(links, "cpu", opened)
        return None
    config, tensors = opened(str(folder))
    settings = {"slots": len(ids), "dtype": "float32", "device": "cpu", "threads": 1}
    engine = load(config, tensors, str(folder), settings, links, Torchrun())
    logits = torch.from_numpy(engine.forward(ids, Cache(len(ids)).plan(len(ids)), "all"))
    engine.close()
    return logits


class Torchrun:
    """Who ends the other processes."""

    def failure(self) -> str:
        return "a process has ended"

    def first_ended(self) -> None:
        return None

    def end(self) -> None:
        pass


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    initialize_model_parallel(dist.get_world_size())
    links = ProcessLinks(PrefixStore("ours", dist.distributed_c10d._get_default_store()), dist.get_rank(), 2, "cpu")
    for folder in folders(sys.argv[1:]):
        right, found = theirs(folder, IDS), ours(folder, IDS, links)
        if found is not None:
            worst, largest = (found - right).abs().max(), right.abs().max()
            print(f"{folder.name}: {len(IDS)} tokens, logits up to {largest:.1f}, the largest difference {worst:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
