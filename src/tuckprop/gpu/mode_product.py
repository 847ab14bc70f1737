"""Products of a large tensor with a narrow matrix along one mode: the tensor is read once.

A library's products are made for square matrices; of a mode and a basis of a few columns it does a third of what memory
allows. A tensor is seen as a stack [before, n, after]; where little or nothing comes after the mode, as rows [m, n].
"""

import triton
import triton.language as tl
from torch import Tensor

from tuckprop.gpu import product_precision

# Elements of the larger operand that a program holds.
_ELEMENTS = 8192

# Positions and contracted elements of a tile of a stack.
_POSITIONS = 128
_CONTRACTED = 32

# Columns of a product that a program computes.
_COLUMNS = 64

# Sizes up to which the columns of a matrix, and a row, are kept in registers.
_NARROW = 64
_LONGEST_ROW = 256

# Stacks of fewer positions leave tiles half empty; those of very few are rows that lie between each other.
_LEAST_POSITIONS = 512
_NEIGHBOURS = 32

# Smaller tensors gain nothing.
_LEAST_ELEMENTS = 1 << 18


@triton.jit
def _rows(
    x, matrix, y, m, n, r, after, un, ur,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BR + tl.arange(0, BR)
    i = tl.arange(0, BN)
    before, s = row // after, row % after
    start = before * (n * after) + s
    inside = (row[:, None] < m) & (i[None, :] < n)
    values = tl.load(x + start[:, None] + i[None, :] * after, inside, other=0.0)
    factors = tl.load(
        matrix + i[:, None] * un + column[None, :] * ur, (i[:, None] < n) & (column[None, :] < r), other=0.0
    )
    product = tl.dot(values, factors, input_precision=PRECISION)
    place = y + (before * (r * after) + s)[:, None] + column[None, :] * after
    tl.store(place, product, (row[:, None] < m) & (column[None, :] < r))


@triton.jit
def _stack(
    x, matrix, y, n, after, r, un, ur,
    PRECISION: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(after, BS)
    before = tl.program_id(0) // blocks
    s = (tl.program_id(0) % blocks) * BS + tl.arange(0, BS)
    column = tl.program_id(1) * BR + tl.arange(0, BR)
    here = s[None, :] < after
    product = tl.zeros([BR, BS], tl.float32)
    for first in range(0, n, BN):
        i = first + tl.arange(0, BN)
        factors = tl.load(
            matrix + i[None, :] * un + column[:, None] * ur, (i[None, :] < n) & (column[:, None] < r), other=0.0
        )
        values = tl.load(x + before * (n * after) + i[:, None] * after + s[None, :], (i[:, None] < n) & here, other=0.0)
        product = tl.dot(factors, values, product, input_precision=PRECISION)
    place = y + before * (r * after) + column[:, None] * after + s[None, :]
    tl.store(place, product, (column[:, None] < r) & here)


def worth(elements: int, n: int, after: int, r: int) -> bool:
    """Say whether these are faster than a library's.

    Args:
        elements: Of the tensor.
        n: Size of the mode.
        after: Size of what comes after it.
        r: Columns of the matrix; a tensor that grows is left to a library.
    """
    shrinks = elements >= _LEAST_ELEMENTS and r < n and r <= _NARROW
    return shrinks and (after >= _LEAST_POSITIONS or (after <= _NEIGHBOURS and n <= _LONGEST_ROW))


def product(x: Tensor, matrix: Tensor, y: Tensor) -> None:
    """Write `y[b, k, s] = sum_i x[b, i, s] matrix[i, k]`.

    Args:
        x: float32 [before, n, after], contiguous.
        matrix: float32 [n, r], any strides.
        y: float32 [before, r, after], contiguous.
    """
    before, n, after = x.shape
    r = matrix.shape[1]
    columns = min(_COLUMNS, max(16, triton.next_power_of_2(r)))
    if after < _LEAST_POSITIONS:
        width = max(16, triton.next_power_of_2(n))
        rows = max(16, _ELEMENTS // max(width, columns))
        grid = (triton.cdiv(before * after, rows), triton.cdiv(r, columns))
        sizes = (before * after, n, r, after)
        _rows[grid](x, matrix, y, *sizes, *matrix.stride(), product_precision(), rows, width, columns)
        return
    positions = min(_POSITIONS, max(16, triton.next_power_of_2(after)))
    contracted = min(_CONTRACTED, max(16, triton.next_power_of_2(n)))
    grid = (before * triton.cdiv(after, positions), triton.cdiv(r, columns))
    _stack[grid](x, matrix, y, n, after, r, *matrix.stride(), product_precision(), contracted, columns, positions)


__all__ = ["product", "worth"]
