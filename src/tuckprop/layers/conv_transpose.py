"""ConvTranspose1d, ConvTranspose2d, ConvTranspose3d: the roles of input and output windows are exchanged."""

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from tuckprop.codecs import Packed
from tuckprop.layers._contraction import weight_gradient
from tuckprop.layers._geometry import Geometry
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.layers.conv import factored_convolution


class _TransposedConvolution(Twin, _ConvTransposeNd):
    compresses = True
    _functional: ClassVar[Callable[..., Tensor]]

    def _sizes(self) -> list[list[int]]:
        given = (self.stride, self.padding, self.kernel_size, self.dilation)
        return [list(sizes) for sizes in given if not isinstance(sizes, str)]

    def _geometry(self, output_padding: tuple[int, ...]) -> Geometry:
        pairs = tuple((p, p) for p in self._sizes()[1])
        return Geometry(
            self.kernel_size,
            self.stride,
            pairs,
            self.dilation,
            self.groups,
            transposed=True,
            output_padding=output_padding,
        )

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the weight's gradient for an input in packed form and a gradient [b, o, m..] of the output."""
        return weight_gradient(packed, grad, self.weight, self._geometry(self.output_padding))

    @uncompiled
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute the plain layer's output; see `torch.nn.ConvTranspose2d`."""
        stride, padding, kernel, dilation = self._sizes()
        extra = tuple(self._output_padding(input, output_size, stride, padding, kernel, len(kernel), dilation))

        def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return type(self)._functional(x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation)

        geometry = self._geometry(extra)
        return factored_convolution(self, input, self.weight, self.bias, plain, geometry)


@twin_of(nn.ConvTranspose1d)
class FactoredConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` that keeps a packed input."""

    _functional = staticmethod(F.conv_transpose1d)


@twin_of(nn.ConvTranspose2d)
class FactoredConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` that keeps a packed input."""

    _functional = staticmethod(F.conv_transpose2d)


@twin_of(nn.ConvTranspose3d)
class FactoredConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` that keeps a packed input."""

    _functional = staticmethod(F.conv_transpose3d)
