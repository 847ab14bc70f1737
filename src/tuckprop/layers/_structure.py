"""Arguments or results of a call, taken apart: the tensors in them, and all the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tuckprop.errors import UnsupportedError


@dataclass(frozen=True)
class Structure:
    """Arguments or results without their tensors.

    Attributes:
        others: What there is, with None where there was a tensor.
        places: Where the tensors were.
        spec: How all of it hangs together.
    """

    others: tuple[Any, ...]
    places: tuple[int, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, value: Any) -> tuple["Structure", list[Tensor]]:
        """Take a value apart."""
        leaves, spec = tree_flatten(value)
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(others, places, spec), [leaves[i] for i in places]

    def refuse_hidden(self, name: str, what: str) -> None:
        """Check that no tensor is out of sight, in an object that PyTorch does not take apart.

        Raises:
            UnsupportedError: One is.
        """
        for other in self.others:
            if any(isinstance(value, Tensor) for value in getattr(other, "__dict__", {}).values()):
                raise UnsupportedError(
                    f"{name}: expected tensors, or lists, tuples and dictionaries of them, as {what}, got a "
                    f"{type(other).__name__} with a tensor in it, whose gradient would be lost; "
                    "torch.utils._pytree.register_pytree_node tells PyTorch how to take it apart"
                )

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """Return the value with these tensors in it."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.spec)
