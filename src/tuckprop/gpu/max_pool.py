"""Max pooling of planes that keeps the number of the tap each maximum came from: one pass each way."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tuckprop.gpu._planes import Tile, place

# Elements a program writes.
_ELEMENTS = 512


@triton.jit
def _pool(
    x, y, taps, planes, height, width, rows, columns,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    BP: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    plane, row, column = place(tl.program_id(0), rows, columns, BP, BH, BW)
    best = tl.full([BP, BH, BW], float("-inf"), tl.float32)
    tap = tl.zeros([BP, BH, BW], tl.int32)
    seen = tl.zeros([BP, BH, BW], tl.int32)
    for i in tl.static_range(KH):
        h = row * SH - PH + i * DH
        line = plane * (height * width) + h * width
        in_rows = (plane < planes) & (row < rows) & (h >= 0) & (h < height)
        for j in tl.static_range(KW):
            v = column * SW - PW + j * DW
            there = in_rows & ((column < columns) & (v >= 0) & (v < width))
            value = tl.load(x + (line + v), there, other=0.0).to(tl.float32)
            better = there & ((value > best) | (value != value) | (seen == 0))
            best = tl.where(better, value, best)
            tap = tl.where(better, i * KW + j, tap)
            seen = tl.where(there, 1, seen)
    inside = ((plane < planes) & (row < rows)) & (column < columns)
    out = (plane * (rows * columns) + row * columns) + column
    tl.store(y + out, best.to(y.dtype.element_ty), inside)
    tl.store(taps + out, tap.to(tl.uint8), inside)


@triton.jit
def _unpool(
    grad, taps, out, planes, height, width, rows, columns,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    BP: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    # A program writes every SH-th row and SW-th column from each start: which taps meet them is known beforehand.
    plane, down, across = place(tl.program_id(0), tl.cdiv(height, SH), tl.cdiv(width, SW), BP, BH, BW)
    source = plane * (rows * columns)
    for up in tl.static_range(SH):
        for left in tl.static_range(SW):
            total = tl.zeros([BP, BH, BW], tl.float32)
            for i in tl.static_range(KH):
                for j in tl.static_range(KW):
                    if (up + PH - i * DH) % SH == 0 and (left + PW - j * DW) % SW == 0:
                        row = down + (up + PH - i * DH) // SH
                        column = across + (left + PW - j * DW) // SW
                        in_rows = (plane < planes) & (row >= 0) & (row < rows)
                        there = in_rows & ((column >= 0) & (column < columns))
                        at = (source + row * columns) + column
                        chosen = tl.load(taps + at, there, other=255).to(tl.int32) == i * KW + j
                        total += tl.load(grad + at, there & chosen, other=0.0).to(tl.float32)
            h, v = down * SH + up, across * SW + left
            inside = ((plane < planes) & (h < height)) & (v < width)
            tl.store(out + (plane * (height * width) + h * width) + v, total.to(out.dtype.element_ty), inside)


def max_pool(x: Tensor, y: Tensor, taps: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the largest element of each window into `y` and the number of its tap into `taps`.

    Args:
        x: Floating [.., h, v], contiguous.
        y: Floating [.., m, n], contiguous.
        taps: uint8, as many; the first of equals, the last NaN, taps counted row by row, at most 255 of them.
        window: Kernel, stride, padding and dilation, each for rows and columns; every window meets the plane.
    """
    rows, columns = y.shape[-2:]
    planes, tile = y.numel() // (rows * columns), Tile.of(rows, columns, _ELEMENTS)
    numbers = (n for pair in window for n in pair)
    _pool[tile.tiles(planes, rows, columns),](x, y, taps, planes, *x.shape[-2:], rows, columns, *numbers, *tile)


def max_unpool(grad: Tensor, taps: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the sum of the gradients of the outputs that an element is the largest of, or zero, into `out`.

    Args:
        grad: Floating [.., m, n], contiguous.
        taps: From `max_pool`.
        out: Floating [.., h, v], contiguous.
        window: As there.
    """
    height, width = out.shape[-2:]
    planes, down, across = out.numel() // (height * width), -(-height // window[1][0]), -(-width // window[1][1])
    tile = Tile.of(down, across, _ELEMENTS)
    numbers = (n for pair in window for n in pair)
    _unpool[tile.tiles(planes, down, across),](
        grad, taps, out, planes, height, width, *grad.shape[-2:], *numbers, *tile
    )


__all__ = ["max_pool", "max_unpool"]
