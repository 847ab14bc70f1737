"""Orthonormal bases of mode-n unfoldings, from small Gram matrices rather than an SVD of a wide matrix."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.eigen import eigh, eigh_batched
from tuckprop.linalg.lagged import waiting_costs
from tuckprop.linalg.leading import leading_eigh, leading_energies
from tuckprop.linalg.modes import gram_of_rows, mode_gram
from tuckprop.linalg.ranks import explained_variance_rank


class NotFactorableError(Exception):
    """The tensor has no usable decomposition (NaN, Inf, overflow); the caller keeps the tensor itself."""


@dataclass(frozen=True)
class Spectrum:
    """The left singular vectors of one unfolding and their energies, leading first.

    Attributes:
        energies: Squared singular values, descending, shape [m], m = min(n, p) for an unfolding [n, p]. Where the
            threshold is far from one there may be fewer, the others not being asked for.
        rank: How many vectors reach the threshold that was asked for; a scalar int64 tensor where a device has it.
        vectors: Returns the eigenvectors of the smaller Gram matrix, as columns, the leading one first, shape
            [min(n, p), m].
        tall: The unfolding, where it is taller than wide and `vectors` are its right singular vectors; else None.
    """

    energies: Tensor
    rank: Tensor | int
    vectors: Callable[[], Tensor]
    tall: Tensor | None = None

    def leading(self, rank: int) -> Tensor:
        """Return the first `rank` left singular vectors, orthonormal columns [n, rank], in memory of their own."""
        leading = self.vectors()[:, :rank]
        if rank < len(self.energies) or not leading.is_contiguous():
            # A clone: one column of a column-major matrix counts as contiguous, whatever its strides.
            leading = leading.clone(memory_format=torch.contiguous_format)
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
    # It may have been summed in double precision; what follows squares in single, also of half precision.
    limits = torch.finfo(torch.promote_types(x.dtype, torch.float32))
    if not energy <= limits.max:
        raise NotFactorableError("its energy is not finite")
    if energy < limits.tiny / limits.eps and bool(x.any()):
        raise NotFactorableError("its values are too small to square")


def spectrum(x: Tensor, mode: int, epsilon: float) -> Spectrum:
    """Decompose the mode-n unfolding of `x` [n, p] by an eigendecomposition of its smaller Gram matrix.

    Args:
        x: The tensor, any shape, float32 or float64.
        mode: Which axis is n.
        epsilon: Share of the energy that `rank` reaches, in (0, 1]; 1 keeps min(n, p), whatever the energies.

    Returns:
        The spectrum.

    Raises:
        NotFactorableError: see `check_energy`; no decomposition is tried then.
    """
    return spectra(x, {mode: epsilon}, {})[mode]


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
    if len(grams) > 1 and waiting_costs(x.device):
        # One batch.
        whole = zip(epsilons.items(), eigh_batched(grams), strict=True)
        return {mode: _computed(_ranked(*pairs, epsilon), tall[mode]) for (mode, epsilon), pairs in whole}
    alone = zip(epsilons.items(), grams, strict=True)
    return {mode: _spectrum(gram, epsilon, tall[mode]) for (mode, epsilon), gram in alone}


# Energies, the rank that was asked for, and vectors, as a spectrum has them.
Pairs = tuple[Tensor, Tensor | int, Tensor]


def _spectrum(gram: Tensor, epsilon: float, tall: Tensor | None) -> Spectrum:
    """Decompose a Gram matrix; of a tall unfolding, where a kernel finds them alone, for energies first.

    Bases of few vectors hardly ever save bytes there, and the vectors take as long again.
    """
    energies = leading_energies(gram, epsilon) if tall is not None and epsilon < 1 else None
    if energies is None:
        return _computed(eigenpairs(gram, epsilon), tall)
    return Spectrum(energies, len(energies), lambda: eigenpairs(gram, epsilon)[2], tall)


def _computed(pairs: Pairs, tall: Tensor | None) -> Spectrum:
    energies, rank, vectors = pairs
    return Spectrum(energies, rank, lambda: vectors, tall)


def eigenpairs(gram: Tensor, epsilon: float) -> Pairs:
    """Decompose a Gram matrix [n, n], as `spectrum` does that of an unfolding."""
    if epsilon < 1:
        found = leading_eigh(gram, epsilon)
        if found is not None:
            return found[0], len(found[0]), found[1]
    return _ranked(*eigh(gram), epsilon)


def _ranked(ascending: Tensor, vectors: Tensor, epsilon: float) -> Pairs:
    """Turn round eigenpairs, and say how many of them are asked for."""
    energies = ascending.flip(0)
    return energies, len(energies) if epsilon >= 1 else explained_variance_rank(energies, epsilon), vectors.flip(1)
