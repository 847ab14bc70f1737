"""A few-bit code fitted to the values of a tensor: where spectra are flat, it takes fewer bytes than factors do.

The levels are the best for the values at hand, by their histogram: those of Lloyd and Max, on a grid. Tensors of the
same place in a network have nearly the same distribution from step to step, up to a scale, which is taken out. What a
code loses is measured on every tensor that it is used for.
Source: Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 1982; the optimum on a grid
is that of `tuckprop.linalg.piecewise`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from tuckprop import native
from tuckprop.linalg.bits import packed_bytes, slabs
from tuckprop.linalg.energy import sum_of_squares
from tuckprop.linalg.layout import flat
from tuckprop.linalg.levelcode import CELLS, MIDDLE, LevelCode
from tuckprop.linalg.piecewise import Cells, Levels, best_levels
from tuckprop.linalg.standardised import Standardised

# Values that a histogram is made of, at most.
_SAMPLE = 1 << 17

# Weight that is spread over all cells, so that a value where there was none has a level near it.
_ELSEWHERE = 1e-6

# Beyond so many root mean squares there is no cell.
_MOST_REACH = 16.0


@dataclass(frozen=True, eq=False)
class FittedCode:
    """A code for tensors of root mean square 1.

    Attributes:
        bits: Bits an element, 1, 2, 4 or 8.
        levels: The levels and where each is used.
        code: The same as a table.
    """

    bits: int
    levels: Levels
    code: LevelCode

    @classmethod
    def of(cls, bits: int, levels: Levels) -> "FittedCode":
        """Make the table."""
        return cls(bits, levels, LevelCode.of(levels, bits, torch.device("cpu")))

    def encode(self, x: Tensor | Standardised, energy: float) -> tuple[Tensor, Tensor, float]:
        """Return the packed codes of a tensor, their levels, and the share of the energy that is lost.

        Args:
            x: float32 or of less precision, dense in memory and contiguous.
            energy: Its sum of squares, positive.

        Returns:
            uint8 [ceil(n * bits / 8)]; float32 [2 ** bits]; the share.
        """
        count = x.shape.numel()
        scaled = self.code.scaled((energy / count) ** 0.5)
        packed = torch.empty(packed_bytes(count, self.bits), dtype=torch.uint8, device="cpu")
        start, lost = 0, 0.0
        # Pieces begin at a whole byte.
        for piece, rows in _pieces(x):
            place = packed[start : start + packed_bytes(piece.numel(), self.bits)]
            lost += scaled.encode_measured(piece, place, rows)
            start += place.numel()
        return packed, scaled.rounded, lost / energy


def _pieces(x: Tensor | Standardised) -> Iterator[tuple[Tensor, native.Rows | None]]:
    """Yield what is encoded at a time, in the order of memory, and what is done to it first; all at once by kernels."""
    if not isinstance(x, Standardised):
        yield from ((piece, None) for piece in ([x] if native.reads(x) else _parts(x)))
    elif native.reads(x.x) and (rows := x.rows()) is not None:
        yield x.x, rows
    else:
        yield from ((part, None) for part in x.parts(8))


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Yield the elements in the order of memory as float32, those of another dtype part after part."""
    values = flat(x)
    if x.dtype == torch.float32:
        yield values
        return
    for part in slabs(len(values), x.device):
        yield values[part].float()


def energy_of_dense(x: Tensor) -> float:
    """Return the sum of squares of a tensor that is dense in memory, summed in single precision at least."""
    return sum(float(sum_of_squares(part)) for part in _parts(x))


def fit(x: Tensor, energy: float, bits: int) -> FittedCode:
    """Return the best code for the values of a tensor.

    Args:
        x: Floating, dense in memory, finite, not zero.
        energy: Its sum of squares, positive.
        bits: 1, 2, 4 or 8.
    """
    values = flat(x)
    rms = (energy / len(values)) ** 0.5
    # An odd step meets every channel and position.
    step = ceil(len(values) / _SAMPLE) | 1
    sample = values[::step].double() / rms
    reach = min(max(float(sample.abs().amax()), 1.0), _MOST_REACH)
    width = 2 * reach / CELLS
    cells = (sample / width + MIDDLE).to(torch.int64).clamp_(0, CELLS - 1)
    middles = (torch.arange(CELLS, dtype=torch.float64, device="cpu") + 0.5) * width - reach
    spread = _ELSEWHERE / CELLS
    moments = [
        torch.bincount(cells, sample**power, CELLS) / len(sample) + spread * middles**power for power in range(3)
    ]
    return FittedCode.of(bits, best_levels(Cells(reach, *moments), 1 << bits))


__all__ = ["FittedCode", "energy_of_dense", "fit"]
