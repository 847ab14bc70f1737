"""Gradients of depthwise convolutions over planes: of the input, and of the weight.

Index legend: planes of h x v inputs and m x n outputs, one kernel a channel, i and j taps; s stride, p padding, d
dilation. With an output gradient G:
    dX[h, v] = sum_{i, j} W[i, j] G[(h + p - i d) / s, (v + p - j d) / s], where that is whole
    dW[i, j] = sum_{b, m, n} G[m, n] X[m s - p + i d, n s - p + j d]
"""

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuckprop.gpu._planes import Tile, place

# Elements that a program writes from each start, and elements of the output gradient that it reads at a time.
_ELEMENTS = 512
_READ = 1024

# Columns of that, as many as two elements a thread.
_WIDE = 64

# Programs in all; those of a channel share its samples.
_PROGRAMS = 16384


@triton.jit
def _input(
    grad, weight, out, planes, channels, height, width, rows, columns,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    BP: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    # A program writes every SH-th row and SW-th column from each start: which taps meet them is known beforehand.
    plane, down, across = place(tl.program_id(0), tl.cdiv(height, SH), tl.cdiv(width, SW), BP, BH, BW)
    kernel = weight + (plane % channels) * (KH * KW)
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
                        value = tl.load(grad + ((source + row * columns) + column), there, other=0.0)
                        factor = tl.load(kernel + (i * KW + j), plane < planes, other=0.0)
                        total += value.to(tl.float32) * factor.to(tl.float32)
            h, v = down * SH + up, across * SW + left
            inside = ((plane < planes) & (h < height)) & (v < width)
            tl.store(out + (plane * (height * width) + h * width) + v, total.to(out.dtype.element_ty), inside)


@triton.jit
def _weight(
    x, grad, out, samples, channels, height, width, rows, columns,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, TAPS: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    tap = tl.arange(0, TAPS)
    total = tl.zeros([TAPS, BW], tl.float32)
    across = tl.cdiv(columns, BW)
    tiles = tl.cdiv(rows, BH) * across
    for part in range(tl.program_id(1), samples * tiles, tl.num_programs(1)):
        plane = (part // tiles) * channels + channel
        row = ((part % tiles) // across) * BH + tl.arange(0, BH)[:, None]
        column = (part % across) * BW + tl.arange(0, BW)[None, :]
        g = tl.load(
            grad + (plane * (rows * columns) + row * columns) + column, (row < rows) & (column < columns), other=0.0
        ).to(tl.float32)
        for i in tl.static_range(KH):
            h = row * SH - PH + i * DH
            line = plane * (height * width) + h * width
            in_rows = (row < rows) & (h >= 0) & (h < height)
            for j in tl.static_range(KW):
                v = column * SW - PW + j * DW
                there = in_rows & ((column < columns) & (v >= 0) & (v < width))
                value = tl.load(x + (line + v), there, other=0.0).to(tl.float32)
                products = tl.sum(value * g, 0)
                total += tl.where(tap[:, None] == i * KW + j, products[None, :], 0.0)
    first = (tl.program_id(1) * channels + channel) * (KH * KW)
    tl.store(out + first + tap, tl.sum(total, 1), tap < KH * KW)


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the gradient of the input into `out`.

    Args:
        grad: Floating [b, c, m, n], contiguous.
        weight: Floating [c, 1, i, j], contiguous.
        out: Floating [b, c, h, v], contiguous.
        window: Kernel, stride, padding and dilation, each for rows and columns.
    """
    samples, channels, height, width = out.shape
    planes, down, across = samples * channels, -(-height // window[1][0]), -(-width // window[1][1])
    tile = Tile.of(down, across, _ELEMENTS)
    numbers = (n for pair in window for n in pair)
    _input[tile.tiles(planes, down, across),](
        grad, weight, out, planes, channels, height, width, *grad.shape[-2:], *numbers, *tile
    )


def weight_gradient(x: Tensor, grad: Tensor, window: Sequence[Sequence[int]]) -> Tensor:
    """Return the gradient of the weight, float32 [c, 1, i, j].

    Args:
        x: Floating [b, c, h, v], contiguous.
        grad: Floating [b, c, m, n], contiguous.
        window: As there.
    """
    samples, channels, rows, columns = grad.shape
    kh, kw = window[0]
    # What a tile reads of the input, and reads again for every tap, is to stay in a cache.
    _, *tile = Tile.of(rows, min(columns, _WIDE), max(_WIDE, _READ // prod(window[1])))
    tiles = triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1])
    splits = max(1, min(samples * tiles, _PROGRAMS // channels))
    parts = torch.empty(splits, channels, 1, kh, kw, dtype=torch.float32, device=grad.device)
    numbers = (n for pair in window for n in pair)
    taps = triton.next_power_of_2(kh * kw)
    # One warp a program, so that sums over rows stay within it.
    _weight[channels, splits](
        x, grad, parts, samples, channels, *x.shape[-2:], rows, columns, *numbers, taps, *tile, num_warps=1
    )
    return parts[0] if splits == 1 else parts.sum(0)


__all__ = ["input_gradient", "weight_gradient"]
