"""Smooth activations: a few bits an element say what the derivative was there.

Covers GELU, SiLU, Mish, Hardswish, Sigmoid, Tanh, Softplus, LogSigmoid, ELU, SELU, CELU, Softsign and Tanhshrink. The
forward is PyTorch's. For backward each element keeps the number of one of 2 ** bits levels of the derivative, those
with the least squared error for inputs from the standard normal distribution, the natural input after a normalisation.
A level is the mean of the derivative where it is used, so that the error has no bias for such inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tuckprop.errors import ConfigError
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import Order, worth_saving, worth_saving_in_place
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.linalg.bits import CODE_BITS
from tuckprop.linalg.layout import flat, is_dense
from tuckprop.linalg.levelcode import CELLS, LevelCode
from tuckprop.linalg.piecewise import best_levels, derivative, measure_cells, normal

# Bits of the derivative that are kept for each element.
DERIVATIVE_BITS = 4

# The codes tell inputs apart between -REACH and REACH.
REACH = 6.0


@dataclass(frozen=True)
class Smooth:
    """An elementwise function, with its settings.

    Attributes:
        function: Of one tensor and the settings.
        settings: Names and values, sorted.
    """

    function: Callable[..., Tensor]
    settings: tuple[tuple[str, float | str], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the function."""
        return self.function(x, **dict(self.settings))

    def into(self, x: Tensor) -> Tensor:
        """Compute the function in place."""
        return self.function(x, **dict(self.settings), inplace=True)


@lru_cache(maxsize=256)
def level_code(function: Smooth, bits: int, device: torch.device) -> LevelCode:
    """Return the best code of a function's derivative; made on first use, in some milliseconds.

    Raises:
        ConfigError: `bits` is none of 1, 2, 4 and 8.
    """
    if bits not in CODE_BITS:
        raise ConfigError(f"derivative bits: expected one of {CODE_BITS}, got {bits!r}")
    # Hooks of the caller's own, around the forward that is the first to need this code, are not meant for it.
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        levels = best_levels(measure_cells(derivative(function), normal, REACH, CELLS), 1 << bits)
    return LevelCode.of(levels, bits, device)


class FewBitGradient(torch.autograd.Function):
    """A smooth activation that keeps a few bits of its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Smooth, bits: int, in_place: bool) -> Tensor:
        """Compute the function, into `x` itself if `in_place`; keep the code of the derivative."""
        source = x if is_dense(x) else x.clone()
        ctx.code, ctx.order = level_code(function, bits, x.device), Order.of(source)
        ctx.save_for_backward(ctx.code.encode(flat(source)))
        if not in_place:
            return function(x)
        function.into(x)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient times the level of the derivative."""
        (codes,) = ctx.saved_tensors
        elements, result = ctx.order.arrange(grad, ctx.owns_gradient)
        ctx.code.multiply(elements, codes, flat(result))
        return result, None, None, None


def _smooth(x: Tensor, bits: int, inplace: bool, function: Callable[..., Tensor], **settings: float | str) -> Tensor:
    """Apply a smooth activation, or its plain op where there is nothing to keep."""
    smooth = Smooth(function, tuple(sorted(settings.items())))
    if worth_saving_in_place(x) if inplace else worth_saving(x):
        result: Tensor = FewBitGradient.apply(x, smooth, bits, inplace)
        return result
    return smooth.into(x) if inplace else smooth(x)


def gelu(input: Tensor, approximate: str = "none", *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.gelu`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, F.gelu, approximate=approximate)


def silu(input: Tensor, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.silu`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.silu)


def mish(input: Tensor, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.mish`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.mish)


def hardswish(input: Tensor, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.hardswish`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.hardswish)


def sigmoid(input: Tensor, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `torch.sigmoid`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, torch.sigmoid)


def tanh(input: Tensor, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `torch.tanh`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, torch.tanh)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.softplus`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, F.softplus, beta=beta, threshold=threshold)


def logsigmoid(input: Tensor, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.logsigmoid`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, F.logsigmoid)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.elu`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.elu, alpha=alpha)


def selu(input: Tensor, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.selu`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.selu)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.celu`, keeping `bits` bits an element."""
    return _smooth(input, bits, inplace, F.celu, alpha=alpha)


def softsign(input: Tensor, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.softsign`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, F.softsign)


def tanhshrink(input: Tensor, *, bits: int = DERIVATIVE_BITS) -> Tensor:
    """Compute `F.tanhshrink`, keeping `bits` bits an element."""
    return _smooth(input, bits, False, F.tanhshrink)


class FewBitTwin(Twin):
    """Mixin of the twins in this file.

    Attributes:
        derivative_bits: 1, 2, 4 or 8; may be set on the module.
    """

    lossy = True
    derivative_bits: int = DERIVATIVE_BITS


@twin_of(nn.GELU)
class FewBitGELU(FewBitTwin, nn.GELU):
    """`nn.GELU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return gelu(input, self.approximate, bits=self.derivative_bits)


@twin_of(nn.SiLU)
class FewBitSiLU(FewBitTwin, nn.SiLU):
    """`nn.SiLU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return silu(input, self.inplace, bits=self.derivative_bits)


@twin_of(nn.Mish)
class FewBitMish(FewBitTwin, nn.Mish):
    """`nn.Mish` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return mish(input, self.inplace, bits=self.derivative_bits)


@twin_of(nn.Hardswish)
class FewBitHardswish(FewBitTwin, nn.Hardswish):
    """`nn.Hardswish` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return hardswish(input, self.inplace, bits=self.derivative_bits)


@twin_of(nn.Sigmoid)
class FewBitSigmoid(FewBitTwin, nn.Sigmoid):
    """`nn.Sigmoid` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return sigmoid(input, bits=self.derivative_bits)


@twin_of(nn.Tanh)
class FewBitTanh(FewBitTwin, nn.Tanh):
    """`nn.Tanh` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return tanh(input, bits=self.derivative_bits)


@twin_of(nn.Softplus)
class FewBitSoftplus(FewBitTwin, nn.Softplus):
    """`nn.Softplus` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return softplus(input, self.beta, self.threshold, bits=self.derivative_bits)


@twin_of(nn.LogSigmoid)
class FewBitLogSigmoid(FewBitTwin, nn.LogSigmoid):
    """`nn.LogSigmoid` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return logsigmoid(input, bits=self.derivative_bits)


@twin_of(nn.ELU)
class FewBitELU(FewBitTwin, nn.ELU):
    """`nn.ELU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return elu(input, self.alpha, self.inplace, bits=self.derivative_bits)


@twin_of(nn.SELU)
class FewBitSELU(FewBitTwin, nn.SELU):
    """`nn.SELU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return selu(input, self.inplace, bits=self.derivative_bits)


@twin_of(nn.CELU)
class FewBitCELU(FewBitTwin, nn.CELU):
    """`nn.CELU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return celu(input, self.alpha, self.inplace, bits=self.derivative_bits)


@twin_of(nn.Softsign)
class FewBitSoftsign(FewBitTwin, nn.Softsign):
    """`nn.Softsign` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return softsign(input, bits=self.derivative_bits)


@twin_of(nn.Tanhshrink)
class FewBitTanhshrink(FewBitTwin, nn.Tanhshrink):
    """`nn.Tanhshrink` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return tanhshrink(input, bits=self.derivative_bits)
