"""How the compiled kernels are called: the types of their arguments."""

from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

from torch import Tensor

from tuckprop.native._build import library

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "clamp_below": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "clamp_both": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "clamp_below_halves": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "clamp_both_halves": (c_void_p, c_void_p, c_void_p, c_int64, c_float, c_float),
    "gate": (c_void_p, c_void_p, c_void_p, c_int64),
    "gate_halves": (c_void_p, c_void_p, c_void_p, c_int64),
    "encode": (
        *[c_void_p, c_void_p, c_int64, c_void_p, c_int, c_float, c_float, c_float, c_void_p],
        *[c_int, c_void_p, c_void_p, c_int64, c_int64],
    ),
    "decode": (c_void_p, c_void_p, c_int64, c_void_p, c_int),
    "scale": (c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int),
    "max_pool": (c_void_p, c_void_p, c_void_p, c_int64, c_int64 * 12),
    "max_unpool": (c_void_p, c_void_p, c_void_p, c_int64, c_int64 * 12),
    "batch_norm": (*[c_void_p] * 7, *[c_int64] * 3, c_double),
    "batch_norm_backward": (*[c_void_p] * 8, *[c_int64] * 3),
    "batch_norm_factored": (*[c_void_p] * 7, c_int, *[c_int64] * 4),
    "gram_rows": (c_void_p, c_void_p, c_int64, c_int64, c_int64),
    "gram_columns": (c_void_p, c_void_p, c_int64, c_int64),
    "gram_panels": (c_void_p, c_void_p, c_int64, c_int64, c_int64),
    "cross_rows": (c_void_p, c_void_p, c_void_p, *[c_int64] * 4),
    "product_rows": (c_void_p, c_void_p, c_int64, c_int64, *[c_void_p] * 3, c_int, c_int, *[c_int64] * 4),
    "product_columns": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_int, *[c_int64] * 3),
    "chain": (c_void_p, c_int, c_int64, *[c_void_p] * 8, c_int64, c_int64, c_void_p),
    "leading_pairs": (c_void_p, c_int64, c_double, c_void_p, c_void_p),
    "depthwise": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64 * 12),
    "depthwise_input": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64 * 12),
    "depthwise_weight": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64 * 12),
    "winograd": (*[c_void_p] * 4, *[c_int64] * 7),
    "winograd_input": (*[c_void_p] * 3, *[c_int64] * 7),
    "winograd_weight": (*[c_void_p] * 3, *[c_int64] * 7),
}

# Those that return a number.
_RETURNING: dict[str, Any] = {
    "encode": c_double,
    "leading_pairs": c_int64,
    "product_rows": c_double,
    "product_columns": c_double,
}


@cache
def kernel(name: str) -> Any:
    """Return the compiled function of this name; there is a library."""
    function = getattr(library(), name)
    function.argtypes, function.restype = _SIGNATURES[name], _RETURNING.get(name)
    return function


def window_sizes(x: Tensor, y: Tensor, window: Sequence[Sequence[int]]) -> Any:
    """Return what kernels ask for windows that lead from planes of `x` to planes of `y`, as they take it."""
    return (c_int64 * 12)(*x.shape[-2:], *y.shape[-2:], *[number for pair in window for number in pair])
