"""Keys in 8 bits and values in 4, both rotated by a Hadamard matrix, as the native engine's c/nibbles.h has them, to the bit."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from llamachat.engines.memory import SPAN

HALF_MOST = 65504.0  # of float16


def hadamard(x: Tensor) -> Tensor:
    """[..., D] times a matrix of +1 and -1 over the root of its size, its own inverse: in blocks of D's largest power of two."""
    size = x.shape[-1]
    block, half = size & -size, 1
    while half < block:
        a, b = x.reshape(*x.shape[:-1], -1, 2, half).unbind(-2)
        x, half = torch.stack((a + b, a - b), -2).flatten(-3), 2 * half
    return x * (1 / math.sqrt(block))


def pack(values: Tensor) -> Tensor:
    """[..., D] float32, rotated -> rows [..., bytes] uint8: float16 scale and minimum of each 64 elements, then codes."""
    x = pad(values.nan_to_num(-HALF_MOST).clamp(-HALF_MOST, HALF_MOST), (0, -values.shape[-1] % 32))
    spans = torch.split(x, SPAN, -1)
    ranges = [(span.amin(-1, keepdim=True), span.amax(-1, keepdim=True)) for span in spans]
    halves = [torch.cat(((high - low) / 15, low), -1).half() for low, high in ranges]
    steps = [(span - half[..., 1:].float()) / half[..., :1].float() for span, half in zip(spans, halves, strict=True)]
    codes = torch.cat(steps, -1).nan_to_num(0).clamp(0, 15).round().to(torch.uint8)
    codes = codes.reshape(*codes.shape[:-1], -1, 2, 16)
    nibbles = codes[..., 0, :] | codes[..., 1, :] << 4
    return torch.cat((torch.cat(halves, -1).view(torch.uint8), nibbles.flatten(-2)), -1)


def unpack(rows: Tensor, size: int) -> Tensor:
    """What `pack` has left of values [..., D]."""
    spans = -(-size // SPAN)
    halves = rows[..., : 4 * spans].contiguous().view(torch.float16).float()
    scale, low = (
        part.repeat_interleave(SPAN, -1)[..., :size] for part in halves.reshape(*rows.shape[:-1], spans, 2).unbind(-1)
    )
    codes = rows[..., 4 * spans :].reshape(*rows.shape[:-1], -1, 1, 16)
    values = torch.cat((codes & 15, codes >> 4), -2).flatten(-3).float()[..., :size]
    return values * scale + low
