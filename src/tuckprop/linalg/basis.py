"""Orthonormal bases of mode-n unfoldings, from small Gram matrices rather than an SVD of a wide matrix."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.modes import mode_gram
from tuckprop.linalg.ranks import explained_variance_rank


class NotFactorableError(Exception):
    """The tensor has no usable decomposition (NaN, Inf, overflow); the caller keeps the tensor itself."""


@dataclass(frozen=True)
class Spectrum:
    """The left singular vectors of one unfolding and their energies, leading first.

    Attributes:
        energies: Squared singular values, descending, shape [m], m = min(n, p) for an unfolding [n, p].
        rank: How many vectors reach the threshold that was asked for; a scalar int64 tensor.
        vectors: Eigenvectors of the smaller Gram matrix, as columns, the leading one last, shape [m, m].
        tall: The unfolding, where it is taller than wide and `vectors` are its right singular vectors; else None.
    """

    energies: Tensor
    rank: Tensor
    vectors: Tensor
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
    if not energy < float("inf"):
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
    size = x.shape[mode]
    rest = prod(x.shape) // size
    tall = None if size <= rest else x.movedim(mode, 0).reshape(size, rest)
    if tall is not None:
        known = tall.T @ tall
    gram = mode_gram(x, mode) if known is None else known
    check_energy(float(gram.trace()), x)
    energies, vectors = eigh(gram)
    energies = energies.flip(0)
    if epsilon >= 1:
        rank = torch.tensor(min(size, rest), device=x.device)
    else:
        rank = explained_variance_rank(energies, epsilon)
    return Spectrum(energies, rank, vectors, tall)


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors; again in double precision where single does not converge."""
    try:
        energies, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if gram.dtype == torch.float64:
            raise
        energies, vectors = (part.to(gram.dtype) for part in torch.linalg.eigh(gram.double()))
    return energies, vectors
