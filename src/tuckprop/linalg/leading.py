"""The leading eigenpairs of a Gram matrix, as many as a share of its trace asks for, and no others.

A library decomposes the whole matrix, which takes twice as long.
"""

import torch
from torch import Tensor

from tuckprop import native

# A library is as fast at smaller matrices.
_LEAST_SIZE = 128

# Eigenvectors of eigenvalues that are equal to rounding may be dependent: they are orthonormal within this, or unused.
_ORTHONORMAL = 1e-5


def leading_eigh(gram: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """Return the fewest leading eigenpairs whose eigenvalues have a share of the trace.

    Args:
        gram: Symmetric, positive semidefinite but for rounding, finite, [n, n].
        share: Below 1.

    Returns:
        Eigenvalues, ascending, [k], and their eigenvectors [n, k]. None where the matrix is small or zero, where no
        kernel serves it, or where eigenvalues are so close that their vectors do not come out orthonormal.

    Source: Golub and Van Loan, "Matrix Computations", 8.3 and 8.4 (tridiagonalisation, bisection); Dhillon and Parlett,
    "Orthogonal eigenvectors and relative gaps", SIAM J. Matrix Anal. 2004 (twisted factorisations).
    """
    if len(gram) < _LEAST_SIZE or not native.serves(gram) or not bool(gram.trace() > 0):
        return None
    diagonal, beside, reflections, factors = native.tridiagonal(gram)
    found = native.leading_pairs(diagonal, beside, share)
    if found is None:
        return None
    energies, rows = found
    products = rows @ rows.T
    products.diagonal().sub_(1)
    if not bool(products.abs_().amax() < _ORTHONORMAL):
        return None
    # The first component of T is that of A, which no reflection changes.
    vectors = rows.T
    vectors[1:] = torch.ormqr(reflections[:-1, 1:].T, factors, vectors[1:])
    return energies.to(gram.dtype), vectors
