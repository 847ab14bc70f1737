"""The leading eigenpairs of a Gram matrix, as many as a share of its trace asks for, and no others.

A library decomposes the whole matrix, which takes several times as long.
"""

from torch import Tensor

from tuckprop import native


def leading_energies(gram: Tensor, share: float) -> Tensor | None:
    """Return the eigenvalues of `leading_eigh`, which take half the time or less; arguments are those.

    Returns:
        The largest first, [k]. None where the matrix is zero, or no kernel serves it.
    """
    if not native.serves(gram):
        return None
    energies = native.leading_values(gram.contiguous(), share)
    return None if energies is None else energies.to(gram.dtype)


def leading_eigh(gram: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """Return the fewest leading eigenpairs whose eigenvalues have a share of the trace.

    Args:
        gram: Symmetric, positive semidefinite but for rounding, finite, [n, n].
        share: Below 1.

    Returns:
        Eigenvalues, the largest first, [k], and their eigenvectors, orthonormal columns [n, k], contiguous and in
        memory of their own. None where the matrix is zero, where no kernel serves it, or where eigenvalues are so close
        that their vectors do not come out orthonormal.

    Source: Golub and Van Loan, "Matrix Computations", 8.3 and 8.4 (tridiagonalisation, bisection); Dhillon and Parlett,
    "Orthogonal eigenvectors and relative gaps", SIAM J. Matrix Anal. 2004 (twisted factorisations).
    """
    if not native.serves(gram):
        return None
    found = native.leading_pairs(gram.contiguous(), share)
    if found is None:
        return None
    energies, vectors = found
    return energies.to(gram.dtype), vectors
