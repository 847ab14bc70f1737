"""Several mode products of one tensor in one call: where tensors are small, calls take longer than products."""

from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuckprop.native._call import kernel

# What the elements of a matrix may be, as the kernel knows them.
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NONE = -1


class Side(NamedTuple):
    """A matrix of a product.

    Attributes:
        size: Its rows.
        rank: Its columns.
        kind: One of `KINDS`.
        row: Elements from one row to the next.
        column: Elements from one column to the next.
        axis: Of the tensor, which it is multiplied along.
    """

    size: int
    rank: int
    kind: int
    row: int
    column: int
    axis: int


# Where there is no second matrix.
NO_SIDE = Side(1, 1, _NONE, 0, 0, 0)


class Step(NamedTuple):
    """A product with the stack [before, n, after] that a tensor is, seen from one mode or from two neighbours.

    Attributes:
        before: As there.
        after: As there.
        first: The matrix, [n, k]; of two modes that of the first.
        second: That of the second mode, or `NO_SIDE`.
    """

    before: int
    after: int
    first: Side
    second: Side = NO_SIDE


class Steps(NamedTuple):
    """Products as the kernel takes them.

    Attributes:
        length: How many.
        numbers: What each `Step` has.
        between: Elements of the memory for the results but the last.
        split: Those of the first of its two parts.
        multiplications: Of all of them.
    """

    length: int
    numbers: Any
    between: int
    split: int
    multiplications: int

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "Steps":
        """Lay them out."""
        numbers = [number for s in steps for number in (s.before, s.after, *s.first, *s.second)]
        results = [s.before * s.first.rank * s.second.rank * s.after for s in steps[:-1]]
        parts = [max(part, default=0) for part in (results[::2], results[1::2])]
        work = sum(s.before * s.first.size * s.second.size * s.first.rank * s.second.rank * s.after for s in steps)
        return cls(len(steps), (c_int64 * len(numbers))(*numbers), sum(parts), parts[0], work)


class Standard(NamedTuple):
    """What becomes of a tensor before it is contracted, `scale (x - shift)`, without being formed.

    Attributes:
        shift: float32 [n], contiguous: a number for each place along one axis.
        scale: Likewise.
        axis: Which.
    """

    shift: Tensor
    scale: Tensor
    axis: int


def chained_products(
    x: Tensor,
    steps: Steps,
    matrices: Sequence[Tensor | None],
    between: Tensor | None,
    out: Tensor,
    standard: Standard | None = None,
    measures: bool = False,
) -> tuple[float, float]:
    """Contract a tensor with the rows of a matrix after the other, and write what comes of it into `out`.

    Args:
        x: float32 or bfloat16, contiguous, of the elements of the first step's stack.
        steps: At least one; each takes what the one before it leaves.
        matrices: Two a step, on a CPU, of the kinds and strides that it says; None for `NO_SIDE`.
        between: float32, contiguous: memory for the results but the last, which are written to its two parts by turns;
            None where there is one product.
        out: float32, contiguous, with as many axes as the tensor has.
        standard: What becomes of `x` first, or None for nothing.
        measures: Whether energies are asked for.

    Returns:
        Sums of squares of `x` as it lies, which is read once for both, and of `out`; zeros where they are not asked
        for.
    """
    pointers = (c_void_p * len(matrices))(*[None if m is None else m.data_ptr() for m in matrices])
    energies = (c_double * 2)()
    memory = (None, None) if between is None else (between.data_ptr(), between.data_ptr() + 4 * steps.split)
    how: tuple[Any, ...] = (None, None, 0, 0, None)
    if standard is not None:
        shift, scale, axis = standard
        how = (shift.data_ptr(), scale.data_ptr(), axis, out.dim(), (c_int64 * out.dim())(*out.shape))
    kernel("chain")(
        *(x.data_ptr(), x.dtype == torch.bfloat16, steps.length, steps.numbers, pointers),
        *(*memory, out.data_ptr(), energies if measures else None, *how),
    )
    return energies[0], energies[1]
