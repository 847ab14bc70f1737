"""A core and factors in half precision: half the bytes at an error far below that of a truncation."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Outline, Packed
from tuckprop.codecs._tucker import Parts, TuckerPacked, put_back
from tuckprop.linalg.chained import expand_each
from tuckprop.linalg.lagged import waiting_costs

# Bases have entries of at most 1, which float16 rounds eight times as finely as bfloat16 would; cores have any.
_FACTOR = torch.float16
_CORE = torch.bfloat16

# A threshold closer to one loses no more than rounding may: cores lose 1e-6 of their energy, and the bases are
# orthonormal to 1e-4.
_CLOSEST = 0.99


def halves(dtype: torch.dtype, epsilon: float) -> bool:
    """Say whether the form of an activation of this dtype is kept in half precision at this threshold."""
    return dtype in {torch.float32, torch.bfloat16} and epsilon <= _CLOSEST


def rounded(factor: Tensor) -> Tensor:
    """Return a factor as it is kept: on a GPU as it is, where each later cast would be a kernel to launch."""
    return factor if factor.dtype == _FACTOR or waiting_costs(factor.device) else factor.to(_FACTOR)


class HalfPacked(Packed):
    """A `TuckerPacked` of tensors in half precision, which is multiplied in single precision at least.

    On a GPU it is multiplied in the activation's own. On a CPU a library compiles its products in bfloat16 anew for
    each size, and keeps them: as ranks come and go, that took as much memory as the activations.

    Attributes:
        form: Core and factors as they are kept.
        dtype: The activation's.
    """

    def __init__(self, form: TuckerPacked, dtype: torch.dtype) -> None:
        self.form = form
        self.dtype = dtype

    @classmethod
    def of(cls, parts: Parts, order: Sequence[int], dtype: torch.dtype) -> "HalfPacked":
        """Return the packed form of a tensor from that of the tensor with its axes in this order; see `in_order`.

        Factors that are as they are kept already stay in the memory that they have.
        """
        core, factors, ranks = parts
        kept = {axis: rounded(factor) for axis, factor in factors.items()}
        return cls(put_back((core.to(_CORE), kept, ranks), order), dtype)

    @property
    def _work(self) -> torch.dtype:
        """The dtype that it is multiplied in."""
        own = waiting_costs(self.form.core.device)
        return self.dtype if own else torch.promote_types(self.dtype, torch.float32)

    @property
    def ranks(self) -> tuple[int, ...]:
        """One per axis, for the paper's count."""
        return self.form.ranks

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the core and the factors, in half precision."""
        return self.form.tensors()

    @property
    def meta(self) -> tuple[Any, torch.dtype]:
        """That of the form, and the dtype."""
        return self.form.meta, self.dtype

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: tuple[Any, torch.dtype]) -> "HalfPacked":
        """Make the object again."""
        return cls(TuckerPacked.rebuild(tensors, meta[0]), meta[1])

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return self.form.shape

    def dense(self) -> Tensor:
        """Return the core times all factors; shape `self.shape`, in the activation's dtype."""
        return self.partial(())[0].to(self.dtype)

    def partial(self, keep: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the core times the factors outside `keep`, and the factors in `keep`."""
        core, work = self.form.core, self._work
        kept, others = dict[int, Tensor](), dict[int, Tensor]()
        for axis, factor in self.form.factors.items():
            if axis in keep:
                kept[axis] = factor.to(work)
            else:
                others[axis] = factor
        return expand_each(core, others, work), kept

    def outline(self) -> Outline:
        """Return the shapes of core and factors."""
        return self.form.outline()

    def paper_count(self) -> int:
        """Return the number of elements, whatever their bytes."""
        return self.form.paper_count()
