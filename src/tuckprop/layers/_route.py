"""Which route to a convolution's weight gradient costs least: a count of operations and bytes.

Index legend: b batch, c input channels, o output channels, h.. input positions, m.. output positions. The routes are
those of `_contraction.py`; all of them are exact, so that nothing but time depends on the choice.
"""

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from math import inf, prod
from typing import NamedTuple

from tuckprop.layers._geometry import Geometry
from tuckprop.linalg.modes import MOVE, product_cost

BATCH, CHANNEL, SPATIAL = 0, 1, 2

# A convolution's own weight gradient runs at a third of the speed of a large product on one machine, at all of it on
# another.
_CONV_SLOWDOWN = 1.5
_GROUPED_SLOWDOWN = 8

# Each element that the factored route lays out anew is read and written, twice, with strides.
_LAYOUTS = 8


class Route(Enum):
    """A way to the weight gradient."""

    FACTORED = "every sum over positions is a product with a windowed spatial factor"
    REDUCED = "spatial factors are multiplied out, batch and channels stay at their ranks"
    DENSE = "the input is rebuilt"


class Sizes(NamedTuple):
    """What the cost of a route depends on.

    Attributes:
        core: Shape of the packed input's core.
        factors: By axis of the input, size and rank of its factor.
        grad: Shape of the gradient of the output [b, o, m..].
        weight: Shape of the weight.
        geometry: The layer's.
        slowdown: Time of its own weight gradient, of that of a large product with as many multiplications.
    """

    core: Sequence[int]
    factors: dict[int, tuple[int, int]]
    grad: Sequence[int]
    weight: Sequence[int]
    geometry: Geometry
    slowdown: float


@lru_cache(maxsize=4096)
def cheapest_route(
    core: Sequence[int],
    factors: tuple[tuple[int, int, int], ...],
    grad: Sequence[int],
    weight: Sequence[int],
    geometry: Geometry,
    slowdown: float | None = None,
) -> Route:
    """Return the route that costs least; the answer is remembered, as sizes repeat from step to step.

    Args:
        core: Shape of the packed input's core.
        factors: Axis, size and rank of each factor.
        grad: Shape of the gradient of the output [b, o, m..].
        weight: Shape of the weight.
        geometry: The layer's.
        slowdown: As in `Sizes`; None for that of a library.
    """
    by_axis = {axis: (size, rank) for axis, size, rank in factors}
    sizes = Sizes(core, by_axis, grad, weight, geometry, _slowdown(geometry) if slowdown is None else slowdown)
    dense, reduced = rebuilt_cost(sizes, keep=()), rebuilt_cost(sizes, keep=reducible(geometry))
    if factored_cost(sizes) <= min(reduced, dense):
        return Route.FACTORED
    return Route.DENSE if dense <= reduced else Route.REDUCED


def _slowdown(geometry: Geometry) -> float:
    """Return that of a library's weight gradient."""
    if geometry.groups > 1:
        return _GROUPED_SLOWDOWN
    return _CONV_SLOWDOWN if prod(geometry.kernel) > 1 else 1


def reducible(geometry: Geometry) -> tuple[int, ...]:
    """Axes whose factors commute with a convolution's weight gradient: the batch, and channels that are not grouped."""
    return (BATCH, CHANNEL) if geometry.groups == 1 else (BATCH,)


def factored_cost(sizes: Sizes) -> float:
    """Return the cost of the factored route, in operations of a large matrix product; infinite where it cannot go."""
    core, factors, grad, weight, geometry, _ = sizes
    elements, cost = float(prod(grad)), 0.0
    if BATCH in factors:
        size, rank = factors[BATCH]
        cost += product_cost(elements, size, rank)
        elements *= rank / size
    sequential, left, joint_columns = 0.0, elements, 1
    for axis, size in enumerate(grad[SPATIAL:]):
        if SPATIAL + axis in factors:
            columns = geometry.kernel[axis] * factors[SPATIAL + axis][1]
            sequential += left * (4 * columns + MOVE) + left * columns / size * MOVE
            left *= columns / size
            joint_columns *= columns
        elif not _spatial_whole(axis, geometry):
            return inf
    joint = elements * (2 * joint_columns + MOVE)
    cost += min(joint, sequential)
    if left > 2 * prod(grad):
        return inf  # Never hold more than about one more gradient.
    taps, channels = prod(geometry.kernel), core[CHANNEL]
    cost += _LAYOUTS * MOVE * (left + prod(core)) + 2 * left * channels / geometry.groups
    return cost + 2 * grad[1] * taps * channels * weight[0 if geometry.transposed else 1]


def _spatial_whole(axis: int, geometry: Geometry) -> bool:
    """Whether this spatial axis can go without a factor: one tap that meets every position once."""
    return (
        geometry.kernel[axis] == 1
        and geometry.stride[axis] == 1
        and geometry.padding[axis] == (0, 0)
        and not (geometry.output_padding and geometry.output_padding[axis])
    )


def rebuilt_cost(sizes: Sizes, *, keep: tuple[int, ...]) -> float:
    """Return the cost of a weight gradient after all factors are multiplied out but those in `keep`.

    That of the reduced route with all that can be kept, that of the dense route with none; unit of `factored_cost`.
    """
    core, factors, grad, weight, geometry, slowdown = sizes
    elements, cost = float(prod(core)), 0.0
    for axis, (size, rank) in sorted(factors.items(), key=lambda item: item[1][0] / item[1][1]):
        if axis not in keep:
            cost += product_cost(elements, rank, size)
            elements *= size / rank
    grad_elements = float(prod(grad))
    if BATCH in factors and BATCH in keep:
        size, rank = factors[BATCH]
        cost += product_cost(grad_elements, size, rank)
        grad_elements *= rank / size
    taps = prod(geometry.kernel)
    inputs = weight[1]  # Of a group; outputs of a group, if transposed.
    if CHANNEL in factors and CHANNEL in keep:
        rank = factors[CHANNEL][1]
        cost += 2 * prod(weight) * rank + MOVE * prod(weight)
        if not geometry.transposed:
            inputs = rank
    windows = elements if geometry.transposed else grad_elements
    return cost + slowdown * 2 * windows * taps * inputs + 2 * MOVE * (elements + grad_elements)
