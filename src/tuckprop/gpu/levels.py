"""Few-bit numbers of levels, written and read by table: one pass each.

Neighbours share a byte, the first in its lowest bits.
"""

import triton
import triton.language as tl
from torch import Tensor

# Elements a program writes.
_ELEMENTS = 4096


@triton.jit
def _encode(x, packed, codes, count, low, high, scale, offset, BITS: tl.constexpr, BLOCK: tl.constexpr):
    held: tl.constexpr = 8 // BITS
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, held)
    place = byte[:, None] * held + number[None, :]
    value = tl.load(x + place, place < count, other=0.0).to(tl.float32)
    value = tl.minimum(tl.maximum(value, low), high)
    cell = (value * scale + offset).to(tl.int32)
    cell = tl.minimum(tl.maximum(cell, 0), 255)
    code = tl.load(codes + cell).to(tl.int32)
    tl.store(packed + byte, tl.sum(code << (number * BITS)[None, :], 1).to(tl.uint8), byte * held < count)


@triton.jit
def _scale(grad, packed, levels, out, count, BITS: tl.constexpr, BLOCK: tl.constexpr):
    held: tl.constexpr = 8 // BITS
    mask: tl.constexpr = (1 << BITS) - 1
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, held)
    place = byte[:, None] * held + number[None, :]
    inside = place < count
    together = tl.load(packed + byte, byte * held < count, other=0).to(tl.int32)
    code = (together[:, None] >> (number * BITS)[None, :]) & mask
    value = tl.load(grad + place, inside, other=0.0).to(tl.float32) * tl.load(levels + code)
    tl.store(out + place, value.to(out.dtype.element_ty), inside)


def encode(x: Tensor, out: Tensor, codes: Tensor, bits: int, reach: float, offset: float) -> None:
    """Write `codes` at the cell of each element, packed, into `out`; 256 cells cut -reach..reach, and go on beyond.

    Args:
        x: Floating [n], contiguous.
        out: uint8 [ceil(n * bits / 8)].
        codes: uint8 [256], below 2 ** bits.
        bits: 1, 2, 4 or 8.
        reach: As said.
        offset: Cell of 0, with the place in it.
    """
    width = 2 * reach / len(codes)
    block = _ELEMENTS * bits // 8
    grid = (triton.cdiv(out.numel(), block),)
    # The half cell keeps the upper end in the last cell.
    _encode[grid](x, out, codes, x.numel(), -reach, reach - width / 2, 1 / width, offset, bits, block)


def scale(grad: Tensor, packed: Tensor, levels: Tensor, bits: int, out: Tensor) -> None:
    """Write `grad` times the level of its code into `out`.

    Args:
        grad: Floating [n], contiguous.
        packed: From `encode`.
        levels: float32 [2 ** bits].
        bits: As there.
        out: Like `grad`; may be `grad`.
    """
    block = _ELEMENTS * bits // 8
    _scale[triton.cdiv(packed.numel(), block),](grad, packed, levels, out, grad.numel(), bits, block)


__all__ = ["encode", "scale"]
