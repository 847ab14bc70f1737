"""Leading eigenpairs of a symmetric matrix: `eigen.c`."""

import torch
from torch import Tensor

from tuckprop.native._call import kernel


def leading_pairs(gram: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """Return the fewest leading eigenpairs of a symmetric matrix whose eigenvalues have a share of its trace.

    Args:
        gram: float32 [n, n], contiguous. No eigenvalue is negative but for rounding.
        share: At most 1.

    Returns:
        Eigenvalues, the largest first, float64 [k]; their eigenvectors, orthonormal columns [n, k]. None where they are
        not accurate, or the matrix is not finite, or 0.
    """
    size = len(gram)
    values, vectors = torch.empty(size, dtype=torch.float64, device="cpu"), gram.new_empty(size * size)
    count = kernel("leading_pairs")(gram.data_ptr(), size, share, values.data_ptr(), vectors.data_ptr())
    # A copy: a view would keep what is not used alive.
    return None if count < 0 else (values[:count], vectors[: size * count].view(size, count).clone())


def leading_values(gram: Tensor, share: float) -> Tensor | None:
    """Return the eigenvalues of `leading_pairs`, float64 [k], alone; None where the matrix is not finite, or 0."""
    values = torch.empty(len(gram), dtype=torch.float64, device="cpu")
    count = kernel("leading_pairs")(gram.data_ptr(), len(gram), share, values.data_ptr(), None)
    return None if count < 0 else values[:count]


__all__ = ["leading_pairs", "leading_values"]
