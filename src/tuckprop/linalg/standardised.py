"""A standardised tensor that is not formed: what a norm's bases are to be applied to, read straight off its input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Size, Tensor

from tuckprop.linalg.energy import Energy
from tuckprop.linalg.layout import memory_order, moves_nothing
from tuckprop.linalg.modes import mode_product
from tuckprop.native import Rows
from tuckprop.native.chain import Standard

# Elements that are formed at a time: they stay in a processor's cache.
_PART = 1 << 18

# Shorter rows of equal shift and scale are not worth to be taken one by one.
_LEAST_ROW = 8


@dataclass(frozen=True)
class Standardised:
    """`scale (x - shift)`.

    Attributes:
        x: Shape [n_1, ..., n_d]; it may be in half precision where shift and scale are in float32.
        shift: Broadcasts with `x`: size 1 or n_j on every axis.
        scale: As `shift`.
        energy: Of the whole.
    """

    x: Tensor
    shift: Tensor
    scale: Tensor
    energy: Energy

    @property
    def shape(self) -> Size:
        """Shape of the tensor."""
        return self.x.shape

    def dense(self) -> Tensor:
        """Form the tensor, in the dtype of `scale`."""
        return (self.x - self.shift).mul_(self.scale)

    def rows(self) -> Rows | None:
        """Return shift and scale of each row in memory, where `x`, which is dense, has rows with one of each."""
        if self.scale.dtype != torch.float32 or self.scale.device.type != "cpu":
            return None
        if self.x.is_contiguous() and (standard := self.along_one_axis()) is not None:
            positions = prod(self.x.shape[standard.axis + 1 :])
            return Rows(standard.shift, standard.scale, positions) if positions >= _LEAST_ROW else None
        order = memory_order(self.x)
        shift, scale = torch.broadcast_tensors(self.shift, self.scale)
        sizes = [shift.shape[axis] for axis in order]
        last = max((place for place, size in enumerate(sizes) if size > 1), default=-1)
        first = next((place for place, size in enumerate(sizes) if size > 1), 0)
        if any(size < self.x.shape[axis] for axis, size in zip(order[first:last], sizes[first:last], strict=True)):
            return None
        positions = prod(self.x.shape[axis] for axis in order[last + 1 :])
        if positions < _LEAST_ROW:
            return None
        shift, scale = (t.permute(order).reshape(-1).contiguous() for t in (shift, scale))
        return Rows(shift, scale, positions)

    def parts(self, multiple: int) -> Iterator[Tensor]:
        """Yield the elements in the order of memory, flat, part after part: some rows of the slowest axis.

        Args:
            multiple: Every part but the last has a multiple of so many elements.

        Yields:
            A part, in a buffer that is overwritten in the next turn. `x` is dense.
        """
        order = [axis for axis in memory_order(self.x) if self.x.shape[axis] > 1]
        if not order:
            yield self.dense().view(-1)
            return
        flat_axes = [axis for axis in range(self.x.dim()) if axis not in order]
        x, shift, scale = (
            t.permute(*order, *flat_axes).flatten(len(order) - 1) if flat_axes else t.permute(order)
            for t in (self.x, self.shift, self.scale)
        )
        inner = x[0].numel()
        whole = multiple // gcd(multiple, inner)
        rows = min(len(x), max(1, _PART // (inner * whole)) * whole)
        buffer = scale.new_empty((rows, *x.shape[1:]))
        for start in range(0, len(x), rows):
            place = slice(start, min(start + rows, len(x)))
            part = buffer[: place.stop - place.start]
            torch.sub(x[place], shift[place] if len(shift) > 1 else shift, out=part)
            part.mul_(scale[place] if len(scale) > 1 else scale)
            yield part.view(-1)

    def permute(self, order: Sequence[int]) -> "Standardised":
        """Return the tensor with its axes in this order."""
        if moves_nothing(order):
            return self
        return Standardised(self.x.permute(*order), self.shift.permute(*order), self.scale.permute(*order), self.energy)

    def multiplies_unformed(self, mode: int) -> bool:
        """Say whether `mode_product` along this mode forms nothing of the size of the whole."""
        return self.scale.shape[mode] == 1 or self.scale.numel() == self.scale.shape[mode]

    def along_one_axis(self) -> Standard | None:
        """Return shift and scale where they vary along one axis alone, in float32 on a CPU."""
        if self.scale.dtype != torch.float32 or self.scale.device.type != "cpu" or self.scale.numel() == 1:
            return None
        axis = max(range(self.scale.dim()), key=self.scale.shape.__getitem__)
        alike = self.shift.shape == self.scale.shape and self.shift.dtype == self.scale.dtype
        if not alike or self.scale.shape[axis] != self.scale.numel():
            return None
        return Standard(self.shift.reshape(-1).contiguous(), self.scale.reshape(-1).contiguous(), axis)

    def mode_product(self, matrix: Tensor, mode: int) -> Tensor:
        """Contract axis `mode` with the rows of `matrix` [n_mode, k]; as `tuckprop.linalg.modes.mode_product`.

        Reads `x` once and forms nothing of its size, unless shift and scale vary along `mode` and another axis both.
        """
        sizes = self.scale.shape
        if sizes[mode] == 1:
            product = mode_product(self.x, matrix, mode)
            sums = _along(matrix.sum(0), mode, product.dim())
            return product.addcmul_(self.shift, sums, value=-1).mul_(self.scale)
        if not self.multiplies_unformed(mode):
            return mode_product(self.dense(), matrix, mode)
        weighted = matrix * self.scale.reshape(-1, 1)
        offset = self.shift.reshape(1, -1) @ weighted
        return mode_product(self.x, weighted, mode).sub_(_along(offset, mode, len(sizes)))


def _along(values: Tensor, mode: int, dims: int) -> Tensor:
    return values.reshape([-1 if axis == mode else 1 for axis in range(dims)])
