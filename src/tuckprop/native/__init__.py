"""Kernels in C for passes over large tensors that PyTorch's operations make several of.

They are compiled on first use, in seconds, where there is a C compiler, and serve float32 on a CPU. Wherever they do
not serve, PyTorch's operations compute the same: nothing depends on them but time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuckprop.native._build import library
from tuckprop.native._call import kernel, window_sizes
from tuckprop.native.chain import chained_products
from tuckprop.native.convolution import (
    MOST_TAPS,
    depthwise,
    depthwise_input,
    depthwise_weight,
    winograd,
    winograd_input,
    winograd_weight,
)
from tuckprop.native.eigen import leading_pairs, leading_values

# Elements of the widest vector that a kernel works with.
LANES = 16

# From this size on a Gram matrix is worth a copy of what it is made from. Below the other one it takes one position, or
# as many as a vector has.
_WIDE = 256
_NARROW = 32

# Where rows end within a vector, those sizes are smaller, unless rows have so many positions.
_RAGGED_WIDE = 96
LONG = 256


def available(device: torch.device) -> bool:
    """Say whether there are kernels for this device: a CPU, where a compiler was found."""
    return device.type == "cpu" and library() is not None


def serves(x: Tensor) -> bool:
    """Say whether the kernels take tensors such as `x`: float32 on a CPU, and a compiler was found."""
    return x.dtype == torch.float32 and available(x.device)


def reads(x: Tensor) -> bool:
    """Say whether the kernels that take bfloat16 too serve `x`: a product's stack, `clamp` and `gate`."""
    return x.dtype in {torch.float32, torch.bfloat16} and available(x.device)


def clamp(x: Tensor, y: Tensor, low: float, high: float | None) -> Tensor:
    """Write `x` clamped into `y`, and return one bit an element: whether it lies between the bounds, or is NaN.

    Args:
        x: float32 or bfloat16 [n], contiguous.
        y: Likewise; may be `x`.
        low: Lower bound, which the dtype has a number for.
        high: Upper bound, likewise, or None for none.

    Returns:
        uint8 [ceil(n / 8)], for `gate`.
    """
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.uint8, device="cpu")
    name = ("clamp_below" if high is None else "clamp_both") + _suffix(x)
    kernel(name)(x.data_ptr(), y.data_ptr(), bits.data_ptr(), x.numel(), low, 0.0 if high is None else high)
    return bits


def gate(grad: Tensor, bits: Tensor, out: Tensor) -> None:
    """Write `grad` where its bit is set, and zero elsewhere, into `out`.

    Args:
        grad: float32 or bfloat16 [n], contiguous.
        bits: From `clamp`.
        out: Like `grad`; may be `grad`.
    """
    kernel("gate" + _suffix(grad))(grad.data_ptr(), out.data_ptr(), bits.data_ptr(), grad.numel())


class Rows(NamedTuple):
    """What is done to each row of a tensor before it is encoded: `(x - shift) scale`.

    Attributes:
        shift: float32 [m], contiguous, of m rows; the first one again after the last.
        scale: Likewise.
        positions: Elements of a row.
    """

    shift: Tensor
    scale: Tensor
    positions: int


def encode(
    x: Tensor,
    out: Tensor,
    codes: Tensor,
    bits: int,
    reach: float,
    offset: float,
    levels: Tensor | None = None,
    rows: Rows | None = None,
) -> float:
    """Write `codes` at the cell of each element, packed, into `out`; 256 cells cut -reach..reach, and go on beyond.

    Args:
        x: float32 or bfloat16, dense in memory, in whose order its elements are taken.
        out: uint8 [ceil(n * bits / 8)]; the first of the codes in a byte in its lowest bits.
        codes: uint8 [256], below 2 ** bits; with 8 bits, each cell's own number.
        bits: 1, 2, 4 or 8.
        reach: As said.
        offset: Cell of 0, with the place in it.
        levels: float32 [2 ** bits], or None.
        rows: What is done to `x` first, or None for nothing.

    Returns:
        The sum of squares of what is encoded minus `levels[code]`; 0 without levels.
    """
    scale = len(codes) / (2 * reach)
    values = None if levels is None else levels.data_ptr()
    shift, times, positions, cycle = None, None, 1, 1
    if rows is not None:
        shift, times, positions = rows.shift.data_ptr(), rows.scale.data_ptr(), rows.positions
        cycle = len(rows.shift)
    lost: float = kernel("encode")(
        *(x.data_ptr(), out.data_ptr(), x.numel(), codes.data_ptr(), bits, reach, scale, offset, values),
        *(x.dtype == torch.bfloat16, shift, times, positions, cycle),
    )
    return lost


def decode(packed: Tensor, levels: Tensor, bits: int, out: Tensor) -> None:
    """Write the level of each code into `out`.

    Args:
        packed: From `encode`.
        levels: float32 [2 ** bits].
        bits: As there.
        out: float32 [n], contiguous.
    """
    kernel("decode")(packed.data_ptr(), out.data_ptr(), out.numel(), levels.data_ptr(), bits)


def scale(grad: Tensor, packed: Tensor, levels: Tensor, bits: int, out: Tensor) -> None:
    """Write `grad` times the level of its code into `out`.

    Args:
        grad: float32 [n], contiguous.
        packed: From `encode`.
        levels: float32 [2 ** bits].
        bits: As there.
        out: Like `grad`; may be `grad`.
    """
    kernel("scale")(grad.data_ptr(), out.data_ptr(), packed.data_ptr(), grad.numel(), levels.data_ptr(), bits)


def max_pool(x: Tensor, y: Tensor, taps: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the largest element of each window into `y` and the number of its tap into `taps`.

    Args:
        x: float32 [.., h, v], contiguous.
        y: float32 [.., m, n], contiguous.
        taps: uint8, as many; the first of equals, the last NaN, taps counted row by row, at most 255 of them.
        window: Kernel, stride, padding and dilation, each for rows and columns; every window meets the plane.
    """
    kernel("max_pool")(x.data_ptr(), y.data_ptr(), taps.data_ptr(), *_window(x, y, window))


def max_unpool(grad: Tensor, taps: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the sum of the gradients of the outputs that an element is the largest of, or zero, into `out`.

    Args:
        grad: float32 [.., m, n], contiguous.
        taps: From `max_pool`.
        out: float32 [.., h, v], contiguous.
        window: As there.
    """
    kernel("max_unpool")(grad.data_ptr(), taps.data_ptr(), out.data_ptr(), *_window(out, grad, window))


def batch_norm(
    x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the batch norm of `x` by its own statistics into `y`.

    Args:
        x: float32 [b, c, s..], contiguous.
        y: Likewise; may be `x`.
        weight: float32 [c], contiguous, or None for ones.
        bias: Likewise, or None for zeros.
        eps: Added to the variance.

    Returns:
        Mean, 1 / sqrt(variance + eps), and variance (over all values, not one less), each [c].
    """
    mean, invstd, var = (torch.empty(x.shape[1], device="cpu") for _ in range(3))
    pointers = [None if t is None else t.data_ptr() for t in (x, y, weight, bias, mean, invstd, var)]
    kernel("batch_norm")(*pointers, *_planes(x), eps)
    return mean, invstd, var


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the input of `batch_norm` into `out`, and return those of weight and bias [c].

    Args:
        grad: Gradient of the output, float32 [b, c, s..], contiguous.
        x: The input, likewise.
        weight: float32 [c], contiguous, or None for ones.
        mean: float32 [c], as returned by `batch_norm`.
        invstd: Likewise.
        out: Like `grad`; may be `grad`; None where it is not wanted.
    """
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    tensors = (grad, x, weight, mean, invstd, out, grad_weight, grad_bias)
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    kernel("batch_norm_backward")(*pointers, *_planes(x))
    return grad_weight, grad_bias


def batch_norm_factored(
    grad: Tensor, core: Tensor, factor: Tensor, scale: Tensor, out: Tensor | None, own: bool
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the input of a batch norm whose normalised input has a factor of its channels into `out`.

    Args:
        grad: G, gradient of the output, float32 [b, c, s..], contiguous; at least 16 positions.
        core: float32 [b, k, s..], contiguous.
        factor: U, float32 [c, k], contiguous: the normalised input is U times the core.
        scale: What stands before G in the gradient, float32 [c], contiguous.
        out: Like `grad`; may be `grad`; None where it is not wanted.
        own: Whether the statistics are those of the batch.

    Returns:
        The sums of G times the normalised input, and of G, each [c].
    """
    products, sums = torch.empty_like(scale), torch.empty_like(scale)
    tensors = (grad, core, factor, scale, out, products, sums)
    samples, channels, positions = _planes(grad)
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    kernel("batch_norm_factored")(*pointers, own, samples, channels, factor.shape[1], positions)
    return products, sums


def gram(stack: Tensor) -> Tensor | None:
    """Return the sum of `X X^T` over the matrices X of a stack, or None where these are too small to be worth it.

    Args:
        stack: float32 [samples, size, positions], contiguous.

    Returns:
        [size, size].
    """
    samples, size, positions = stack.shape
    result = stack.new_empty(size, size)
    if size < _WIDE and positions == 1 and size % LANES == 0:
        kernel("gram_columns")(stack.data_ptr(), result.data_ptr(), samples, size)
    elif _reads_rows(size, positions):
        kernel("gram_rows")(stack.data_ptr(), result.data_ptr(), samples, size, positions)
    elif size >= _NARROW:
        kernel("gram_panels")(stack.data_ptr(), result.data_ptr(), samples, size, positions)
    else:
        return None
    return result


def _reads_rows(size: int, positions: int) -> bool:
    """Say whether the rows of matrices [size, positions] are best read as they lie."""
    if positions % LANES == 0:
        return size < _WIDE
    return positions >= LANES and (size <= _NARROW or (size < _RAGGED_WIDE and positions >= LONG))


def cross(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of `X Z^T` over the matrices X and Z of two stacks.

    Args:
        left: float32 [samples, n, positions], contiguous; at least 16 positions.
        right: float32 [samples, k, positions], contiguous.

    Returns:
        [n, k].
    """
    result = left.new_empty(left.shape[1], right.shape[1])
    sizes = (left.shape[0], left.shape[1], right.shape[1], left.shape[2])
    kernel("cross_rows")(left.data_ptr(), right.data_ptr(), result.data_ptr(), *sizes)
    return result


# Of a stack of matrices [samples, n, positions].
StackSizes = tuple[int, int, int]


def product(
    stack: Tensor,
    sizes: StackSizes,
    matrix: Tensor,
    out: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Write `matrix^T X + bias` for each X of a stack into `out`, or add it to `scale` times what `out` has.

    Args:
        stack: float32 or bfloat16, contiguous, of the elements of [samples, n, positions], whatever its axes.
        sizes: Those three; with one position, `scale` and `bias` are None.
        matrix: float32 [n, k], any strides.
        out: float32, contiguous, of the elements of [samples, k, positions], whatever its axes.
        scale: float32 [k], contiguous, or None, for which `out` is not read.
        bias: float32 [k], contiguous, or None for zeros.
    """
    _product(stack, sizes, matrix, out, scale, bias, measures=False)


def measured_product(stack: Tensor, sizes: StackSizes, matrix: Tensor, out: Tensor) -> float:
    """Do what `product` does, and return the sum of squares of the stack, which is read once for both.

    Args:
        stack: As there.
        sizes: As there.
        matrix: As there.
        out: As there.
    """
    return _product(stack, sizes, matrix, out, None, None, measures=True)


def _product(
    stack: Tensor,
    sizes: StackSizes,
    matrix: Tensor,
    out: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    measures: bool,
) -> float:
    samples, size, positions = sizes
    pointers = (stack.data_ptr(), matrix.data_ptr(), *matrix.stride())
    numbers = (stack.dtype == torch.bfloat16, measures, samples, size, matrix.shape[1])
    if positions == 1:
        return float(kernel("product_columns")(*pointers, out.data_ptr(), *numbers))
    added = (None if t is None else t.data_ptr() for t in (bias, scale))
    return float(kernel("product_rows")(*pointers, out.data_ptr(), *added, *numbers, positions))


def _suffix(x: Tensor) -> str:
    return "_halves" if x.dtype == torch.bfloat16 else ""


def _planes(x: Tensor) -> tuple[int, int, int]:
    """Return samples, channels and positions of `x` [b, c, s..]."""
    return x.shape[0], x.shape[1], x.numel() // (x.shape[0] * x.shape[1])


def _window(x: Tensor, y: Tensor, window: Sequence[Sequence[int]]) -> tuple[int, Any]:
    return x.numel() // (x.shape[-1] * x.shape[-2]), window_sizes(x, y, window)


__all__ = [
    "LANES",
    "LONG",
    "MOST_TAPS",
    "Rows",
    "available",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_factored",
    "chained_products",
    "clamp",
    "cross",
    "decode",
    "depthwise",
    "depthwise_input",
    "depthwise_weight",
    "encode",
    "gate",
    "gram",
    "leading_pairs",
    "leading_values",
    "max_pool",
    "max_unpool",
    "measured_product",
    "product",
    "reads",
    "scale",
    "serves",
    "winograd",
    "winograd_input",
    "winograd_weight",
]
