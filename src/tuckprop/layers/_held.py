"""Tensors that are held whatever a layer keeps: to pack one would add bytes to it, and save none.

Two kinds can be told when a layer is called: the output of an operation that saves its own output for backward, as
ReLU, sigmoid, tanh, exp and softmax do; and what the caller passed to the model, which the caller holds.
"""

from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tuckprop.layers._uncompiled import uncompiled

# Where PyTorch's formula of a derivative uses the result, the node of the graph has a field of such a name. It is never
# read: that would run whatever hooks are on saved tensors.
_FIELDS = ("_saved_result", "_saved_output")

# What callers passed to converted models. An entry lives as long as the tensor itself.
_given: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Holder(Enum):
    """Who holds a tensor until backward, whatever the layer that reads it does."""

    CALLER = "the caller"
    OPERATION = "the operation that made it"


def holder(x: Tensor) -> Holder | None:
    """Return who holds the memory of `x`, or of what `x` is a view of, besides the layer that reads it; or None."""
    made = x._base if x._is_view() and x._base is not None else x
    if made.grad_fn is None:
        return Holder.CALLER if x in _given or made in _given else None
    return Holder.OPERATION if _keeps_its_output(type(made.grad_fn)) else None


@lru_cache(maxsize=1024)
def _keeps_its_output(node: type) -> bool:
    """Say whether nodes of the graph of this type hold what their operation returned."""
    return any(hasattr(node, field) for field in _FIELDS)


class NoteInputs:
    """A forward pre-hook of a converted model that notes the tensors the caller holds."""

    @uncompiled
    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Note every tensor among the arguments that no operation of a graph has made."""
        if torch.is_grad_enabled():
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and leaf.grad_fn is None:
                    _given[leaf] = None
