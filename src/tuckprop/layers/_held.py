"""Tensors that are held whatever a layer keeps: to pack one would add bytes to it, and save none.

One kind can be told when a layer is called: the output of an operation that saves its own output for backward, as ReLU,
sigmoid, tanh, exp and softmax do.
"""

from torch import Tensor

# Where PyTorch's formula of a derivative uses the result, the node of the graph has a field of such a name. It is never
# read: that would run whatever hooks are on saved tensors.
_FIELDS = ("_saved_result", "_saved_output")


def held_anyway(x: Tensor) -> bool:
    """Say whether the operation that made `x`, or the tensor that `x` is a view of, holds its memory until backward."""
    made = x._base if x._is_view() and x._base is not None else x
    return any(hasattr(type(made.grad_fn), field) for field in _FIELDS)
