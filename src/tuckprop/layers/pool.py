"""Max pooling: the position inside the window, in 1, 2, 4 or 8 bits an output; neither the input nor its indices.

Index legend, one spatial axis: m output positions, k taps. Tap k of the window at m reads m * stride + k * dilation -
padding. Flat over the axes that is base[m] + offset[k], so PyTorch's index of the maximum, less the base, is one of the
window's few offsets, and its number among them is kept. Compiled kernels pick the maximum by PyTorch's rules for ties
and NaN, and spread the gradient; where none serves, PyTorch does both, a few planes at a time, so that its 64-bit
indices never exist all at once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop import gpu, native
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._per_axis import Sizes, per_axis
from tuckprop.layers._pointwise import worth_saving
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.linalg.bits import pack_codes, unpack_codes
from tuckprop.linalg.layout import flat, memory_format

_aten = torch.ops.aten
_FORWARD = {2: _aten.max_pool2d_with_indices.out, 3: _aten.max_pool3d_with_indices.out}
_BACKWARD = {
    2: _aten.max_pool2d_with_indices_backward.grad_input,
    3: _aten.max_pool3d_with_indices_backward.grad_input,
}
_PLAIN: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

# Outputs whose 64-bit indices exist at a time: 2 MiB on a CPU.
_CPU_OUTPUTS = 1 << 18
_ACCELERATOR_OUTPUTS = 1 << 22


class Window(NamedTuple):
    """The static shape of a pooling call, per spatial axis.

    Attributes:
        kernel: Taps.
        stride: Steps between windows.
        padding: Positions before and after.
        dilation: Steps between taps.
        ceil_mode: Whether a window may end outside.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @classmethod
    def of(
        cls, axes: int, kernel: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil: bool
    ) -> "Window":
        """Return the window that arguments of `F.max_pool*d` describe."""
        return cls(
            kernel=per_axis(kernel, axes),
            stride=per_axis(stride or kernel, axes),
            padding=per_axis(padding, axes),
            dilation=per_axis(dilation, axes),
            ceil_mode=ceil,
        )

    def on_a_plane(self) -> "Window":
        """Return the window over two axes, the first with one position and one tap, that does the same as this one."""
        kernel, stride, padding, dilation, ceil_mode = self
        return Window((1, *kernel), (1, *stride), (0, *padding), (1, *dilation), ceil_mode)

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the output positions for an input of `sizes`, by PyTorch's rule; below 1 where it would refuse."""
        result = []
        for n, k, s, p, d in zip(sizes, *self[:4], strict=True):
            count = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if self.ceil_mode else 0)) // s + 1
            # The last window starts inside the input or the padding before it.
            result.append(count - 1 if self.ceil_mode and (count - 1) * s >= n + p else count)
        return tuple(result)


@lru_cache(maxsize=256)
def _offsets(kernel: tuple[int, ...], dilation: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the different distances, ascending, of a window's taps from its first one in a flat plane of `sizes`."""
    steps = [d * prod(sizes[axis + 1 :]) for axis, d in enumerate(dilation)]
    taps = product(*[range(k) for k in kernel])
    return tuple(sorted({sum(t * s for t, s in zip(tap, steps, strict=True)) for tap in taps}))


@lru_cache(maxsize=64)
def _taps_and_offsets(offsets: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tap of each offset, uint8 by offset, and the offset of each tap, int64.

    Kept, as a copy to a GPU in every step would stall it.
    """
    taps = torch.zeros(offsets[-1] + 1, dtype=torch.uint8, device="cpu")
    taps[list(offsets)] = torch.arange(len(offsets), device="cpu").to(torch.uint8)
    return taps.to(device), torch.tensor(offsets, dtype=torch.int64, device=device)


def _bases(window: Window, sizes: Sequence[int], device: torch.device) -> Tensor:
    """Return the flat index of each window's first tap, which may lie in the padding; int64 [m..]."""
    base = torch.zeros((), dtype=torch.int64, device=device)
    for size, count, s, p in zip(sizes, window.outputs(sizes), window.stride, window.padding, strict=True):
        base = base[..., None] * size + (torch.arange(count, device=device) * s - p)
    return base


def _counts_taps(window: Window, sizes: Sequence[int]) -> bool:
    """Say whether the distances of a plane's windows are those of the taps, one by one, so that their numbers agree."""
    if len(sizes) != 2 or prod(window.kernel) > 255:
        return False
    rows, columns = [[t * d for t in range(k)] for k, d in zip(window.kernel, window.dilation, strict=True)]
    return _offsets(window.kernel, window.dilation, tuple(sizes)) == tuple(
        row * sizes[1] + column for row in rows for column in columns
    )


def _bits_for(count: int) -> int:
    """Return how many bits, of 1, 2, 4 and 8, hold a number below `count`."""
    return next(bits for bits in (1, 2, 4, 8) if count <= 1 << bits)


def _planes(x: Tensor, axes: int, layout: torch.memory_format) -> Tensor:
    """Return `x` with whole slices along the leading axis: [planes, 1, h..] or, if channels come last, [b, c, h..].

    The strides are set anew, because those of axes of size 1 may be anything, and PyTorch's kernels look at them.
    """
    sizes = x.shape[-axes:]
    inner = 1 if layout == torch.contiguous_format else x.shape[1]
    steps = [inner * prod(sizes[axis + 1 :]) for axis in range(axes)]
    step = 1 if inner > 1 else prod(sizes)
    return x.as_strided((x.numel() // (inner * prod(sizes)), inner, *sizes), (inner * prod(sizes), step, *steps))


def _chunks(outputs: Tensor) -> Iterator[slice]:
    """Yield slices of the leading axis that have at most a few outputs each, or a single index."""
    most = _CPU_OUTPUTS if outputs.device.type == "cpu" else _ACCELERATOR_OUTPUTS
    step = max(1, most // max(1, outputs[0].numel()))
    for start in range(0, len(outputs), step):
        yield slice(start, min(start + step, len(outputs)))


class PositionMaxPool(torch.autograd.Function):
    """Max pooling over two or three axes that keeps the position of each maximum in its window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        """Pool [b, c, h..] or [c, h..]; keep the positions."""
        axes = len(window.kernel)
        sizes = tuple(x.shape[-axes:])
        ctx.format = memory_format(x) if x.dim() == axes + 2 else torch.contiguous_format
        x = x.contiguous(memory_format=ctx.format)
        y = x.new_empty((*x.shape[:-axes], *window.outputs(sizes))).contiguous(memory_format=ctx.format)
        inputs, outputs = _planes(x, axes, ctx.format), _planes(y, axes, ctx.format)
        offsets = _offsets(window.kernel, window.dilation, sizes)
        ctx.window, ctx.shape, ctx.offsets = window, x.shape, offsets
        positions = torch.empty(y.numel(), dtype=torch.uint8, device=x.device)
        planes = ctx.format == torch.contiguous_format and _counts_taps(window, sizes)
        ctx.kernels = _kernels(x, prod(window.kernel)) if planes else None
        if ctx.kernels is not None:
            ctx.kernels.max_pool(x, y, positions, window[:4])
            ctx.save_for_backward(pack_codes(positions, _bits_for(len(offsets))))
            return y
        (taps, _), bases = _taps_and_offsets(offsets, x.device), _bases(window, sizes, x.device)
        done = 0
        for part in _chunks(outputs):
            indices = torch.empty_like(outputs[part], dtype=torch.int64)
            _FORWARD[axes](inputs[part], *window, out=outputs[part], indices=indices)
            distances = flat(indices.sub_(bases))
            if axes == 3:  # PyTorch's channels-last kernel answers 0 for a window of nothing but -inf.
                distances.clamp_(0, offsets[-1])
            torch.index_select(taps, 0, distances, out=positions[done : done + len(distances)])
            done += len(distances)
        ctx.save_for_backward(pack_codes(positions, _bits_for(len(offsets))))
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (packed,) = ctx.saved_tensors
        window, axes = ctx.window, len(ctx.window.kernel)
        grad = grad.contiguous(memory_format=ctx.format)
        result = grad.new_empty(ctx.shape).contiguous(memory_format=ctx.format)
        positions = unpack_codes(packed, _bits_for(len(ctx.offsets)), grad.numel())
        if ctx.kernels is not None:
            ctx.kernels.max_unpool(grad, positions, result, window[:4])
            return result, None
        _, offsets = _taps_and_offsets(ctx.offsets, grad.device)
        bases = _bases(window, ctx.shape[-axes:], grad.device)
        grads, results = _planes(grad, axes, ctx.format), _planes(result, axes, ctx.format)
        done = 0
        for part in _chunks(grads):
            indices = torch.empty_like(grads[part], dtype=torch.int64)
            numbers = positions[done : done + indices.numel()].to(torch.int32)
            torch.index_select(offsets, 0, numbers, out=flat(indices))
            done += indices.numel()
            # PyTorch asks for the input too, but reads its shape alone: the gradient itself stands in for it.
            _BACKWARD[axes](grads[part], results[part], *window, indices.add_(bases), grad_input=results[part])
        return result, None


def _kernels(x: Tensor, taps: int) -> Any:
    """Return the module whose compiled kernels pool planes such as those of `x` by so many taps, if there is one."""
    if native.serves(x):
        return native
    if taps <= gpu.MOST_TAPS and gpu.serves(x):
        from tuckprop.gpu import max_pool

        return max_pool
    return None


def _keeps_position(x: Tensor, window: Window) -> bool:
    """Say whether a call with input [b, c, h..] or [c, h..] can be saved; any other is for the plain op."""
    axes = len(window.kernel)
    if not worth_saving(x) or x.dim() not in {axes + 1, axes + 2} or {len(part) for part in window[:4]} != {axes}:
        return False
    sizes = tuple(x.shape[-axes:])
    if min(window.stride) < 1 or min(window.outputs(sizes)) < 1:
        return False
    if any(2 * p > (k - 1) * d + 1 for k, p, d in zip(window.kernel, window.padding, window.dilation, strict=True)):
        return False  # PyTorch refuses windows in nothing but padding.
    return len(_offsets(window.kernel, window.dilation, sizes)) <= 256


def _max_pool(axes: int, x: Tensor, arguments: tuple[Any, ...], return_indices: bool) -> Any:
    """Pool with the arguments of `F.max_pool*d` from the kernel on."""
    if not return_indices:
        window = Window.of(axes, *arguments)
        if axes == 1 and x.dim() in {2, 3}:
            plane = window.on_a_plane()
            if _keeps_position(x.unsqueeze(-2), plane):
                return PositionMaxPool.apply(x.unsqueeze(-2), plane).squeeze(-2)
        elif axes > 1 and _keeps_position(x, window):
            return PositionMaxPool.apply(x, window)
    return _PLAIN[axes](x, *arguments, return_indices)


def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Compute `F.max_pool1d`, keeping at most a byte an output; with `return_indices` it is the plain op."""
    return _max_pool(1, input, (kernel_size, stride, padding, dilation, ceil_mode), return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Compute `F.max_pool2d`, keeping at most a byte an output; with `return_indices` it is the plain op."""
    return _max_pool(2, input, (kernel_size, stride, padding, dilation, ceil_mode), return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Compute `F.max_pool3d`, keeping at most a byte an output; with `return_indices` it is the plain op."""
    return _max_pool(3, input, (kernel_size, stride, padding, dilation, ceil_mode), return_indices)


def _arguments(module: Any) -> tuple[Any, ...]:
    return module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode


@twin_of(nn.MaxPool1d)
class PositionMaxPool1d(Twin, nn.MaxPool1d):
    """`nn.MaxPool1d` that keeps the position inside the window."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pooling, bit for bit."""
        return _max_pool(1, input, _arguments(self), self.return_indices)


@twin_of(nn.MaxPool2d)
class PositionMaxPool2d(Twin, nn.MaxPool2d):
    """`nn.MaxPool2d` that keeps the position inside the window."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pooling, bit for bit."""
        return _max_pool(2, input, _arguments(self), self.return_indices)


@twin_of(nn.MaxPool3d)
class PositionMaxPool3d(Twin, nn.MaxPool3d):
    """`nn.MaxPool3d` that keeps the position inside the window."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pooling, bit for bit."""
        return _max_pool(3, input, _arguments(self), self.return_indices)
