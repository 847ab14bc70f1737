"""A packed tensor as the gradients' products take it: a core, and factors of some axes."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from tuckprop.codecs import Packed
from tuckprop.linalg.chained import expand_each
from tuckprop.linalg.layout import inverse


class Operands(NamedTuple):
    """A packed tensor `core x_a factors[a]`.

    Attributes:
        core: A tensor with the rank of a factor in place of the size on that factor's axis.
        factors: By axis, each [size, rank].
    """

    core: Tensor
    factors: dict[int, Tensor]

    @classmethod
    def of(cls, packed: Packed) -> "Operands":
        """Return core and factors; where there are none, the tensor is formed, once."""
        return cls(*packed.partial(range(len(packed.shape))))

    def multiplied(self, order: Sequence[int], but: int | None = None) -> Tensor:
        """Return the tensor, contiguous with its axes in this order: a kernel reads it beside a gradient.

        Args:
            order: Axes from the slowest in memory to the fastest.
            but: An axis whose factor is not multiplied out, which has its rank there, or None.
        """
        factors = {order.index(axis): factor for axis, factor in self.factors.items() if axis != but}
        return expand_each(self.core.permute(*order).contiguous(), factors)

    def dense(self, order: Sequence[int], but: int | None = None) -> Tensor:
        """Return what `multiplied` does with the tensor's own order of axes: a view."""
        return self.multiplied(order, but).permute(inverse(tuple(order)))
