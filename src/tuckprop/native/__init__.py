"""Kernels in C for passes over large tensors that PyTorch's operations make several of.

They are compiled on first use, in a second, where there is a C compiler, and serve float32 on a CPU. Wherever they do
not serve, PyTorch's operations compute the same: nothing depends on them but time.
"""

from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tuckprop.native._build import library

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "clamp_below": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "clamp_both": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "gate": (c_void_p, c_void_p, c_void_p, c_int64),
    "encode": (c_void_p, c_void_p, c_int64, c_void_p, c_int, c_float, c_float, c_float),
    "scale": (c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int),
    "max_pool": (c_void_p, c_void_p, c_void_p, c_int64, c_int64 * 12),
    "max_unpool": (c_void_p, c_void_p, c_void_p, c_int64, c_int64 * 12),
}


@lru_cache(maxsize=8)
def _kernel(name: str) -> Any:
    function = getattr(library(), name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def serves(x: Tensor) -> bool:
    """Say whether the kernels take tensors such as `x`: float32 on a CPU, and a compiler was found."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def clamp(x: Tensor, y: Tensor, low: float, high: float | None) -> Tensor:
    """Write `x` clamped into `y`, and return one bit an element: whether it lies between the bounds, or is NaN.

    Args:
        x: float32 [n], contiguous.
        y: Likewise; may be `x`.
        low: Lower bound.
        high: Upper bound, or None for none.

    Returns:
        uint8 [ceil(n / 8)], for `gate`.
    """
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.uint8, device="cpu")
    kernel = _kernel("clamp_below" if high is None else "clamp_both")
    kernel(x.data_ptr(), y.data_ptr(), bits.data_ptr(), x.numel(), low, 0.0 if high is None else high)
    return bits


def gate(grad: Tensor, bits: Tensor, out: Tensor) -> None:
    """Write `grad` where its bit is set, and zero elsewhere, into `out`.

    Args:
        grad: float32 [n], contiguous.
        bits: From `clamp`.
        out: Like `grad`; may be `grad`.
    """
    _kernel("gate")(grad.data_ptr(), out.data_ptr(), bits.data_ptr(), grad.numel())


def encode(x: Tensor, codes: Tensor, bits: int, reach: float, offset: float) -> Tensor:
    """Return `codes` at the cell of each element, packed; 256 cells cut -reach..reach, and go on beyond.

    Args:
        x: float32 [n], contiguous.
        codes: uint8 [256], below 2 ** bits.
        bits: 1, 2, 4 or 8.
        reach: As said.
        offset: Cell of 0, with the place in it.

    Returns:
        uint8 [ceil(n * bits / 8)], the first of the codes in a byte in its lowest bits.
    """
    packed = torch.empty(-(-x.numel() * bits // 8), dtype=torch.uint8, device="cpu")
    scale = len(codes) / (2 * reach)
    _kernel("encode")(x.data_ptr(), packed.data_ptr(), x.numel(), codes.data_ptr(), bits, reach, scale, offset)
    return packed


def scale(grad: Tensor, packed: Tensor, levels: Tensor, bits: int, out: Tensor) -> None:
    """Write `grad` times the level of its code into `out`.

    Args:
        grad: float32 [n], contiguous.
        packed: From `encode`.
        levels: float32 [2 ** bits].
        bits: As there.
        out: Like `grad`; may be `grad`.
    """
    _kernel("scale")(grad.data_ptr(), out.data_ptr(), packed.data_ptr(), grad.numel(), levels.data_ptr(), bits)


def max_pool(x: Tensor, y: Tensor, taps: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the largest element of each window into `y` and the number of its tap into `taps`.

    Args:
        x: float32 [.., h, v], contiguous.
        y: float32 [.., m, n], contiguous.
        taps: uint8, as many; the first of equals, the last NaN, taps counted row by row, at most 255 of them.
        window: Kernel, stride, padding and dilation, each for rows and columns; every window meets the plane.
    """
    _kernel("max_pool")(x.data_ptr(), y.data_ptr(), taps.data_ptr(), *_window(x, y, window))


def max_unpool(grad: Tensor, taps: Tensor, out: Tensor, window: Sequence[Sequence[int]]) -> None:
    """Write the sum of the gradients of the outputs that an element is the largest of, or zero, into `out`.

    Args:
        grad: float32 [.., m, n], contiguous.
        taps: From `max_pool`.
        out: float32 [.., h, v], contiguous.
        window: As there.
    """
    _kernel("max_unpool")(grad.data_ptr(), taps.data_ptr(), out.data_ptr(), *_window(out, grad, window))


def _window(x: Tensor, y: Tensor, window: Sequence[Sequence[int]]) -> tuple[int, Any]:
    sizes = [*x.shape[-2:], *y.shape[-2:], *[number for pair in window for number in pair]]
    return x.numel() // (x.shape[-1] * x.shape[-2]), (c_int64 * 12)(*sizes)


__all__ = ["clamp", "encode", "gate", "max_pool", "max_unpool", "scale", "serves"]
