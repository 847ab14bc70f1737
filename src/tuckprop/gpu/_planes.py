"""Tiles of planes: programs work on some whole planes, or on some rows of one, so that few numbers index many elements.

A tile has planes, rows and columns; what depends on one of them is computed once for all others.
"""

from math import prod
from typing import NamedTuple

import triton
import triton.language as tl

# Columns of a tile at most.
_WIDEST = 128


class Tile(NamedTuple):
    """Sizes of a tile, powers of 2.

    Attributes:
        planes: Planes; 1, but for planes of few elements.
        rows: Rows.
        columns: Columns.
    """

    planes: int
    rows: int
    columns: int

    @classmethod
    def of(cls, height: int, width: int, elements: int) -> "Tile":
        """Return one of so many elements, a power of 2, for planes of this size."""
        columns = min(_WIDEST, triton.next_power_of_2(width))
        rows = min(max(1, elements // columns), triton.next_power_of_2(height))
        return cls(max(1, elements // (rows * columns)), rows, columns)

    def tiles(self, planes: int, height: int, width: int) -> int:
        """Return how many cover so many planes."""
        sizes = zip((planes, height, width), self, strict=True)
        return prod(-(-size // part) for size, part in sizes)


@triton.jit
def place(number, height, width, BP: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """Return planes [BP, 1, 1], rows [1, BH, 1] and columns [1, 1, BW] of the tile of this number."""
    across = tl.cdiv(width, BW)
    down = tl.cdiv(height, BH)
    plane = (number // (across * down)) * BP + tl.arange(0, BP)
    row = ((number // across) % down) * BH + tl.arange(0, BH)
    column = (number % across) * BW + tl.arange(0, BW)
    return plane[:, None, None], row[None, :, None], column[None, None, :]


__all__ = ["Tile", "place"]
