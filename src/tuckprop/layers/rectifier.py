"""Activations whose derivative has two values: one bit an element says which, and the gradient is exact.

Covers ReLU, ReLU6, Hardtanh, LeakyReLU, Threshold, Hardsigmoid, Hardshrink and Softshrink. The bit is where PyTorch's
own derivative is not zero, asked of PyTorch itself, so that NaN and the edges fall on the same side. Forward and bits
are made in one pass over the input, slab by slab, or by a native kernel; backward reads the gradient and the bits, and
writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop import gpu, native
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import Order, worth_saving, worth_saving_in_place
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.linalg.bits import collect_flags, gates
from tuckprop.linalg.layout import flat, is_dense

_aten = torch.ops.aten


@dataclass(frozen=True)
class Rectifier:
    """A function with two slopes.

    Attributes:
        run: Writes the function of the first argument into the second, which may be the same tensor.
        slope: Writes a number (first argument) times PyTorch's derivative at the second argument into the third.
        low: Slope where the bit is not set, or None for no gradient at all, not even NaN of an infinite one.
        high: Slope where it is set, or None for 1.
        bounds: Lower and upper bound (None for none) of a function that clamps; native kernels serve those.
    """

    run: Callable[[Tensor, Tensor], object]
    slope: Callable[[Tensor, Tensor, Tensor], object]
    low: float | None = None
    high: float | None = None
    bounds: tuple[float, float | None] | None = None

    def flag_type(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type of the flags of elements of type `dtype`."""
        return dtype

    def forward(self, x: Tensor, y: Tensor, flags: Tensor) -> None:
        """Write the function of one slab into `y`, which may be `x`, and 1 into `flags` where the slope is high."""
        self.slope(x.new_ones(1).expand(len(x)), x, flags)
        if self.high is not None:
            flags.sign_()
        self.run(x, y)

    def backward(self, grad: Tensor, gate: Tensor, out: Tensor) -> None:
        """Write the gradient of one slab of the input, given the gates of its bits."""
        if self.low is not None:
            _aten.leaky_relu_backward.grad_input(grad, gate, self.low, False, grad_input=out)
            return
        if self.high is not None:
            grad = torch.mul(grad, self.high, out=out)
        _aten.threshold_backward.grad_input(grad, gate, 0, grad_input=out)


class _ReLU(Rectifier):
    """ReLU, whose output is zero just where its slope is: the bits can be read off it, in half the time."""

    def flag_type(self, dtype: torch.dtype) -> torch.dtype:
        """Return bool: PyTorch converts floating numbers to it fast, and compares them slowly."""
        return torch.bool

    def forward(self, x: Tensor, y: Tensor, flags: Tensor) -> None:
        """Write the output, and where it is not zero; NaN is not zero, and has slope 1 in PyTorch."""
        self.run(x, y)
        flags.copy_(y)


class OneBitGradient(torch.autograd.Function):
    """A rectifier that keeps one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectifier: Rectifier, in_place: bool) -> Tensor:
        """Compute the function, into `x` itself if `in_place`; keep the bits."""
        source = x if is_dense(x) else x.clone()
        y = source if in_place or source is not x else torch.empty_like(x)
        elements, results = flat(source), flat(y)

        def write(part: slice, flags: Tensor) -> None:
            rectifier.forward(elements[part], results[part], flags)

        ctx.kernels = None if rectifier.bounds is None else _kernels(x, rectifier.bounds)
        if rectifier.bounds is not None and ctx.kernels is not None:
            bits = ctx.kernels.clamp(elements, results, *rectifier.bounds)
        else:
            bits = collect_flags(write, x.numel(), rectifier.flag_type(x.dtype), x.device)
        ctx.rectifier, ctx.order = rectifier, Order.of(source)
        ctx.save_for_backward(bits)
        if not in_place:
            return y
        if source is not x:
            x.copy_(source)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (bits,) = ctx.saved_tensors
        elements, result = ctx.order.arrange(grad, ctx.owns_gradient)
        written = flat(result)
        if ctx.kernels is not None:
            ctx.kernels.gate(elements, bits, written)
            return result, None, None
        for part, gate in gates(bits, grad.numel(), grad.dtype):
            ctx.rectifier.backward(elements[part], gate, written[part])
        return result, None, None


def _kernels(x: Tensor, bounds: tuple[float, float | None]) -> Any:
    """Return the module whose compiled kernels clamp `x`, if there is one."""
    # PyTorch rounds bounds to the type of `x` before it clamps, and does not before it compares.
    exact = x.dtype == torch.float32 or all(b is None or _is_exact(b, x.dtype) for b in bounds)
    if exact and native.reads(x):
        return native
    if exact and gpu.serves(x):
        from tuckprop.gpu import flags

        return flags
    return None


@lru_cache(maxsize=256)
def _is_exact(bound: float, dtype: torch.dtype) -> bool:
    return float(torch.tensor(bound, dtype=dtype, device="cpu")) == bound


def _rectify(x: Tensor, rectifier: Rectifier, inplace: bool, plain: Callable[[], Tensor]) -> Tensor:
    """Apply a rectifier, or its plain op where there is nothing to keep."""
    if not (worth_saving_in_place(x) if inplace else worth_saving(x)):
        return plain()
    result: Tensor = OneBitGradient.apply(x, rectifier, inplace)
    return result


def _into(op: Any, *arguments: float) -> Callable[[Tensor, Tensor], object]:
    return lambda x, out: op(x, *arguments, out=out)


def _slope(op: Any, *arguments: Any) -> Callable[[Tensor, Tensor, Tensor], object]:
    return lambda one, x, out: op(one, x, *arguments, grad_input=out)


@lru_cache(maxsize=256)
def _threshold(threshold: float, value: float) -> Rectifier:
    return Rectifier(
        _into(_aten.threshold.out, threshold, value), _slope(_aten.threshold_backward.grad_input, threshold)
    )


@lru_cache(maxsize=256)
def clamp_rule(low: float, high: float) -> Rectifier:
    """Return the rule of `F.hardtanh` with these bounds."""
    return Rectifier(
        _into(_aten.hardtanh.out, low, high), _slope(_aten.hardtanh_backward.grad_input, low, high), bounds=(low, high)
    )


@lru_cache(maxsize=256)
def _leaky_relu(slope: float) -> Rectifier:
    # The bit is taken from the derivative with slope 0, which is 1 on the right and 0 elsewhere.
    return Rectifier(
        _into(_aten.leaky_relu.out, slope), _slope(_aten.leaky_relu_backward.grad_input, 0.0, False), low=slope
    )


@lru_cache(maxsize=256)
def _shrink(op: Any, derivative: Any, width: float) -> Rectifier:
    return Rectifier(_into(op, width), _slope(derivative, width))


@lru_cache(maxsize=8)
def _hardsigmoid(dtype: torch.dtype) -> Rectifier:
    # A sixth as PyTorch has it; its kernels compute 16-bit types in float32.
    middle = torch.zeros(1, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="cpu")
    high = _aten.hardsigmoid_backward(torch.ones_like(middle), middle)
    return Rectifier(_into(_aten.hardsigmoid.out), _slope(_aten.hardsigmoid_backward.grad_input), high=float(high))


RELU = _ReLU(
    lambda x, out: torch.clamp_min(x, 0, out=out), _slope(_aten.threshold_backward.grad_input, 0), bounds=(0.0, None)
)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Compute `F.relu`, keeping one bit an element."""
    return _rectify(input, RELU, inplace, lambda: F.relu(input, inplace))


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Compute `F.hardtanh`, keeping one bit an element."""

    def plain() -> Tensor:
        return F.hardtanh(input, min_val, max_val, inplace)

    return plain() if min_val > max_val else _rectify(input, clamp_rule(min_val, max_val), inplace, plain)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Compute `F.relu6`, keeping one bit an element."""
    return _rectify(input, clamp_rule(0.0, 6.0), inplace, lambda: F.relu6(input, inplace))


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Compute `F.leaky_relu`, keeping one bit an element."""
    return _rectify(input, _leaky_relu(negative_slope), inplace, lambda: F.leaky_relu(input, negative_slope, inplace))


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """Compute `F.threshold`, keeping one bit an element."""
    return _rectify(input, _threshold(threshold, value), inplace, lambda: F.threshold(input, threshold, value, inplace))


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Compute `F.hardsigmoid`, keeping one bit an element."""
    return _rectify(input, _hardsigmoid(input.dtype), inplace, lambda: F.hardsigmoid(input, inplace))


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Compute `F.hardshrink`, keeping one bit an element."""
    rule = _shrink(_aten.hardshrink.out, _aten.hardshrink_backward.grad_input, lambd)
    return _rectify(input, rule, False, lambda: F.hardshrink(input, lambd))


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Compute `F.softshrink`, keeping one bit an element."""
    rule = _shrink(_aten.softshrink.out, _aten.softshrink_backward.grad_input, lambd)
    return _rectify(input, rule, False, lambda: F.softshrink(input, lambd))


@twin_of(nn.ReLU)
class OneBitReLU(Twin, nn.ReLU):
    """`nn.ReLU` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return relu(input, self.inplace)


@twin_of(nn.Hardtanh)
class OneBitHardtanh(Twin, nn.Hardtanh):
    """`nn.Hardtanh` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return hardtanh(input, self.min_val, self.max_val, self.inplace)


@twin_of(nn.ReLU6)
class OneBitReLU6(Twin, nn.ReLU6):
    """`nn.ReLU6` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return hardtanh(input, self.min_val, self.max_val, self.inplace)


@twin_of(nn.LeakyReLU)
class OneBitLeakyReLU(Twin, nn.LeakyReLU):
    """`nn.LeakyReLU` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return leaky_relu(input, self.negative_slope, self.inplace)


@twin_of(nn.Threshold)
class OneBitThreshold(Twin, nn.Threshold):
    """`nn.Threshold` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return threshold(input, self.threshold, self.value, self.inplace)


@twin_of(nn.Hardsigmoid)
class OneBitHardsigmoid(Twin, nn.Hardsigmoid):
    """`nn.Hardsigmoid` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return hardsigmoid(input, self.inplace)


@twin_of(nn.Hardshrink)
class OneBitHardshrink(Twin, nn.Hardshrink):
    """`nn.Hardshrink` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return hardshrink(input, self.lambd)


@twin_of(nn.Softshrink)
class OneBitSoftshrink(Twin, nn.Softshrink):
    """`nn.Softshrink` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return softshrink(input, self.lambd)


__all__ = [
    "OneBitGradient",
    "Rectifier",
    "hardshrink",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "relu",
    "relu6",
    "softshrink",
    "threshold",
]
