"""The best few-level approximation of a function of one variable, by dynamic programming.

For a function g and a density w, the code with K levels is the map from x to one of K numbers with the smallest
    integral (g(x) - level(x))^2 w(x) dx.
The level of a set is the mean of g over it, under w. On a grid of cells the best K sets are runs of the cells sorted by
their mean of g, so the best runs are a shortest path whose edge costs follow from three running sums: the optimum over
the grid is exact. Novikov et al. take runs in the order of x, and so does this where g is monotone; where it is not, or
is even, cells far apart can share a level, and the error is smaller.
Source: Novikov et al., "Few-bit backward: quantized gradients of activation functions for memory footprint reduction",
ICML 2023, section 3 (arXiv 2202.00441).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from tuckprop.errors import ConfigError

# Points at which an integral over one cell reads the function.
_POINTS = 32


@dataclass(frozen=True)
class Cells:
    """A function on a grid of equal cells: its first moments in each, under a density of total weight 1.

    Attributes:
        reach: The grid goes from -reach to reach.
        weight: Integral of w, float64 [cells].
        first: Integral of g w, float64 [cells].
        second: Integral of g^2 w, float64 [cells].
    """

    reach: float
    weight: Tensor
    first: Tensor
    second: Tensor

    def reordered(self, order: Tensor) -> "Cells":
        """Return the cells in another order."""
        return Cells(self.reach, self.weight[order], self.first[order], self.second[order])


@dataclass(frozen=True)
class Levels:
    """A function that is constant on sets of cells.

    Attributes:
        reach: As in `Cells`.
        code: Number of the level of each cell, int64 [cells].
        levels: float64 [K].
        square_error: Integral of the squared error, under the density.
    """

    reach: float
    code: Tensor
    levels: Tensor
    square_error: float


def normal(x: Tensor) -> Tensor:
    """Return the density of the standard normal distribution, without its constant."""
    return torch.exp(-0.5 * x * x)


def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the derivative of an elementwise function, by autograd."""

    def slope(x: Tensor) -> Tensor:
        # Modes of the caller, which may well be the reason for this call, have no business in here.
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    return slope


def measure_cells(
    function: Callable[[Tensor], Tensor], density: Callable[[Tensor], Tensor], reach: float, count: int
) -> Cells:
    """Integrate a function over equal cells.

    Args:
        function: g, of float64 [n] to [n].
        density: w, up to a constant factor; what lies beyond the grid is left out.
        reach: The grid goes from -reach to reach.
        count: Number of cells.

    Returns:
        The moments.
    """
    steps = torch.arange(count * _POINTS, dtype=torch.float64, device="cpu")
    points = (2 * reach / (count * _POINTS)) * (steps + 0.5) - reach
    weight = density(points)
    weight = (weight / weight.sum()).view(count, _POINTS)
    values = function(points).view(count, _POINTS)
    return Cells(reach, weight.sum(1), (weight * values).sum(1), (weight * values**2).sum(1))


def best_levels(cells: Cells, count: int) -> Levels:
    """Return the approximation by `count` levels with the smallest squared error.

    Args:
        cells: The function.
        count: K.

    Returns:
        The optimum among all functions that are constant on each cell.

    Raises:
        ConfigError: There are more levels than cells, or none.
    """
    if not 1 <= count <= len(cells.weight):
        raise ConfigError(f"best_levels: expected 1 to {len(cells.weight)} levels, one a cell, got {count!r}")
    order = torch.argsort(cells.first / cells.weight, stable=True)
    ordered = cells.reordered(order)
    starts = best_runs(ordered, count)
    code = torch.empty_like(order)
    levels, error = [], 0.0
    for number, (start, stop) in enumerate(pairwise((*starts, len(order)))):
        weight, first, second = (float(m[start:stop].sum()) for m in (ordered.weight, ordered.first, ordered.second))
        code[order[start:stop]] = number
        levels.append(first / weight)
        error += max(0.0, second - first * first / weight)
    return Levels(cells.reach, code, torch.tensor(levels, dtype=torch.float64, device="cpu"), error)


def best_runs(cells: Cells, count: int) -> list[int]:
    """Cut the cells, in the order they have, into `count` runs with the smallest squared error.

    Returns:
        The first cell of each run, ascending from 0.
    """
    if count == len(cells.weight):
        return list(range(count))
    cost = _run_costs(cells)
    best = cost[0]  # best[n]: the least error of the first n cells.
    choices = []
    for _ in range(count - 1):
        best, choice = (best[:, None] + cost).min(0)
        choices.append(choice)
    starts, stop = [], len(cells.weight)
    for choice in reversed(choices):
        stop = int(choice[stop])
        starts.append(stop)
    return [0, *reversed(starts)]


def _run_costs(cells: Cells) -> Tensor:
    """Return [cells + 1, cells + 1]: the squared error of one level for the cells i to j - 1; infinite if none."""
    sums = [torch.cat([m.new_zeros(1), m.cumsum(0)]) for m in (cells.weight, cells.first, cells.second)]
    weight, first, second = (s[None, :] - s[:, None] for s in sums)
    cost = (second - first**2 / weight.clamp_min(1e-300)).clamp_min(0.0)
    return cost.masked_fill(torch.ones_like(cost, dtype=torch.bool).tril(), inf)


__all__ = ["Cells", "Levels", "best_levels", "best_runs", "derivative", "measure_cells", "normal"]
