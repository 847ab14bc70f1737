"""The kernels of convolutions."""

from collections.abc import Sequence

from torch import Tensor

from tuckprop.native._call import kernel, window_sizes

# Taps of a depthwise kernel, at most; as in depthwise.c.
MOST_TAPS = 121


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the depthwise convolution into `y`.

    Args:
        x: float32 [b, c, h, v], contiguous.
        weight: float32 [c, 1, k, l], contiguous; at most MOST_TAPS taps.
        bias: float32 [c], or None.
        y: float32 [b, c, m, n], contiguous.
        window: Kernel, stride, padding and dilation, each for rows and columns.
    """
    pointer = None if bias is None else bias.data_ptr()
    sizes = window_sizes(x, y, window)
    kernel("depthwise")(x.data_ptr(), weight.data_ptr(), pointer, y.data_ptr(), *x.shape[:2], sizes)


def depthwise_input(grad: Tensor, weight: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the gradient of the input of `depthwise` into `out` [b, c, h, v], from that of its output [b, c, m, n]."""
    sizes = window_sizes(out, grad, window)
    kernel("depthwise_input")(grad.data_ptr(), weight.data_ptr(), out.data_ptr(), *out.shape[:2], sizes)


def depthwise_weight(x: Tensor, grad: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the gradient of the weight of `depthwise` into `out` [c, 1, k, l], from input and output gradient."""
    kernel("depthwise_weight")(
        x.data_ptr(), grad.data_ptr(), out.data_ptr(), *x.shape[:2], window_sizes(x, grad, window)
    )


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, padding: Sequence[int]) -> None:
    """Write the convolution of 3 x 3 taps at stride 1 into `y`.

    Args:
        x: float32 [b, c, h, v], contiguous.
        weight: float32 [o, c, 3, 3], contiguous.
        bias: float32 [o], or None.
        y: float32 [b, o, m, n], contiguous.
        padding: Zeros before and after, of rows and of columns.
    """
    pointer = None if bias is None else bias.data_ptr()
    sizes = (len(x), weight.shape[1], weight.shape[0], *x.shape[2:], *padding)
    kernel("winograd")(x.data_ptr(), weight.data_ptr(), pointer, y.data_ptr(), *sizes)


def winograd_input(grad: Tensor, weight: Tensor, out: Tensor, padding: Sequence[int]) -> None:
    """Write the gradient of the input of `winograd` into `out` [b, c, h, v], from that of its output [b, o, m, n]."""
    sizes = (len(grad), weight.shape[1], weight.shape[0], *grad.shape[2:], *[2 - p for p in padding])
    kernel("winograd_input")(grad.data_ptr(), weight.data_ptr(), out.data_ptr(), *sizes)


def winograd_weight(x: Tensor, grad: Tensor, out: Tensor, padding: Sequence[int]) -> None:
    """Write the gradient of the weight of `winograd` into `out` [o, c, 3, 3], from input and output gradient."""
    sizes = (len(x), x.shape[1], grad.shape[1], *x.shape[2:], *padding)
    kernel("winograd_weight")(x.data_ptr(), grad.data_ptr(), out.data_ptr(), *sizes)


__all__ = [
    "MOST_TAPS",
    "depthwise",
    "depthwise_input",
    "depthwise_weight",
    "winograd",
    "winograd_input",
    "winograd_weight",
]
