"""Megatron-LM's checkpoints of megatron-core's T5Model: a state dict with the arguments of its training script.

A folder has a latest_checkpointed_iteration.txt, which names iter_0000123 or release, and in there a file for each rank. Only
what one rank saved is read. What the arguments do not say stands beside, in a megatron_config.json (see Beside).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llamachat.checks import shown
from llamachat.core.tensors import Array, TensorInfo, half_split_rows
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import FormatError, reader
from llamachat.families.t5 import ABSOLUTE, STACKS, EncoderDecoderSpec
from llamachat.formats.lazy import LazyCheckpoint, LazyTensor, float_entry, matched, reordered
from llamachat.formats.megatron_arguments import BESIDE, EXTRA_IDS, TOKENIZER, Beside, read_beside, translate
from llamachat.formats.pickled import read_saved
from llamachat.system.metadata import Fields, read_json, read_text
from llamachat.tokenizers import megatron as tokens
from llamachat.tokenizers.side import MAX_ADDED

NAME = "model_optim_rng.pt"
RANK = "mp_rank_00"
TRACKER = "latest_checkpointed_iteration.txt"
MARKS = (TRACKER, f"{RANK}/{NAME}", NAME)
SENTENCEPIECE = "SentencePieceTokenizer"
PLACE = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias|layer_norm_weight|layer_norm_bias)")
FUSED_NORMS = {"self_attention.linear_qkv": "input_layernorm", "mlp.linear_fc1": "post_attention_layernorm"}
PARTS: dict[str, tuple[str, ...]] = {  # of a layer there -> ours
    "input_layernorm": ("input_layernorm",),
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "pre_cross_attn_layernorm": ("cross_attn_layernorm",),
    "cross_attention.linear_q": ("cross_attn.q_proj",),
    "cross_attention.linear_kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "cross_attention.linear_proj": ("cross_attn.o_proj",),
    "pre_mlp_layernorm": ("post_attention_layernorm",),
    "mlp.linear_fc1": ("mlp.up_proj",),
    "mlp.linear_fc2": ("mlp.down_proj",),
}
GATED = ("mlp.gate_proj", "mlp.up_proj")
TOP = {"embedding.word_embeddings": "model.embed_tokens", "embedding.position_embeddings": f"model.{ABSOLUTE}"} | {
    "lm_head.output_layer": "lm_head",
    **{f"{stack}.final_layernorm": f"{stack}.norm" for stack in STACKS},
}
TWICE = {"position_embeddings.": "embedding.position_embeddings.", "output_layer.": "lm_head.output_layer."}


@dataclass
class MegatronCheckpoint(LazyCheckpoint):
    """`sentencepiece`: Megatron's tokenizer, whose further tokens its arguments tell of."""

    sentencepiece: Path | None = None
    sentinels: int = 0

    def tokenizer(self) -> Tokenizer:
        if self.sentencepiece is None:
            return super().tokenizer()
        return tokens.open_megatron(self.sentencepiece, self.sentinels)


@reader
def open_megatron(path: Path) -> MegatronCheckpoint:
    """The T5 in this file or folder. Raises FormatError or ConfigError for what is damaged, missing or not supported."""
    file = _file(path)
    saved = read_saved(file)
    where = f"the arguments in {file}"
    fields = Fields(saved.arguments, where)
    home = _home(file)
    model = _sentencepiece(home) if fields.get(TOKENIZER) == SENTENCEPIECE else None
    sentinels = fields.whole(EXTRA_IDS, 0, 0, MAX_ADDED)
    beside, extra = _beside(home, model, sentinels)
    named = _named(saved.tensors, beside)
    encoder, decoder = (_layers(named, stack) for stack in STACKS)
    if not (encoder and decoder):
        raise FormatError(f"{file} has no layers of an encoder and a decoder", "only megatron-core's T5Model is read")
    config, ignored = translate(saved.arguments, where, encoder, decoder, beside)
    entries = matched(dict(_entries(named, config, fields.flag("rotary_interleaved", False), file)), config, file)
    files = (file, *extra)
    return MegatronCheckpoint(file, config, entries, home, {}, ignored, files, sentencepiece=model, sentinels=sentinels)


def _file(path: Path) -> Path:
    """The checkpoint's one file."""
    if path.is_file():
        return path
    if (tracker := path / TRACKER).is_file():
        told = read_text(tracker, 100).strip()
        if re.fullmatch(r"release|\d{1,12}", told) is None:
            raise FormatError(f"{tracker} says {shown(told)}", "expected is a number, or release")
        path = path / (told if told == "release" else f"iter_{int(told):07d}")
    if (path / NAME).is_file():
        return path / NAME
    ranks = sorted(each.name for each in path.glob("mp_rank_*"))
    if ranks not in ([], [RANK]):
        raise FormatError(
            f"{path} was saved by {len(ranks)} ranks, in parts",
            "it is not read",
            "save it with tensor and pipeline parallel sizes of 1",
        )
    if not (file := path / RANK / NAME).is_file():
        raise FormatError(f"{path} has no {RANK}/{NAME}", "there is no model there", "save it with --ckpt-format torch")
    return file


def _home(file: Path) -> Path:
    """Where a tokenizer and a megatron_config.json lie: the folder that the checkpoint's own folders are in, or one of those."""
    homes = [file.parent]
    while re.fullmatch(r"mp_rank_00|iter_\d+|release", homes[-1].name):
        homes.append(homes[-1].parent)
    wanted = (BESIDE, *tokens.FILES, "tokenizer.json")
    return next((home for home in homes if any((home / name).is_file() for name in wanted)), homes[-1])


def _sentencepiece(home: Path) -> Path | None:
    return next((home / name for name in tokens.FILES if (home / name).is_file()), None)


def _beside(home: Path, model: Path | None, sentinels: int) -> tuple[Beside, tuple[Path, ...]]:
    """What the tokenizer says of ids, and a megatron_config.json, which has the last word; and the files that say so."""
    told = Beside() if model is None else Beside(*tokens.named_ids(model, sentinels))
    files = () if model is None else (model,)
    file = home / BESIDE
    if not file.is_file():
        return told, files
    given = read_beside(read_json(file), str(file))
    return replace(told, **{name: value for name, value in vars(given).items() if value is not None}), (*files, file)


def _named(tensors: Mapping[str, Array], beside: Beside) -> dict[str, Array]:
    """Without states of layers that are none of the model's, what stands there twice, and a head that is not used."""
    skipped = [key for key in TWICE if any(name.startswith(TWICE[key]) for name in tensors)]
    left = {name: array for name, array in tensors.items() if not name.startswith(tuple(skipped))}
    if beside.head == "embedding":
        left.pop("lm_head.output_layer.weight", None)
    return {name: array for name, array in left.items() if not name.endswith("._extra_state")}


def _layers(tensors: Mapping[str, Array], stack: str) -> int:
    places = (PLACE.fullmatch(name) for name in tensors)
    return len({place[2] for place in places if place and place[1] == stack})


def _entries(
    tensors: Mapping[str, Array], config: EncoderDecoderSpec, interleaved: bool, file: Path
) -> Iterator[tuple[str, LazyTensor]]:
    """By our names, which several of its own may have: then it is refused."""
    taken = set[str]()
    for name, array in tensors.items():
        for ours, rows in _places(name, array, config, interleaved, file):
            if ours in taken:
                raise FormatError(f"{file} has {shown(ours)} under two names", "it is not clear which is meant")
            taken.add(ours)
            yield ours, _entry(name, array, rows)


def _entry(name: str, array: Array, rows: Array | None) -> LazyTensor:
    lazy = float_entry(name, array)
    if rows is None:
        return lazy
    return reordered(lazy, rows, TensorInfo((len(rows), *array.shape[1:]), array.nbytes * len(rows) // len(array)))


def _places(
    name: str, array: Array, config: EncoderDecoderSpec, interleaved: bool, file: Path
) -> Iterator[tuple[str, Array | None]]:
    """Our names of a tensor and the rows that each has of it; None: all. Unknown names stay, and are refused later."""
    module, _, kind = name.rpartition(".")
    place = PLACE.fullmatch(name)
    if place is None:
        yield f"{TOP[module]}.{kind}" if module in TOP else name, None
        return
    prefix, part, kind = f"{place[1]}.layers.{place[2]}.", place[3], place[4]
    if kind.startswith("layer_norm_"):
        yield f"{prefix}{FUSED_NORMS.get(part, part)}.{kind.removeprefix('layer_norm_')}", None
        return
    parts = GATED if part == "mlp.linear_fc1" and config.gated else PARTS.get(part, (part,))
    for number, ours in enumerate(parts):
        rows = None if len(parts) == 1 else _share(number, len(parts), part, config, array, f"{shown(name)} in {file}")
        if interleaved and config.positions == "rope" and ours in ("self_attn.q_proj", "self_attn.k_proj"):
            assert rows is not None
            rows = rows[half_split_rows(config.num_attention_heads, config.head_dim, config.rotary_dim)]
        yield f"{prefix}{ours}.{kind}", rows


def _share(number: int, parts: int, part: str, config: EncoderDecoderSpec, array: Array, where: str) -> Array:
    """The rows of one of several matrices in one: of attention they take turns head by head."""
    mlp = part == "mlp.linear_fc1"
    heads, size = (1, config.intermediate_size) if mlp else (config.num_attention_heads, config.head_dim)
    if array.shape[:1] != (heads * parts * size,):
        raise FormatError(f"{where} is {array.shape}", f"{heads * parts * size} rows are needed")
    rows: Array = np.arange(len(array)).reshape(heads, parts, size)[:, number].reshape(-1)
    return rows
