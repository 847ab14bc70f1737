"""The input's gradient of depthwise convolutions with a stride in half precision, on a CPU.

PyTorch's takes ten times as long there as in float32 (96 channels of 64 x 64 at stride 2: 65 ms; 5 here). So single
samples go through the kernel for float32, in buffers that stay in the cache.
"""

from math import prod

import torch
from torch import Size, Tensor

from tuckprop import native
from tuckprop.layers._depthwise import works_on_planes
from tuckprop.layers._geometry import Geometry

_HALVES = {torch.bfloat16, torch.float16}

# Elements of the input that are worth it.
_LEAST = 1 << 16


def serves(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `input_gradient` takes a gradient of the output; arguments as for `_depthwise.serves`."""
    strided = prod(geometry.stride) > 1 and works_on_planes(shape, weight, geometry)
    alike = x.dtype == weight.dtype and x.dtype in _HALVES and type(x) is Tensor and x.is_contiguous()
    worth = prod(geometry.kernel) <= native.MOST_TAPS and prod(shape) >= _LEAST
    return strided and alike and worth and native.available(x.device) and not torch.compiler.is_compiling()


def input_gradient(grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry) -> Tensor:
    """Return the gradient of an input of this shape from that of the output, [b, c, m, n]."""
    out, taps = grad.new_empty(shape), weight.float().contiguous()
    buffer = out.new_empty(out.shape[1:], dtype=torch.float32)[None]
    for sample in range(len(grad)):
        native.depthwise_input(grad[sample : sample + 1].float(), taps, buffer, geometry.window)
        out[sample : sample + 1].copy_(buffer)
    return out
