"""The weight gradient of a convolution from a packed input, by the cheapest of three exact routes.

Index legend: b batch, c input channels, o output channels, m.. output positions, k.. kernel taps, r ranks; g groups.
For a transposed convolution the output gradient is the tensor with windows and the weight is [c, o, k..].
"""

from math import prod

import torch
from torch import Tensor

from tuckprop.codecs import Packed
from tuckprop.layers import _depthwise, _depthwise_gpu, _one_tap, _three_taps
from tuckprop.layers._geometry import Geometry
from tuckprop.layers._operands import Operands
from tuckprop.layers._plain_convolution import plain_gradients
from tuckprop.layers._route import BATCH, CHANNEL, SPATIAL, Route, cheapest_route, reducible
from tuckprop.linalg.chained import contracted
from tuckprop.linalg.layout import inverse, memory_format, memory_order
from tuckprop.linalg.modes import MOVE, mode_product


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
    core, factors = packed.outline()
    if not factors:
        return dense_route(packed.dense().to(grad.dtype), grad, weight, geometry)
    fast = _three_taps.serves_weight(grad, packed.shape, weight, geometry)
    slowdown = _three_taps.WEIGHT_SLOWDOWN if fast else None
    route = cheapest_route(core, factors, grad.shape, weight.shape, geometry, slowdown)
    if route is Route.FACTORED:
        return factored_route(Operands.of(packed), grad, weight, geometry).to(weight.dtype)
    if route is Route.DENSE:
        return dense_route(packed.dense(), grad, weight, geometry)
    operands = Operands(*packed.partial(reducible(geometry)))
    return reduced_route(operands, grad, weight, geometry).to(weight.dtype)


def dense_route(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight gradient at the input `x` [b, c, h..]."""
    if _one_tap.serves_weight(x, x.shape, weight, geometry):
        return _one_tap.weight_gradient(x, grad, weight, geometry)
    if _depthwise.serves_weight(x, x.shape, weight, geometry):
        return _depthwise.weight_gradient(x, grad, weight, geometry)
    if _three_taps.serves_weight(x, x.shape, weight, geometry):
        return _three_taps.weight_gradient(x, grad, weight, geometry)
    if _depthwise_gpu.serves_weight(grad, x.shape, weight, geometry):
        return _depthwise_gpu.weight_gradient(x, grad, weight, geometry)
    gradient = plain_gradients(grad, geometry.pad_input(x), weight, geometry, (False, True, False))[1]
    assert gradient is not None
    return gradient


def reduced_route(operands: Operands, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight gradient with batch and channel axes at their ranks; `operands` has no spatial factors."""
    core, factors = operands
    if BATCH in factors:
        grad = _product(grad, factors[BATCH], BATCH)
    grad = grad.to(core.dtype)
    if CHANNEL not in factors:
        return dense_route(core, grad, weight.to(core.dtype), geometry)
    factor = factors[CHANNEL]
    channel_axis = 0 if geometry.transposed else 1
    shape = list(weight.shape)
    shape[channel_axis] = factor.shape[1]
    # Only its shape and memory format are read.
    narrow = torch.empty(shape, dtype=core.dtype, device=weight.device, memory_format=memory_format(weight))
    gradient = dense_route(core, grad, narrow, geometry)
    if geometry.transposed:
        return mode_product(gradient, factor.T, channel_axis)
    # All output channels and taps in one product: one an output channel, with as many columns as taps, is far slower.
    rows = gradient.flatten(2).transpose(1, 2)  # [o, (k..), rank]
    whole = (rows.reshape(-1, rows.shape[2]) @ factor.T).view(*rows.shape[:2], -1)
    # Flat in between: an axis of size 1 would keep a stride of its own.
    return whole.transpose(1, 2).reshape(-1).view(weight.shape)


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
    summed = _sum_positions(grad, windows).to(core.dtype)
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
    matrices = {SPATIAL + axis: window.flatten(1) for axis, window in windows.items()}
    axes = tuple(sorted(matrices, key=lambda axis: matrices[axis].shape[1] / matrices[axis].shape[0]))
    all_windowed = len(windows) == grad.dim() - SPATIAL
    joint = len(windows) > 1 and all_windowed and _joint_is_cheaper(grad, windows)
    found = contracted(grad, matrices, (tuple(sorted(axes)),) if joint else tuple((axis,) for axis in axes))
    if found is not None:
        return found.core
    if joint:
        sizes = [matrices[axis].shape[1] for axis in sorted(axes)]
        whole = grad.new_ones(1, 1)
        for axis in sorted(axes):
            columns = matrices[axis]
            whole = (whole[:, None, :, None] * columns[None, :, None, :]).reshape(len(whole) * len(columns), -1)
        split: Tensor = _product(grad.flatten(SPATIAL), whole, SPATIAL).unflatten(-1, sizes)
        return split
    for axis in axes:
        grad = _product(grad, matrices[axis], axis)
    return grad


def _product(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Return `mode_product(x, matrix, mode)`, in the memory order of `x`, of which no copy is made."""
    if x.is_contiguous():
        return mode_product(x, matrix, mode)
    order = memory_order(x)
    return mode_product(x.permute(order), matrix, order.index(mode)).permute(inverse(order))


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
    groups, axes = geometry.groups, range(len(taps))
    if groups > 1 and channel_factor is not None:
        core = mode_product(core, channel_factor.T, CHANNEL)
        channel_factor = None
    batch, outputs = summed.shape[:2]
    pairs = [size for pair in zip(taps, ranks, strict=True) for size in pair]
    split = summed.reshape(batch, groups, outputs // groups, *pairs)
    tap_axes, rank_axes = [3 + 2 * a for a in axes], [4 + 2 * a for a in axes]
    # [g, (o, k..), (b, r..)] @ [g, (b, r..), c]
    left = split.permute(1, 2, *tap_axes, 0, *rank_axes).reshape(groups, (outputs // groups) * prod(taps), -1)
    parts = core.reshape(batch, groups, -1, *ranks)
    inner = parts.permute(1, 0, *[3 + a for a in axes], 2).reshape(groups, left.shape[2], -1)
    gradient = torch.bmm(left, inner)
    if channel_factor is not None:
        gradient = gradient @ channel_factor.T
    gradient = gradient.reshape(groups, outputs // groups, *taps, -1)
    last = 2 + len(taps)
    if geometry.transposed:
        return gradient.permute(0, last, 1, *[2 + a for a in axes]).reshape(shape)  # [g, c, o, k..]
    return gradient.permute(0, 1, last, *[2 + a for a in axes]).reshape(shape)  # [g, o, c, k..]


__all__ = ["Operands", "dense_route", "factored_route", "reduced_route", "weight_gradient"]
