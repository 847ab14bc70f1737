"""Mode-n products and mode-n Gram matrices, without a copy where the memory layout allows it.

The mode-n unfolding of a tensor of shape [n_1, ..., n_d] is the matrix of its mode-n fibres, [n_n, prod of the others].
A contiguous tensor seen from mode n is a stack [before, n, after]; both functions work on that view.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from tuckprop import gpu, native
from tuckprop.linalg.energy import sum_of_squares

# A copied slab of this many elements (4 MiB of float32) stays in cache and bounds the work memory.
_SLAB = 1 << 20

# A Gram matrix this large is worth more than one product, as it is symmetric.
_WIDE = 256

# One element moved through memory costs as much as this many operations of a large matrix product: 56 on two cores at
# 375 GFLOP/s and 27 GB/s, 24 at 150 and 25.
MOVE = 32

# Modes of so many positions together have a Gram matrix in common that is cheaper than one each, and a product.
JOINT = 64

# Compiled products are faster at stacks of products, and at matrices with a side of at most so many; they multiply rows
# by matrices of two columns and so many elements at least. Smaller tensors are not worth a call.
NARROW = 64
_TINY_PRODUCT = 16
_LEAST_PRODUCT = 1 << 13

# Longer sums than so many products are a library's, which cuts them: its rounding errors are smaller.
DEEP = 1 << 12

# More than so many products of matrices of so many elements are done as one.
_FEW = 64
_TINY = 100


def product_cost(elements: float, before: int, after: int) -> float:
    """Return the cost of a mode product, in operations of a large matrix product: its arithmetic and its bytes.

    Args:
        elements: Of the tensor.
        before: Size of the axis.
        after: Size that it has afterwards.
    """
    return 2 * elements * after + MOVE * elements * (1 + after / before)


@lru_cache(maxsize=4096)
def stacked(shape: Sequence[int], mode: int) -> tuple[int, int, int]:
    """Return the sizes of the stack [before, n, after] that a contiguous tensor of this shape is, seen from a mode."""
    return prod(shape[:mode]), shape[mode], prod(shape[mode + 1 :])


def mode_product(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Contract axis `mode` of `x` with the rows of `matrix`: `y[.., k, ..] = sum_i x[.., i, ..] matrix[i, k]`.

    Args:
        x: Shape [n_1, ..., n_d].
        matrix: Shape [n_mode, k].
        mode: The axis of `x` to contract.

    Returns:
        Shape [n_1, ..., k, ..., n_d], contiguous, in the dtype of `matrix`: that of `x`, or float32 where `x` is in
        half precision, of which no copy is made where a kernel serves.
    """
    before, size, after = stacked(x.shape, mode)
    shape = [*x.shape[:mode], matrix.shape[1], *x.shape[mode + 1 :]]
    if _served(x, matrix, before, after):
        y = matrix.new_empty(shape)
        native.product(x, (before, size, after), matrix, y)
        return y
    x = x.to(matrix.dtype)
    if _served_on_a_gpu(x, matrix):
        from tuckprop.gpu import mode_product as kernels

        if kernels.worth(x.numel(), size, after, matrix.shape[1]):
            y = x.new_empty(shape)
            kernels.product(x.view(before, size, after), matrix, y.view(before, matrix.shape[1], after))
            return y
    if after == 1:
        return (x.reshape(before, size) @ matrix).reshape(shape)
    if before == 1:
        return (matrix.T @ x.reshape(size, after)).reshape(shape)
    if _many_tiny(matrix, before, after):
        # Products of many matrices this small do not pay for their calls; one with the identity multiplied in does.
        identity = torch.eye(after, dtype=matrix.dtype, device=matrix.device)
        rows = matrix.reshape(-1).view(matrix.shape)  # One column counts as contiguous with strides that kron refuses.
        return (x.reshape(before, size * after) @ torch.kron(rows, identity)).reshape(shape)
    return torch.bmm(matrix.T.expand(before, -1, -1), x.reshape(before, size, after)).reshape(shape)


def measured_product(x: Tensor, matrix: Tensor, mode: int) -> tuple[Tensor, float]:
    """Return `mode_product(x, matrix, mode)` and the energy of `x`, which is read once for both where a kernel serves.

    Args:
        x: Shape [n_1, ..., n_d], on a CPU.
        matrix: Shape [n_mode, k].
        mode: The axis of `x` to contract.

    Returns:
        As there; the sum of squares of `x`.
    """
    before, size, after = stacked(x.shape, mode)
    if not _served(x, matrix, before, after):
        x = x.to(matrix.dtype)
        return mode_product(x, matrix, mode), float(sum_of_squares(x))
    y = matrix.new_empty([*x.shape[:mode], matrix.shape[1], *x.shape[mode + 1 :]])
    return y, native.measured_product(x, (before, size, after), matrix, y)


def _served(x: Tensor, matrix: Tensor, before: int, after: int) -> bool:
    """Say whether compiled kernels multiply the stack `x` [before, n, after] by a matrix [n, k], and faster."""
    if x.numel() < _LEAST_PRODUCT or not native.reads(x):
        return False
    worth = pays(matrix.shape[0], matrix.shape[1], before, after)
    if after > 1 and after % native.LANES:
        worth = worth and not _many_tiny(matrix, before, after)
    return worth and x.is_contiguous() and matrix.dtype == torch.float32 and not _differentiates(x, matrix)


def pays(size: int, rank: int, before: int, after: int) -> bool:
    """Say whether compiled products of a stack [before, size, after] with a matrix [size, rank] outdo a library's."""
    narrow = min(size, rank) <= NARROW
    if after == 1:
        return narrow and rank > 1 and size * rank >= _TINY_PRODUCT
    # Where one product does all, a library is as fast once the matrix is large.
    return size <= DEEP and (narrow or before > 1)


def _served_on_a_gpu(x: Tensor, matrix: Tensor) -> bool:
    """Say whether kernels in Triton take a tensor and a matrix [n, k]."""
    if not x.is_cuda:
        return False
    alike = x.dtype == matrix.dtype == torch.float32 and x.is_contiguous()
    return alike and gpu.serves(x) and not _differentiates(x, matrix)


def _differentiates(x: Tensor, matrix: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or matrix.requires_grad)


def _many_tiny(matrix: Tensor, before: int, after: int) -> bool:
    """Say whether products of a matrix [n, k] with stacks [before, n, after] are done as one of a larger matrix."""
    return before > _FEW and max(matrix.shape) * after <= _TINY


def expand(core: Tensor, factor: Tensor, mode: int) -> Tensor:
    """Multiply axis `mode` of `core`, of size k, by `factor` [n, k]: the inverse direction of `mode_product`."""
    return mode_product(core, factor.T, mode)


def add_expanded(total: Tensor, core: Tensor, factor: Tensor, mode: int) -> None:
    """Add `expand(core, factor, mode)` to the contiguous tensor `total`, without forming it."""
    before, size, after = stacked(total.shape, mode)
    rank = core.shape[mode]
    if after > 1 and native.serves(total) and total.is_contiguous() and _served(core, factor.T, before, after):
        ones = factor.new_ones(size)
        native.product(core, (before, rank, after), factor.T, total, ones)
    elif after == 1:
        total.view(before, size).addmm_(core.reshape(before, rank), factor.T)
    elif before == 1:
        total.view(size, after).addmm_(factor, core.reshape(rank, after))
    elif _many_tiny(factor, before, after):
        total.add_(expand(core, factor, mode))
    else:
        total.view(before, size, after).baddbmm_(factor.expand(before, -1, -1), core.reshape(before, rank, after))


def mode_gram(x: Tensor, mode: int) -> Tensor:
    """Return the Gram matrix of the mode-n unfolding, `A_(n) A_(n)^T`, of shape [n, n].

    The unfolding itself is never formed: the first and last modes need no copy, a middle one is copied slab by slab.
    """
    before, size, after = stacked(x.shape, mode)
    found = _compiled_gram(x, before, after)
    if found is not None:
        return found
    if before == 1:
        return gram_of_rows(x.reshape(size, after))
    if after == 1:
        return gram_of_rows(x.reshape(before, size).T)
    stack = x.reshape(before, size, after)
    if after >= 2 * size:
        # The stack of small Gram matrices is smaller than half of x.
        return torch.bmm(stack, stack.transpose(1, 2)).sum(0)
    slabs = -(-x.numel() // _SLAB)
    step = max(1, -(-before // slabs))  # Of about the same size: products with a small rest are slow.
    gram: Tensor | None = None
    for start in range(0, before, step):
        part = gram_of_rows(stack[start : start + step].transpose(0, 1).reshape(size, -1))
        gram = part if gram is None else gram.add_(part)
    assert gram is not None
    return gram


def _compiled_gram(x: Tensor, before: int, after: int) -> Tensor | None:
    """Return the Gram matrix [n, n] of `x` seen as a stack [before, n, after], or None where no kernel serves."""
    if not x.is_contiguous() or not native.serves(x):
        return None
    return native.gram(x.view(before, -1, after))


def gram_of_rows(rows: Tensor) -> Tensor:
    """Return `rows @ rows.T`; of a large result, half is computed, or five eighths, as it is symmetric.

    Args:
        rows: Shape [n, p], any strides.

    Returns:
        Shape [n, n].
    """
    size = len(rows)
    length = rows.shape[1]
    found = _compiled_gram(rows, 1, length) if rows.is_contiguous() else _compiled_gram(rows.T, length, 1)
    if found is not None:
        return found
    if size < _WIDE:
        return rows @ rows.T
    half = size // 2
    gram = rows.new_empty(size, size)
    gram[:half, :half] = gram_of_rows(rows[:half])
    gram[half:, half:] = gram_of_rows(rows[half:])
    torch.mm(rows[half:], rows[:half].T, out=gram[half:, :half])
    gram[:half, half:] = gram[half:, :half].T
    return gram


def trailing_grams(x: Tensor) -> dict[int, Tensor]:
    """Return the Gram matrices of the last modes from that of all of them together, where that is small.

    One product that needs no copy of `x` stands for one a mode that does:
    `A_(h) A_(h)^T [h, h'] = sum_w J[h w, h' w]` with J the Gram matrix of the modes h and w together.

    Args:
        x: Shape [n_1, ..., n_d], contiguous.

    Returns:
        By mode, [n, n]; empty where less than two modes are small enough.
    """
    first, joint = x.dim(), 1
    while first > 0 and joint * x.shape[first - 1] <= JOINT:
        first -= 1
        joint *= x.shape[first]
    modes = range(first, x.dim())
    if sum(x.shape[mode] > 1 for mode in modes) < 2:
        return {}
    together = gram_of_rows(x.reshape(-1, joint).T).reshape(*x.shape[first:], *x.shape[first:])
    count = len(modes)
    found = {}
    for axis, mode in enumerate(modes):
        # The sum over equal subscripts of all other modes, one after the other from the last.
        gram, left = together, count
        for other in reversed([a for a in range(count) if a != axis]):
            gram, left = gram.diagonal(dim1=other, dim2=left + other).sum(-1), left - 1
        found[mode] = gram
    return found
