"""The range of a mode whose unfolding has a rank far below its size: what all of the tensor is found in.

So are the outputs of a convolution to more channels than it reads, and what a norm makes of them: of 576 channels made
from 96, all energy lies in 97 directions. A few columns of the unfolding say so, and one product takes the place of the
Gram matrix of the mode and its eigenproblem.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop.linalg.basis import eigenpairs
from tuckprop.linalg.modes import gram_of_rows, measured_product, mode_gram, stacked
from tuckprop.linalg.orthonormal import orthonormal

# A smaller mode, or one whose Gram matrix takes fewer products, is decomposed before anything could be gained.
_LEAST_SIZE = 96
_LEAST_PRODUCTS = 1 << 25

# So many columns that lie beside each other are looked at together: they share lines of a cache. More of them would be
# too much alike.
_RUN = 4

# Columns that are looked at: these shares of the size and of their number at most, and so many more.
_OF_SIZE, _OF_COLUMNS = 1 / 4, 1 / 3
_EXTRA = 8

# Of the energy: what a Gram matrix in single precision does not know.
_ROUNDING = 1e-6

# Of the largest one: a pivot below this is rounding.
_PIVOT = 1e-6

# Up to this threshold a millionth of the energy decides nothing.
FAR_FROM_ONE = 0.999


class Range(NamedTuple):
    """Where all of a tensor lies in one mode.

    Attributes:
        basis: Orthonormal columns [n, m], m well below n.
        core: The tensor contracted with them, [n_1, ..., m, ..., n_d].
        gram: Gram matrix of that mode of the core, [m, m].
    """

    basis: Tensor
    core: Tensor
    gram: Tensor


def low_rank_range(x: Tensor, mode: int) -> Range | None:
    """Find the range of a mode-n unfolding of low rank; on a CPU, as the host waits for numbers.

    Args:
        x: Shape [n_1, ..., n_d], contiguous.
        mode: Its axis of size n.

    Returns:
        The range; what lies outside is a millionth of the energy at most, which is measured. None where the mode is
        small, of too high a rank, or not in single precision.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, algorithm 4.1, of some
    columns of the unfolding in place of all.
    """
    size = x.shape[mode]
    if size < _LEAST_SIZE or size * x.numel() < _LEAST_PRODUCTS or x.dtype != torch.float32:
        return None
    count = int(min(size * _OF_SIZE, x.numel() // size * _OF_COLUMNS)) + _EXTRA
    # As many rows of those columns tell where the rank is not low, for a fraction of the work.
    if not _depend(_some_columns(x, mode, count, count)):
        return None
    sample = _some_columns(x, mode, count, size)
    basis = _range(sample)
    if basis is None:
        return None
    # Columns that only look dependent, as equal ones do, are told by the others before all of `x` is multiplied.
    if not _keeps((sample @ basis).square().sum(), float(sample.square().sum())):
        return None
    core, energy = measured_product(x, basis, mode)
    gram = mode_gram(core, mode)
    return Range(basis, core, gram) if _keeps(gram.diagonal(), energy) else None


def _keeps(kept: Tensor, energy: float) -> bool:
    """Say whether parts of an energy are all of it but for rounding; not of what is not finite, or 0."""
    return 0 < energy < inf and energy - float(kept.double().sum()) <= _ROUNDING * energy


def _some_columns(x: Tensor, mode: int, count: int, height: int) -> Tensor:
    """Return the first elements of so many columns of the unfolding, evenly from all of it, as rows [count, height]."""
    before, size, after = stacked(x.shape, mode)
    run = min(after, _RUN)
    chosen, each = -(-count // run), after // run
    middles = ((torch.arange(chosen, device=x.device) + 0.5) * (before * each / chosen)).long()
    starts = middles // each * after + middles % each * run
    columns = (starts[:, None] + torch.arange(run, device=x.device)).flatten()[:count]
    return x.view(before, size, after)[columns // after, :height, columns % after]


def _depend(rows: Tensor) -> bool:
    """Say whether one of these depends on those before it, by the pivots of their Gram matrix."""
    triangle, failed = torch.linalg.cholesky_ex(gram_of_rows(rows))
    pivots = triangle.diagonal().square()
    return bool(failed) or not bool((pivots > _PIVOT * pivots.amax()).all())


def _range(rows: Tensor) -> Tensor | None:
    """Return an orthonormal basis [n, r] of all but rounding of rows [c, n]; None where r is near c."""
    gram = gram_of_rows(rows)
    if not 0 < float(gram.trace()) < inf:
        return None
    energies, rank, vectors = eigenpairs(gram, 1 - _ROUNDING / 4)
    if int(rank) > len(rows) - _EXTRA:
        return None
    # Cholesky's QR, twice: these are orthogonal but for the rounding of their Gram matrix. A library's takes longer.
    least = _ROUNDING**2 * energies[0]
    basis = (vectors[:, :rank] / energies[:rank].clamp_min(least).sqrt()).T @ rows
    for _ in range(2):
        triangle, failed = torch.linalg.cholesky_ex(gram_of_rows(basis))
        if failed:
            return orthonormal(basis.T)
        basis = torch.linalg.solve_triangular(triangle, basis, upper=False)
    return basis.T.contiguous()
