"""Rotary position embedding (RoFormer, arXiv 2104.09864): frequencies and angles in fp64, for every engine. numpy only.

Pair i of a head rotates by position * frequency[i]. Angles are computed as positions come, so no table bounds them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llamachat.core.spec import ModelSpec, Rope, RopeScaling

Floats = NDArray[np.float64]


def frequencies(spec: ModelSpec, context: int, rope: Rope | None = None) -> tuple[Floats, float]:
    """Radians per position [dim / 2], and the factor that cosines and sines are multiplied by; by default of `main_rope`.

    `context` is the number of tokens the cache can hold. Scalings that depend on length (dynamic, longrope) are settled
    by it once, as llama.cpp and vLLM do: if they followed the text as it grows, keys already stored would be wrong, and
    a result would depend on how a prompt was cut into chunks.
    """
    rope = rope or spec.main_rope
    theta, scaling, plain = rope.theta, rope.scaling, _plain(rope.theta, rope.dim)
    if scaling is None:
        return plain, 1.0
    original = scaling.original_max_position_embeddings or spec.max_position_embeddings
    match scaling.kind:
        case "linear":
            return plain / scaling.factor, 1.0
        case "factors":
            return plain / np.array(scaling.factors), 1.0
        case "dynamic":
            return _dynamic(theta, rope.dim, scaling.factor, max(context, original) / original), 1.0
        case "llama3":
            return _llama3(plain, scaling, original), 1.0
        case "yarn":
            return _yarn(plain, theta, scaling, original), _yarn_attention(scaling)
        case "longrope":
            factors = scaling.long_factor if context > original else scaling.short_factor
            return plain / np.array(factors), _longrope_attention(scaling, original)


def cos_sin(positions: NDArray[np.int64], frequency: Floats, factor: float = 1.0) -> tuple[Floats, Floats]:
    """Positions [T] -> cosines and sines [T, head_dim / 2], both times `factor`."""
    angles = positions[:, None] * frequency
    return np.cos(angles) * factor, np.sin(angles) * factor


def query_scales(spec: ModelSpec, context: int, positions: NDArray[np.int64]) -> Floats | None:
    """[T] what queries at these positions are multiplied by; None: nothing.

    Within the original length all factors are 1. So they stay in a context of no more tokens, whose window may roll: its
    positions then only say how far tokens are apart. In a longer one they count, and it must not (depends_on_length).
    """
    scale = spec.query_scale
    if scale is None or context <= scale.original:
        return None
    return 1 + scale.beta * np.log1p(positions // scale.original)


def _plain(theta: float, dim: int) -> Floats:
    return theta ** (np.arange(0, dim, 2) / -dim)


def _dynamic(theta: float, dim: int, factor: float, stretch: float) -> Floats:
    """NTK-aware: a larger theta, which slows the slowest pair the most and the fastest not at all."""
    return _plain(theta * (factor * stretch - (factor - 1)) ** (dim / (dim - 2)), dim)


def _llama3(plain: Floats, scaling: RopeScaling, original: int) -> Floats:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, others blended by turns per original length."""
    turns = original * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return _blend(plain, scaling.factor, np.clip(kept, 0.0, 1.0))


def _yarn(plain: Floats, theta: float, scaling: RopeScaling, original: int) -> Floats:
    """YaRN (arXiv 2309.00071): as llama3's, but blended linearly over pair numbers between two counts of turns."""
    dim = 2 * len(plain)
    low, high = (
        dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    slowed = (np.arange(len(plain)) - low) / (high - low or 0.001)
    return _blend(plain, scaling.factor, 1.0 - np.clip(slowed, 0.0, 1.0))


def _blend(plain: Floats, factor: float, kept: Floats) -> Floats:
    return plain * kept + plain / factor * (1.0 - kept)


def _yarn_attention(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0

    both = scaling.mscale and scaling.mscale_all_dim
    return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim) if both else mscale(1.0)


def _longrope_attention(scaling: RopeScaling, original: int) -> float:
    """LongRoPE (arXiv 2402.13753)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return math.sqrt(1 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1.0 else 1.0
