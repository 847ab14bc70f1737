"""The weight gradient of a convolution from a packed input, by the cheapest of three exact routes.

Index legend: b batch, c input channels, o output channels, m.. output positions, k.. kernel taps, r ranks; g groups.
For a transposed convolution the output gradient is the tensor with windows and the weight is [c, o, k..].
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop.codecs import Packed
from tuckprop.layers import _depthwise, _depthwise_gpu, _one_tap
from tuckprop.layers._geometry import Geometry
from tuckprop.layers._plain_convolution import plain_gradients
from tuckprop.linalg.layout import memory_format, memory_order
from tuckprop.linalg.modes import MOVE, mode_product, product_cost

# A convolution's own weight gradient runs at a third of the speed of a large product on one machine, at all of it on
# another.
_CONV_SLOWDOWN = 1.5
_GROUPED_SLOWDOWN = 8

# Each element that `factored_route` lays out anew is read and written, twice, with strides.
_LAYOUTS = 8

BATCH, CHANNEL, SPATIAL = 0, 1, 2


class Operands(NamedTuple):
    """A packed input split as the routes need it: `x = core x_a factors[a]`."""

    core: Tensor
    factors: dict[int, Tensor]


def weight_gradient(packed: Packed, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of a convolution's weight.

    Args:
        packed: The input [b, c, h..].
        grad: Gradient of the output, [b, o, m..].
        weight: The weight; read for its shape and, in the dense route, its memory format.
        geometry: The layer's geometry.

    Returns:
        Shape of `weight`; equal, up to rounding, to PyTorch's gradient at `packed.dense()`.
    """
    operands = Operands(*packed.partial(range(grad.dim())))
    if not operands.factors:
        return dense_route(operands.core, grad, weight, geometry)
    kept = _reducible(geometry)
    factored, reduced, dense = (
        factored_cost(operands, grad, weight, geometry),
        rebuilt_cost(operands, grad, weight, geometry, keep=kept),
        rebuilt_cost(operands, grad, weight, geometry, keep=()),
    )
    if factored <= min(reduced, dense):
        return factored_route(operands, grad, weight, geometry)
    if dense <= reduced:
        return dense_route(packed.dense(), grad, weight, geometry)
    return reduced_route(Operands(*packed.partial(kept)), grad, weight, geometry)


def dense_route(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight gradient at the input `x` [b, c, h..]."""
    if _one_tap.serves_weight(x, x.shape, weight, geometry):
        return _one_tap.weight_gradient(x, grad, weight)
    if _depthwise.serves_weight(x, x.shape, weight, geometry):
        return _depthwise.weight_gradient(x, grad, weight, geometry)
    if _depthwise_gpu.serves_weight(grad, x.shape, weight, geometry):
        return _depthwise_gpu.weight_gradient(x, grad, weight, geometry)
    gradient = plain_gradients(grad, geometry.pad_input(x), weight, geometry, (False, True, False))[1]
    assert gradient is not None
    return gradient


def _reducible(geometry: Geometry) -> tuple[int, ...]:
    """Axes whose factors commute with a convolution's weight gradient: the batch, and channels that are not grouped."""
    return (BATCH, CHANNEL) if geometry.groups == 1 else (BATCH,)


def reduced_route(operands: Operands, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight gradient with batch and channel axes at their ranks; `operands` has no spatial factors."""
    core, factors = operands
    if BATCH in factors:
        grad = _product(grad, factors[BATCH], BATCH)
    if CHANNEL not in factors:
        return dense_route(core, grad, weight, geometry)
    factor = factors[CHANNEL]
    channel_axis = 0 if geometry.transposed else 1
    shape = list(weight.shape)
    shape[channel_axis] = factor.shape[1]
    # Only its shape and memory format are read.
    narrow = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=memory_format(weight))
    gradient = dense_route(core, grad, narrow, geometry)
    if geometry.transposed:
        return mode_product(gradient, factor.T, channel_axis)
    # All output channels and taps in one product: one an output channel, with as many columns as taps, is far slower.
    rows = gradient.flatten(2).transpose(1, 2)  # [o, (k..), rank]
    whole = (rows.reshape(-1, rows.shape[2]) @ factor.T).view(*rows.shape[:2], -1)
    return whole.transpose(1, 2).reshape(weight.shape)


def _spatial_whole(axis: int, geometry: Geometry) -> bool:
    """Whether this spatial axis can go without a factor: one tap that meets every position once."""
    return (
        geometry.kernel[axis] == 1
        and geometry.stride[axis] == 1
        and geometry.padding[axis] == (0, 0)
        and not (geometry.output_padding and geometry.output_padding[axis])
    )


def factored_route(operands: Operands, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight gradient by products with windowed spatial factors; nothing of the input's size is formed.

    Args:
        operands: Core and factors; every spatial axis has a factor, or one tap and no padding.
        grad: Gradient of the output, [b, o, m..].
        weight: The weight; read for its shape.
        geometry: The layer's geometry.

    Returns:
        Shape of `weight`.
    """
    core, factors = operands
    out_sizes = grad.shape[2:]
    if BATCH in factors:
        grad = _product(grad, factors[BATCH], BATCH)
    windows = {
        axis: geometry.windows(factors[SPATIAL + axis], axis, size)
        for axis, size in enumerate(out_sizes)
        if SPATIAL + axis in factors
    }
    summed = _sum_positions(grad, windows)
    # summed: [b, o, (k r).., ] with (1, m) in place of (k, r) on an axis left whole.
    taps = [windows[a].shape[1] if a in windows else 1 for a in range(len(out_sizes))]
    ranks = [windows[a].shape[2] if a in windows else size for a, size in enumerate(out_sizes)]
    return _sum_ranks(summed, taps, ranks, core, factors.get(CHANNEL), geometry, weight.shape)


def _joint_is_cheaper(grad: Tensor, windows: dict[int, Tensor]) -> bool:
    columns = [w.shape[1] * w.shape[2] for w in windows.values()]
    positions = [w.shape[0] for w in windows.values()]
    joint = 2 * prod(columns) + MOVE
    one_by_one, share = 0.0, 1.0
    for column, position in sorted(zip(columns, positions, strict=True), key=lambda p: p[0] / p[1]):
        # Small batched products run far below the speed of one large one.
        one_by_one += share * (4 * column + MOVE)
        share *= column / position
        one_by_one += share * MOVE
    rows = grad.numel() // max(1, prod(positions))
    return joint <= one_by_one and prod(columns) <= rows


def _sum_positions(grad: Tensor, windows: dict[int, Tensor]) -> Tensor:
    """Contract the windowed spatial axes of `grad` [b, o, m..] with windows [m, k, r]: [b, o, (k r)..]."""
    all_windowed = len(windows) == grad.dim() - SPATIAL
    if len(windows) > 1 and all_windowed and _joint_is_cheaper(grad, windows):
        joint = grad.new_ones(1, 1)
        for axis in sorted(windows):
            columns = windows[axis].flatten(1)
            joint = (joint[:, None, :, None] * columns[None, :, None, :]).reshape(len(joint) * len(columns), -1)
        summed = _product(grad.flatten(SPATIAL), joint, SPATIAL)
        split: Tensor = summed.unflatten(-1, [windows[a].shape[1] * windows[a].shape[2] for a in sorted(windows)])
        return split
    for axis in sorted(windows, key=lambda a: windows[a].shape[1] * windows[a].shape[2] / windows[a].shape[0]):
        grad = _product(grad, windows[axis].flatten(1), SPATIAL + axis)
    return grad


def _product(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Return `mode_product(x, matrix, mode)`, in the memory order of `x`, of which no copy is made."""
    order = memory_order(x)
    return mode_product(x.permute(order), matrix, order.index(mode)).permute([order.index(a) for a in range(x.dim())])


def _sum_ranks(
    summed: Tensor,
    taps: list[int],
    ranks: list[int],
    core: Tensor,
    channel_factor: Tensor | None,
    geometry: Geometry,
    shape: torch.Size,
) -> Tensor:
    """Contract [b, o, (k r)..] with the core [b, c or its rank, r..] over b and r.., then apply the channel factor.

    Args:
        summed: What `_sum_positions` returned.
        taps: k per spatial axis.
        ranks: r per spatial axis.
        core: The packed input's core.
        channel_factor: [c, rank], or None where the core has all channels.
        geometry: The layer's geometry.
        shape: Shape of the weight.

    Returns:
        The weight gradient, of shape `shape`.
    """
    groups, axes = geometry.groups, len(taps)
    if groups > 1 and channel_factor is not None:
        core = mode_product(core, channel_factor.T, CHANNEL)
        channel_factor = None
    batch, outputs = summed.shape[:2]
    pairs = [size for pair in zip(taps, ranks, strict=True) for size in pair]
    split = summed.reshape(batch, groups, outputs // groups, *pairs)
    tap_axes, rank_axes = [3 + 2 * a for a in range(axes)], [4 + 2 * a for a in range(axes)]
    # [g, (o, k..), (b, r..)] @ [g, (b, r..), c]
    left = split.permute(1, 2, *tap_axes, 0, *rank_axes).reshape(groups, (outputs // groups) * prod(taps), -1)
    inner = core.unflatten(CHANNEL, (groups, -1)).movedim((1, 2), (0, -1)).reshape(groups, left.shape[2], -1)
    gradient = torch.bmm(left, inner)
    if channel_factor is not None:
        gradient = gradient @ channel_factor.T
    gradient = gradient.reshape(groups, outputs // groups, *taps, -1)
    if geometry.transposed:
        return gradient.movedim(-1, 1).reshape(shape)  # [g, c, o, k..]
    return gradient.movedim(-1, 2).reshape(shape)  # [g, o, c, k..]


def factored_cost(operands: Operands, grad: Tensor, weight: Tensor, geometry: Geometry) -> float:
    """Return the cost of `factored_route`, in operations of a large matrix product; infinite where it cannot go."""
    core, factors = operands
    elements, cost = float(grad.numel()), 0.0
    if BATCH in factors:
        size, rank = factors[BATCH].shape
        cost += product_cost(elements, size, rank)
        elements *= rank / size
    sequential, left, joint_columns = 0.0, elements, 1
    for axis, size in enumerate(grad.shape[2:]):
        if SPATIAL + axis in factors:
            columns = geometry.kernel[axis] * factors[SPATIAL + axis].shape[1]
            sequential += left * (4 * columns + MOVE) + left * columns / size * MOVE
            left *= columns / size
            joint_columns *= columns
        elif not _spatial_whole(axis, geometry):
            return float("inf")
    joint = elements * (2 * joint_columns + MOVE)
    cost += min(joint, sequential)
    if left > 2 * grad.numel():
        return float("inf")  # Never hold more than about one more gradient.
    taps = prod(geometry.kernel)
    channels = core.shape[CHANNEL]
    cost += _LAYOUTS * MOVE * (left + core.numel()) + 2 * left * channels / geometry.groups
    return cost + 2 * grad.shape[1] * taps * channels * weight.shape[0 if geometry.transposed else 1]


def rebuilt_cost(
    operands: Operands, grad: Tensor, weight: Tensor, geometry: Geometry, *, keep: tuple[int, ...]
) -> float:
    """Return the cost of a weight gradient after all factors are multiplied out but those in `keep`.

    That of `reduced_route` with all that can be kept, that of `dense_route` with none; in the unit of `factored_cost`.
    """
    core, factors = operands
    elements, cost = float(core.numel()), 0.0
    for axis, factor in sorted(factors.items(), key=lambda item: item[1].shape[0] / item[1].shape[1]):
        if axis not in keep:
            size, rank = factor.shape
            cost += product_cost(elements, rank, size)
            elements *= size / rank
    grad_elements = float(grad.numel())
    if BATCH in factors and BATCH in keep:
        size, rank = factors[BATCH].shape
        cost += product_cost(grad_elements, size, rank)
        grad_elements *= rank / size
    taps = prod(geometry.kernel)
    inputs = weight.shape[1]  # Of a group; outputs of a group, if transposed.
    slowdown = _GROUPED_SLOWDOWN if geometry.groups > 1 else _CONV_SLOWDOWN if taps > 1 else 1
    if CHANNEL in factors and CHANNEL in keep:
        rank = factors[CHANNEL].shape[1]
        cost += 2 * weight.numel() * rank + MOVE * weight.numel()
        if not geometry.transposed:
            inputs = rank
    windows = elements if geometry.transposed else grad_elements
    return cost + slowdown * 2 * windows * taps * inputs + 2 * MOVE * (elements + grad_elements)


__all__ = ["Operands", "dense_route", "factored_route", "reduced_route", "weight_gradient"]
