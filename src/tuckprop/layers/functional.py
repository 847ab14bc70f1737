"""Functional calls that no module stands for (`F.relu`, `torch.relu`, `x.relu()`), caught by a function mode.

    with functional_savers():
        loss = model(x).sum()
    loss.backward()

Within the context, in the thread that entered it, a call of a function in the table below goes to the same saver that
the twin of its module uses. Modules that call such a function, converted or not, are covered as well.

Not covered:
- calls from C++: inside `F.scaled_dot_product_attention`, `nn.MultiheadAttention`'s and `nn.TransformerEncoderLayer`'s
  fused paths, RNNs, and whatever TorchScript or a CUDA graph runs;
- `torch.compile`: inside a compiled region the plain functions run, and the compiler decides what is kept;
- tensor subclasses, `torch.func` transforms, and calls with `out=`: the plain functions run;
- arithmetic that amounts to an activation (`x * torch.sigmoid(x)`, `x.clamp(min=0)`): only the sigmoid is known.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tuckprop.layers import adaptive_max_pool, average_pool, dropout, pool, rectifier, smooth
from tuckprop.layers.smooth import DERIVATIVE_BITS

Saver = Callable[..., Any]


_RECTIFIERS: dict[Any, Saver] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), rectifier.relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), partial(rectifier.relu, inplace=True)),
    F.relu6: rectifier.relu6,
    F.hardtanh: rectifier.hardtanh,
    F.hardtanh_: partial(rectifier.hardtanh, inplace=True),
    F.leaky_relu: rectifier.leaky_relu,
    F.leaky_relu_: partial(rectifier.leaky_relu, inplace=True),
    F.threshold: rectifier.threshold,
    torch.threshold_: partial(rectifier.threshold, inplace=True),
    F.hardsigmoid: rectifier.hardsigmoid,
    **dict.fromkeys((F.hardshrink, torch.hardshrink, Tensor.hardshrink), rectifier.hardshrink),
    F.softshrink: rectifier.softshrink,
}
_POOLS: dict[Any, Saver] = {
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), pool.max_pool1d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), pool.max_pool2d),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), pool.max_pool3d),
    F.avg_pool1d: average_pool.avg_pool1d,
    F.avg_pool2d: average_pool.avg_pool2d,
    F.avg_pool3d: average_pool.avg_pool3d,
    F.adaptive_avg_pool1d: average_pool.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d: average_pool.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d: average_pool.adaptive_avg_pool3d,
    F.adaptive_max_pool1d: adaptive_max_pool.adaptive_max_pool1d,
    F.adaptive_max_pool2d: adaptive_max_pool.adaptive_max_pool2d,
    F.adaptive_max_pool3d: adaptive_max_pool.adaptive_max_pool3d,
}
_DROPOUTS: dict[Any, Saver] = {
    F.dropout: dropout.dropout,
    torch.dropout: lambda input, p, train: dropout.dropout(input, p, train),
    F.alpha_dropout: dropout.alpha_dropout,
    torch.alpha_dropout: lambda input, p, train: dropout.alpha_dropout(input, p, train),
}
_EXACT = _RECTIFIERS | _POOLS | _DROPOUTS
_SMOOTH: dict[Any, Saver] = {
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), smooth.sigmoid),
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), smooth.tanh),
    F.gelu: smooth.gelu,
    F.silu: smooth.silu,
    F.mish: smooth.mish,
    F.hardswish: smooth.hardswish,
    F.softplus: smooth.softplus,
    F.logsigmoid: smooth.logsigmoid,
    F.elu: smooth.elu,
    F.elu_: partial(smooth.elu, inplace=True),
    **dict.fromkeys((F.selu, torch.selu), smooth.selu),
    **dict.fromkeys((F.selu_, torch.selu_), partial(smooth.selu, inplace=True)),
    **dict.fromkeys((F.celu, torch.celu), smooth.celu),
    **dict.fromkeys((F.celu_, torch.celu_), partial(smooth.celu, inplace=True)),
    F.softsign: smooth.softsign,
    F.tanhshrink: smooth.tanhshrink,
}


class FunctionalSavers(TorchFunctionMode):
    """A context in which functions in a table are computed by their savers."""

    def __init__(self, table: Mapping[Any, Saver]) -> None:
        """Take the table, from PyTorch's functions to savers with the same arguments."""
        super().__init__()
        self._table = table

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the saver of `func`, or `func` itself."""
        kwargs = kwargs or {}
        call = func if "out" in kwargs else self._table.get(func, func)
        return call(*args, **kwargs)


def functional_savers(bits: int = DERIVATIVE_BITS) -> FunctionalSavers:
    """Return a context in which functional calls keep as little as the twins of their modules do.

    Args:
        bits: 1, 2, 4 or 8: kept of the derivative of a smooth activation.

    Returns:
        The context; it can be entered again.
    """
    return FunctionalSavers(_EXACT | {function: partial(saver, bits=bits) for function, saver in _SMOOTH.items()})


def exact_functional_savers() -> FunctionalSavers:
    """Return a context as `functional_savers` does, for those functions alone whose gradient stays exact."""
    return FunctionalSavers(_EXACT)
