"""A standardised tensor that is not formed: what a norm's bases are to be applied to, read straight off its input."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor

from tuckprop.linalg.modes import mode_product


@dataclass(frozen=True)
class Standardised:
    """`scale (x - shift)`.

    Attributes:
        x: Shape [n_1, ..., n_d].
        shift: Broadcasts with `x`: size 1 or n_j on every axis.
        scale: As `shift`.
        energy: Sum of squares of the whole, a scalar; the caller decides when to wait for it.
    """

    x: Tensor
    shift: Tensor
    scale: Tensor
    energy: Tensor

    @property
    def shape(self) -> Size:
        """Shape of the tensor."""
        return self.x.shape

    def dense(self) -> Tensor:
        """Form the tensor."""
        return (self.x - self.shift).mul_(self.scale)

    def permute(self, order: Sequence[int]) -> "Standardised":
        """Return the tensor with its axes in this order."""
        return Standardised(self.x.permute(*order), self.shift.permute(*order), self.scale.permute(*order), self.energy)

    def mode_product(self, matrix: Tensor, mode: int) -> Tensor:
        """Contract axis `mode` with the rows of `matrix` [n_mode, k]; as `tuckprop.linalg.modes.mode_product`.

        Reads `x` once and forms nothing of its size, unless shift and scale vary along `mode` and another axis both.
        """
        sizes = self.scale.shape
        if sizes[mode] == 1:
            product = mode_product(self.x, matrix, mode)
            sums = _along(matrix.sum(0), mode, product.dim())
            return product.addcmul_(self.shift, sums, value=-1).mul_(self.scale)
        if self.scale.numel() != sizes[mode]:
            return mode_product(self.dense(), matrix, mode)
        weighted = matrix * self.scale.reshape(-1, 1)
        offset = self.shift.reshape(1, -1) @ weighted
        return mode_product(self.x, weighted, mode).sub_(_along(offset, mode, len(sizes)))


def _along(values: Tensor, mode: int, dims: int) -> Tensor:
    return values.reshape([-1 if axis == mode else 1 for axis in range(dims)])
