"""Random convolutions and the multiply-adds that torch really does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tuckprop.errors import ConfigError
from tuckprop.theory import Convolution

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A convolution with what its sizes do not say."""

    conv: Convolution
    stride: int
    padding: int
    dilation: int

    def input(self) -> Tensor:
        return torch.randn(self.conv.shape, dtype=torch.float64)

    def grad(self, batch: int | None = None) -> Tensor:
        c = self.conv
        return torch.randn(batch or c.batch, c.outputs, c.out_height, c.out_width, dtype=torch.float64)

    def weight(self) -> Tensor:
        c = self.conv
        return torch.randn(c.outputs, c.channels // c.groups, c.kernel, c.kernel, dtype=torch.float64)

    def weight_gradient(self, x: Tensor, grad: Tensor, groups: int | None = None) -> Tensor:
        """Let torch compute it; `x` may have other channels than the layer, with groups = 1."""
        groups = self.conv.groups if groups is None else groups
        weight = x.new_empty(grad.shape[1], x.shape[1] // groups, self.conv.kernel, self.conv.kernel)
        args = (None, [self.stride] * 2, [self.padding] * 2, [self.dilation] * 2, False, [0, 0], groups)
        result: Tensor = ATEN.convolution_backward(grad, x, weight, *args, (False, True, False))[1]
        return result


@st.composite
def layers(draw: st.DrawFn, padded: bool = True, grouped: bool = True, largest: int = 5) -> Layer:
    groups = draw(st.sampled_from([1, 1, 2, 3])) if grouped else 1
    channels, outputs = groups * draw(st.integers(1, largest // groups + 1)), groups * draw(st.integers(1, 3))
    batch, height, width = (draw(st.integers(1, largest)) for _ in range(3))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2)) if padded else 0
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    try:
        conv = Convolution.of_layer(batch, channels, height, width, outputs, kernel, groups=groups, **options)
    except ConfigError:
        assume(False)
    return Layer(conv, **options)


@st.composite
def layers_and_ranks(draw: st.DrawFn, **options: Any) -> tuple[Layer, tuple[int, ...]]:
    layer = draw(layers(**options))
    return layer, tuple(draw(st.integers(1, size)) for size in layer.conv.shape)


# The work of a function torch's counter does not know; an eigendecomposition counts as its order, n^3.
_MORE = {
    ATEN.addmm_: lambda out, a, b, *, out_shape=None, **rest: 2 * a[0] * a[1] * b[1],
    ATEN._linalg_eigh: lambda a, *rest, out_shape=None, **more: 2 * a[-1] ** 3,
}


def multiply_adds(work: Callable[[], Any]) -> float:
    """Run `work` and return the multiply-adds of its convolutions, matrix products and eigendecompositions."""
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        work()
    return counter.get_total_flops() / 2
