"""Clamps that keep one bit an element, and gradients that pass where the bit is set: one pass each.

Bit j of byte i belongs to element 8 i + j.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Bytes of flags a program writes.
_BLOCK = 512


@triton.jit
def _clamp(x, y, flags, count, low, high, BOUNDED: tl.constexpr, BLOCK: tl.constexpr):
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)
    place = byte[:, None] * 8 + bit[None, :]
    inside = place < count
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    passes = (value > low) | (value != value)
    result = tl.where(value < low, low, value)
    if BOUNDED:
        passes = passes & ((value < high) | (value != value))
        result = tl.where(value > high, high, result)
    tl.store(y + place, result.to(y.dtype.element_ty), inside)
    packed = tl.sum(passes.to(tl.int32) << bit[None, :], 1)
    tl.store(flags + byte, packed.to(tl.uint8), byte * 8 < count)


@triton.jit
def _gate(grad, flags, out, count, BLOCK: tl.constexpr):
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)
    place = byte[:, None] * 8 + bit[None, :]
    inside = place < count
    packed = tl.load(flags + byte, byte * 8 < count, other=0).to(tl.int32)
    value = tl.load(grad + place, inside, other=0.0)
    passes = (packed[:, None] >> bit[None, :]) & 1
    tl.store(out + place, tl.where(passes != 0, value, 0.0), inside)


def clamp(x: Tensor, y: Tensor, low: float, high: float | None) -> Tensor:
    """Write `x` clamped into `y`, and return one bit an element: whether it lies between the bounds, or is NaN.

    Args:
        x: Floating [n], contiguous.
        y: Likewise; may be `x`.
        low: Lower bound.
        high: Upper bound, or None for none.

    Returns:
        uint8 [ceil(n / 8)], for `gate`.
    """
    flags = torch.empty(-(-x.numel() // 8), dtype=torch.uint8, device=x.device)
    grid = (triton.cdiv(flags.numel(), _BLOCK),)
    _clamp[grid](x, y, flags, x.numel(), low, 0.0 if high is None else high, high is not None, _BLOCK)
    return flags


def gate(grad: Tensor, flags: Tensor, out: Tensor) -> None:
    """Write `grad` where its bit is set, and zero elsewhere, into `out`.

    Args:
        grad: Floating [n], contiguous.
        flags: From `clamp`.
        out: Like `grad`; may be `grad`.
    """
    _gate[triton.cdiv(flags.numel(), _BLOCK),](grad, flags, out, grad.numel(), _BLOCK)


__all__ = ["clamp", "gate"]
