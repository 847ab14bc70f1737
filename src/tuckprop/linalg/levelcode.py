"""A tensor kept as the few-bit numbers of the levels that a function takes there, written and read by table.

An element's cell is a byte, two elements are a 16-bit number, and one look-up gives both their codes, packed already.
Reading is one look-up a byte as well, of a row with the levels of all the codes in it. Finding the level by bisection
(`torch.bucketize`) takes 20 times as long as that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop import gpu, native
from tuckprop.errors import ConfigError
from tuckprop.linalg.bits import CODE_BITS, code_slabs, join_codes, packed_bytes, split_codes
from tuckprop.linalg.piecewise import Levels

CELLS = 256

# Zero belongs to the cell below it, as the derivative of ELU and SELU at zero is the one on the left.
MIDDLE = CELLS / 2 - 2.0**-16

# A row of levels is read as one number of its size, where there is one: that takes half the time.
_WHOLE_ROWS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


class _Work(NamedTuple):
    """Buffers for one slab, used again for the next: new memory is slow on a CPU.

    Attributes:
        inside: float32 [n].
        whole: int16 [n].
        cells: uint8 [n].
        pair: int32 [n / 2].
    """

    inside: Tensor
    whole: Tensor
    cells: Tensor
    pair: Tensor

    @classmethod
    def empty(cls, device: torch.device, size: int = 0) -> "_Work":
        """Make buffers for an even number of elements."""
        kinds = (torch.float32, size), (torch.int16, size), (torch.uint8, size), (torch.int32, size // 2)
        return cls(*[torch.zeros(length, dtype=dtype, device=device) for dtype, length in kinds])

    def grown(self, size: int) -> "_Work":
        """Return buffers for at least `size` elements."""
        return self if size <= len(self.inside) else self.empty(self.inside.device, size + size % 2)


@dataclass(frozen=True, eq=False)
class LevelCode:
    """The code of one function.

    Attributes:
        bits: Bits an element.
        reach: Beyond -reach and reach, the levels of the outermost cells hold.
        pairs: Codes of a pair of cells, by one + 256 * the other, uint8 [65536]; none if the cell is the code.
        levels: float64 [2 ** bits].
        codes: uint8 [256], the code of each cell.
        rounded: `levels` in float32.
    """

    bits: int
    reach: float
    pairs: Tensor | None
    levels: Tensor
    codes: Tensor
    rounded: Tensor

    @classmethod
    def of(cls, levels: Levels, bits: int, device: torch.device) -> "LevelCode":
        """Make the tables for an approximation by 2 ** bits levels on 256 cells.

        Raises:
            ConfigError: `bits` is none of 1, 2, 4 and 8, or the cells are not 256.
        """
        if bits not in CODE_BITS or len(levels.levels) != 1 << bits or len(levels.code) != CELLS:
            raise ConfigError(
                f"LevelCode: expected 1, 2, 4 or 8 bits, that many levels and {CELLS} cells, got {bits!r} bits, "
                f"{len(levels.levels)} levels and {len(levels.code)} cells"
            )
        if bits == 8:
            by_cell = levels.levels[levels.code].to(device)
            return cls(
                bits, levels.reach, None, by_cell, torch.arange(CELLS, device="cpu").to(torch.uint8), by_cell.float()
            )
        pairs = levels.code[None, :] + (levels.code[:, None] << bits)
        found = levels.levels.to(device)
        pairs = pairs.reshape(-1).to(device, torch.uint8)
        return cls(bits, levels.reach, pairs, found, levels.code.to("cpu", torch.uint8), found.float())

    def scaled(self, factor: float) -> "LevelCode":
        """Return the code of `factor` times what this one is a code of, at `factor` times the place."""
        levels = self.levels * factor
        return LevelCode(self.bits, self.reach * factor, self.pairs, levels, self.codes, levels.float())

    def encode(self, x: Tensor) -> Tensor:
        """Return the packed codes of `x`.

        Args:
            x: Floating [n], contiguous. NaN gets some code.

        Returns:
            uint8 [ceil(n * bits / 8)].
        """
        packed = torch.empty(packed_bytes(x.numel(), self.bits), dtype=torch.uint8, device=x.device)
        if native.serves(x):
            native.encode(x, packed, self.codes, self.bits, self.reach, MIDDLE)
        elif gpu.serves(x):
            from tuckprop.gpu import levels as kernels

            kernels.encode(x, packed, self._codes_there, self.bits, self.reach, MIDDLE)
        else:
            self._look_up(x, packed)
        return packed

    @cached_property
    def _codes_there(self) -> Tensor:
        """The code of each cell, where the levels are: kept, as a copy to a GPU in every step would stall it."""
        return self.codes.to(self.levels.device)

    def encode_measured(self, x: Tensor, out: Tensor, rows: native.Rows | None = None) -> float:
        """Write the packed codes of `x` into `out`, and return the sum of squares of `x` minus its levels.

        Args:
            x: Floating [n], contiguous, finite; with `rows`, what `native.reads`, dense in memory.
            out: uint8 [ceil(n * bits / 8)].
            rows: What is done to `x` first, where there are kernels for it, or None for nothing.
        """
        if native.reads(x):
            return native.encode(x, out, self.codes, self.bits, self.reach, MIDDLE, self.rounded, rows)
        self._look_up(x, out)
        parts = self.decode(out, x.numel(), x.dtype)
        return sum(float((x[part] - levels).double().square().sum()) for part, levels in parts)

    def _look_up(self, x: Tensor, packed: Tensor) -> None:
        work = _Work.empty(x.device)
        for part, place in code_slabs(x.numel(), self.bits, x.device):
            size = part.stop - part.start
            work = work.grown(size)
            cells = self._cells(x[part], work)
            if self.pairs is None:
                packed[place] = cells
                continue
            index = work.pair[: -(-size // 2)].copy_(work.cells[: size + size % 2].view(torch.uint16))
            if self.bits == 4:
                torch.index_select(self.pairs, 0, index, out=packed[place])
            else:
                join_codes(self.pairs.index_select(0, index), 2 * self.bits, packed[place])

    def _cells(self, x: Tensor, work: "_Work") -> Tensor:
        """Return the cell of each element, uint8, in the first of `work.cells`."""
        width = 2 * self.reach / CELLS
        offset = torch.full((), MIDDLE, dtype=torch.float32, device=x.device)
        inside = work.inside[: len(x)]
        if x.dtype == inside.dtype:
            # The half cell keeps the upper end in the last cell.
            torch.clamp(x, -self.reach, self.reach - width / 2, out=inside)
        else:
            inside.copy_(x).clamp_(-self.reach, self.reach - width / 2)
        torch.add(offset, inside, alpha=1 / width, out=inside)
        # By way of int16, because there is no fast way from a floating type to uint8.
        return work.cells[: len(x)].copy_(work.whole[: len(x)].copy_(inside))

    def multiply(self, grad: Tensor, packed: Tensor, out: Tensor) -> None:
        """Write `grad` times the levels into `out`.

        Args:
            grad: Floating [n], contiguous.
            packed: What `encode` returned for n elements.
            out: Like `grad`; may be `grad`.
        """
        if native.serves(grad):
            native.scale(grad, packed, self.rounded, self.bits, out)
            return
        if gpu.serves(grad):
            from tuckprop.gpu import levels as kernels

            kernels.scale(grad, packed, self.rounded, self.bits, out)
            return
        for part, levels in self.decode(packed, grad.numel(), grad.dtype):
            torch.mul(grad[part], levels, out=out[part])

    def decode(self, packed: Tensor, count: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield slab after slab of levels, as the function `decode` does."""
        return decode(packed, self.levels, self.bits, count, dtype)


@lru_cache(maxsize=64)
def _codes_by_byte(bits: int, device: torch.device) -> Tensor:
    """Return the codes in each byte, int64 [256 * 8 / bits]; kept, as a copy to a GPU in every step would stall it."""
    return split_codes(torch.arange(256, device="cpu").to(device, torch.uint8), bits).to(torch.int64)


def decode(packed: Tensor, levels: Tensor, bits: int, count: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield slab after slab of levels.

    Args:
        packed: What `LevelCode.encode` returned.
        levels: Floating [2 ** bits].
        bits: As there.
        count: n.
        dtype: Of what is yielded; a floating type.

    Yields:
        The slab and its levels, which are overwritten in the next turn.
    """
    held = 8 // bits
    rows = levels.to(dtype)[_codes_by_byte(bits, packed.device)].view(256, held)
    whole = _WHOLE_ROWS.get(rows[0].numel() * rows.element_size())
    table = rows if whole is None else rows.view(whole).view(256)
    work = table.new_empty(0)
    for part, place in code_slabs(count, bits, packed.device):
        index = packed[place].to(torch.int32)
        if len(work) < len(index):
            work = table.new_empty((len(index), *table.shape[1:]))
        torch.index_select(table, 0, index, out=work[: len(index)])
        yield part, work.view(-1).view(dtype)[: part.stop - part.start]


def decode_into(packed: Tensor, levels: Tensor, bits: int, out: Tensor) -> None:
    """Write the levels into `out`, floating [n], contiguous; other arguments are those of `decode`."""
    if native.serves(out):
        native.decode(packed, levels.float(), bits, out)
        return
    for part, found in decode(packed, levels, bits, out.numel(), out.dtype):
        out[part] = found


__all__ = ["CELLS", "MIDDLE", "LevelCode", "decode", "decode_into"]
