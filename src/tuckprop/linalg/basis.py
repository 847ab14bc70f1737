"""Orthonormal bases of mode-n unfoldings, from small Gram matrices rather than an SVD of a wide matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.eigen import eigh, eigh_batched
from tuckprop.linalg.lagged import waiting_costs
from tuckprop.linalg.leading import leading_eigh
from tuckprop.linalg.low_rank import low_rank_eigh
from tuckprop.linalg.modes import gram_of_rows, mode_gram
from tuckprop.linalg.ranks import explained_variance_rank

# Up to this threshold a millionth of the energy decides nothing.
_FAR_FROM_ONE = 0.999


class NotFactorableError(Exception):
    """The tensor has no usable decomposition (NaN, Inf, overflow); the caller keeps the tensor itself."""


@dataclass(frozen=True)
class Spectrum:
    """The left singular vectors of one unfolding and their energies, leading first.

    Attributes:
        energies: Squared singular values, descending, shape [m], m = min(n, p) for an unfolding [n, p]. Where the
            threshold is far from one there may be fewer: the others have a millionth of the energy together, or are not
            asked for.
        rank: How many vectors reach the threshold that was asked for; a scalar int64 tensor.
        vectors: Eigenvectors of the smaller Gram matrix, as columns, the leading one last, shape [min(n, p), m].
        complete: Whether the vectors have all energy, but for a millionth. If not, `rank` is m.
        tall: The unfolding, where it is taller than wide and `vectors` are its right singular vectors; else None.
    """

    energies: Tensor
    rank: Tensor
    vectors: Tensor
    complete: bool
    tall: Tensor | None = None

    def leading(self, rank: int) -> Tensor:
        """Return the first `rank` left singular vectors, orthonormal columns [n, rank], in memory of their own."""
        # A clone: one column of a column-major matrix counts as contiguous, whatever its strides.
        leading = self.vectors[:, len(self.energies) - rank :].flip(1).clone(memory_format=torch.contiguous_format)
        if self.tall is None:
            return leading
        # QR, not a division by the singular values: some may be zero.
        basis: Tensor = torch.linalg.qr(self.tall @ leading).Q
        return basis.contiguous()


def working_dtype(dtype: torch.dtype, epsilon: float) -> torch.dtype:
    """Return the dtype to decompose in: float32 for half precision, float64 where the threshold asks for it.

    A float32 Gram matrix knows the energies to about 1e-6 of their sum; a threshold within 1e-4 of one needs more.
    """
    if dtype == torch.float64 or 1 - epsilon < 1e-4:
        return torch.float64
    return torch.float32


def check_energy(energy: float, x: Tensor) -> None:
    """Check that squares of `x` neither overflow nor vanish, `energy` being their sum.

    Raises:
        NotFactorableError: `x` has a NaN or an Inf, is too large to square, or is too small to square without being 0.
    """
    # It may have been summed in double precision; what follows squares in single.
    if not energy <= torch.finfo(torch.promote_types(x.dtype, torch.float32)).max:
        raise NotFactorableError("its energy is not finite")
    limits = torch.finfo(x.dtype)
    if energy < limits.tiny / limits.eps and bool(x.any()):
        raise NotFactorableError("its values are too small to square")


def spectrum(x: Tensor, mode: int, epsilon: float, known: Tensor | None = None) -> Spectrum:
    """Decompose the mode-n unfolding of `x` [n, p] by an eigendecomposition of its smaller Gram matrix.

    Args:
        x: The tensor, any shape, float32 or float64.
        mode: Which axis is n.
        epsilon: Share of the energy that `rank` reaches, in (0, 1]; 1 keeps min(n, p), whatever the energies.
        known: The Gram matrix of the mode, [n, n], where that is known already.

    Returns:
        The spectrum.

    Raises:
        NotFactorableError: see `check_energy`; no decomposition is tried then.
    """
    return spectra(x, {mode: epsilon}, {} if known is None else {mode: known})[mode]


def spectra(x: Tensor, epsilons: Mapping[int, float], known: Mapping[int, Tensor]) -> dict[int, Spectrum]:
    """Decompose several mode-n unfoldings of `x`, as `spectrum` does one; for all of them the energy is checked once.

    Args:
        x: The tensor, any shape, float32 or float64.
        epsilons: By mode, the share of the energy that `rank` reaches.
        known: Gram matrices that are known already, by mode.

    Returns:
        The spectra by mode.

    Raises:
        NotFactorableError: see `check_energy`; no decomposition is tried then.
    """
    grams: list[Tensor] = []
    tall: dict[int, Tensor | None] = {}
    for mode in epsilons:
        size = x.shape[mode]
        rest = prod(x.shape) // size
        long = tall[mode] = None if size <= rest else x.movedim(mode, 0).reshape(size, rest)
        if long is not None:
            grams.append(gram_of_rows(long.T))
        else:
            grams.append(known[mode] if mode in known else mode_gram(x, mode))
    if grams:
        check_energy(float(grams[0].trace()), x)
    found: dict[int, Spectrum] = {}
    for (mode, epsilon), (ascending, vectors, complete) in zip(
        epsilons.items(), _decomposed(grams, list(epsilons.values())), strict=True
    ):
        energies = ascending.flip(0)
        if epsilon >= 1 or not complete:
            rank = torch.full((), len(energies), device=x.device)
        else:
            rank = explained_variance_rank(energies, epsilon)
        found[mode] = Spectrum(energies, rank, vectors, complete, tall[mode])
    return found


def _decomposed(grams: Sequence[Tensor], epsilons: Sequence[float]) -> list[tuple[Tensor, Tensor, bool]]:
    """Return `_eigenpairs` of every Gram matrix: elsewhere than on a CPU all of them, in one batch."""
    if len(grams) > 1 and waiting_costs(grams[0].device):
        return [(*pairs, True) for pairs in eigh_batched(grams)]
    return [_eigenpairs(gram, epsilon) for gram, epsilon in zip(grams, epsilons, strict=True)]


def _eigenpairs(gram: Tensor, epsilon: float) -> tuple[Tensor, Tensor, bool]:
    """Return eigenvalues, ascending, their eigenvectors, and whether they have all energy, or all but a millionth.

    If not, they are as many as the threshold asks for.
    """
    if epsilon <= _FAR_FROM_ONE and not waiting_costs(gram.device):
        if (few := low_rank_eigh(gram)) is not None:
            return *few, True
        if (leading := leading_eigh(gram, epsilon)) is not None:
            return *leading, False
    return *eigh(gram), True
