"""How active the columns of a matrix are, told from the model alone, without a text.

What a norm gives has columns of equal size, times its weights. From there the sizes of values go through the value matrix
to what attention gives, and through gate and up to what the down matrix is given.
"""

from collections.abc import Mapping
from re import fullmatch

import numpy as np

from llamachat.core.spec import HEADS, NORMS, ModelSpec
from llamachat.core.tensors import Array, Tensor, dequantize
from llamachat.formats import Checkpoint
from quantize.coding import only

NORMED = {  # what is given a norm's output, by the norm's role
    r"self_attn\.[qkv]_proj": "attention_in",
    r"mlp\.(experts\.\d+\.)?(gate|up)_proj": "mlp_in",
}
MAKERS = {"self_attn.o_proj": ("self_attn.v_proj",), "down_proj": ("gate_proj", "up_proj")}  # of what others are given
SLAB = 1 << 20  # weights looked at at a time


def activities(source: Checkpoint) -> dict[str, Array]:
    """By the names of matrices: the mean square of what each column is multiplied with, [columns], in no unit.

    Reads the norms, then value, gate and up matrices, and holds a vector for each matrix.
    """
    spec, matrices = source.config, [name for name, info in source.index().items() if len(info.shape) > 1]
    norms = {name: _norm_before(name, spec) for name in matrices}
    squares = {
        name: np.square(dequantize(tensor) + np.float32(spec.norm_offset))
        for name, tensor in only(source, [*norms.values()])
    }
    found = {name: _fair(squares[norm]) for name, norm in norms.items() if norm in squares}
    makers = [name for name in matrices if name.endswith(tuple(f"{each}.weight" for each in sum(MAKERS.values(), ())))]
    sizes = {name: _sizes(tensor, found.get(name)) for name, tensor in only(source, makers)}
    for name in matrices:
        if (made := _made(name, sizes, spec)) is not None:
            found[name] = _fair(made)
    return found


def _norm_before(name: str, spec: ModelSpec) -> str:
    """The weights of the norm whose output the matrix is given; "" where there is none."""
    if name == f"{HEADS[spec.head][0]}.weight":
        return "model.norm.weight"
    layer = fullmatch(r"(\w+\.layers\.\d+\.)(.+)\.weight", name)
    role = layer and next((role for pattern, role in NORMED.items() if fullmatch(pattern, layer[2])), None)
    norms = NORMS[spec.norms]
    return f"{layer[1]}{norms[role]}.weight" if layer and role in norms else ""


def _sizes(matrix: Tensor, activity: Array | None) -> Array:
    """The mean squares of a matrix's outputs, [rows]."""
    rows, columns = matrix.shape
    weights = np.ones(columns, np.float32) if activity is None else activity
    step = max(1, SLAB // columns)
    parts = (dequantize(matrix.rows(slice(start, start + step))) for start in range(0, rows, step))
    return np.concatenate([np.square(part) @ weights for part in parts])


def _made(name: str, sizes: Mapping[str, Array], spec: ModelSpec) -> Array | None:
    """Of a matrix that is given what others make: values of a head of keys go to all heads of queries that share it."""
    for own, makers in MAKERS.items():
        prefix = name.removesuffix(f"{own}.weight")
        made = [sizes[other] for each in makers if (other := f"{prefix}{each}.weight") in sizes]
        if prefix == name or not made:
            continue
        if own == "down_proj":
            return np.asarray(np.prod(made, 0))
        groups = spec.num_key_value_heads
        return made[0].reshape(groups, -1).repeat(spec.num_attention_heads // groups, 0).reshape(-1)
    return None


def _fair(activity: Array) -> Array:
    """With a mean of one; columns that are all idle, or beyond measure, count alike."""
    with np.errstate(all="ignore"):
        fair = activity / activity.mean()
    return fair.astype(np.float32) if np.isfinite(fair).all() else np.ones(len(activity), np.float32)
