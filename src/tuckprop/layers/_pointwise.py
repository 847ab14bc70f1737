"""What the savers of elementwise functions share: when to save, and one flat view of a tensor in its memory's order.

A saver works on the elements as they lie in memory, so that channels-last tensors cost no copy. The gradient is brought
into the same order, which it nearly always has already.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop.layers._ordinary import is_ordinary
from tuckprop.linalg.layout import flat, is_dense


def worth_saving(x: Tensor) -> bool:
    """Say whether a call with input `x` keeps something for backward that a saver can keep smaller.

    A saver looks at the input alone, not at `module.training`: a frozen network in eval mode passes gradients on too.
    """
    return torch.is_grad_enabled() and x.requires_grad and is_ordinary(x)


def worth_saving_in_place(x: Tensor) -> bool:
    """Say the same of a call that overwrites `x`; PyTorch's own op refuses a leaf, and shall be the one to do so."""
    return worth_saving(x) and not x.is_leaf


class Order(NamedTuple):
    """The order in which a saver has seen the elements.

    Attributes:
        shape: Shape of the tensor.
        stride: Strides of the dense tensor.
    """

    shape: Sequence[int]
    stride: Sequence[int]

    @classmethod
    def of(cls, x: Tensor) -> "Order":
        """Return the order of a dense tensor."""
        return cls(x.shape, x.stride())

    def arrange(self, grad: Tensor, owned: bool) -> tuple[Tensor, Tensor]:
        """Return a gradient's elements in this order, flat, and a tensor to write the input's gradient to.

        The two are the same memory where `grad` is owned, or has to be rearranged, which is done in the new tensor.

        Args:
            grad: Any strides.
            owned: Whether `grad` may be overwritten.

        Returns:
            The elements [n], to be read; the tensor, of `shape` and `stride`.
        """
        if is_dense(grad) and _same_order(grad, self.stride):
            return flat(grad), grad if owned else torch.empty_like(grad)
        result = torch.empty_strided(self.shape, self.stride, dtype=grad.dtype, device=grad.device)
        result.copy_(grad)
        return flat(result), result


def _same_order(x: Tensor, strides: Sequence[int]) -> bool:
    pairs = zip(x.shape, x.stride(), strides, strict=True)
    return all(size == 1 or one == other for size, one, other in pairs)
