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
_builtin = torch._C._nn


def _exact() -> dict[Any, Saver]:
    """Return the functions whose gradient stays exact, with their savers."""
    in_place_relu = partial(rectifier.relu, inplace=True)
    table: dict[Any, Saver] = dict.fromkeys((F.relu, torch.relu, Tensor.relu), rectifier.relu)
    table |= dict.fromkeys((torch.relu_, Tensor.relu_), in_place_relu)
    table |= {
        F.relu6: rectifier.relu6,
        F.hardtanh: rectifier.hardtanh,
        F.hardtanh_: partial(rectifier.hardtanh, inplace=True),
        F.leaky_relu: rectifier.leaky_relu,
        F.leaky_relu_: partial(rectifier.leaky_relu, inplace=True),
        F.threshold: rectifier.threshold,
        F.threshold_: partial(rectifier.threshold, inplace=True),
        F.hardsigmoid: rectifier.hardsigmoid,
        F.hardshrink: rectifier.hardshrink,
        F.softshrink: rectifier.softshrink,
        F.dropout: dropout.dropout,
        torch.dropout: _dropout_of_torch,
        F.alpha_dropout: dropout.alpha_dropout,
        F.max_pool1d: pool.max_pool1d,
        F.max_pool2d: pool.max_pool2d,
        F.max_pool3d: pool.max_pool3d,
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
    return table


def _dropout_of_torch(input: Tensor, p: float, train: bool) -> Tensor:
    return dropout.dropout(input, p, train)


def _few_bit(bits: int) -> dict[Any, Saver]:
    """Return the functions whose derivative is kept in `bits` bits, with their savers."""
    plain: dict[Any, Saver] = dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), smooth.sigmoid)
    plain |= dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), smooth.tanh)
    plain |= {
        F.gelu: smooth.gelu,
        F.silu: smooth.silu,
        F.mish: smooth.mish,
        F.hardswish: smooth.hardswish,
        F.softplus: smooth.softplus,
        F.logsigmoid: smooth.logsigmoid,
        F.elu: smooth.elu,
        F.elu_: partial(smooth.elu, inplace=True),
        F.selu: smooth.selu,
        F.selu_: partial(smooth.selu, inplace=True),
        F.celu: smooth.celu,
        F.celu_: partial(smooth.celu, inplace=True),
        F.softsign: smooth.softsign,
        F.tanhshrink: smooth.tanhshrink,
    }
    return {function: partial(saver, bits=bits) for function, saver in plain.items()}


class FunctionalSavers(TorchFunctionMode):
    """A context in which functions in a table are computed by their savers."""

    def __init__(self, table: Mapping[Any, Saver]) -> None:
        """Take the table, from PyTorch's functions to savers with the same arguments."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = table

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the saver of `func`, or `func` itself."""
        return self._table.get(func, func)(*args, **(kwargs or {}))


def functional_savers(bits: int = DERIVATIVE_BITS) -> FunctionalSavers:
    """Return a context in which functional calls keep as little as the twins of their modules do.

    Args:
        bits: 1, 2, 4 or 8: kept of the derivative of a smooth activation.

    Returns:
        The context; it can be entered again.
    """
    return FunctionalSavers(_exact() | _few_bit(bits))


def exact_functional_savers() -> FunctionalSavers:
    """Return a context as `functional_savers` does, for those functions alone whose gradient stays exact."""
    return FunctionalSavers(_exact())
