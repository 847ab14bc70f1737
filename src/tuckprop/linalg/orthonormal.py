"""Orthonormal columns that span what given ones do."""

import torch
from torch import Tensor

from tuckprop.linalg.lagged import waiting_costs

# An angle, in radians, that no multiple of a full turn is near.
_GOLDEN = 2.399963229728653

# Of a column's norm: enough to keep dependent columns apart in double precision, little beside float32's rounding.
_NUDGE = 1e-6


def directions(size: int, count: int, *, device: torch.device) -> Tensor:
    """Return columns [size, count], float64, that look random and are the same on every device, count <= size.

    A chirp, computed where it is needed: to copy random numbers to a device, or to seed its generator, stalls it.
    """
    count_up = torch.arange(1, size * count + 1, device=device, dtype=torch.float64)
    return count_up.square().mul_(_GOLDEN).cos_().view(size, count)


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis [n, k] of the span of `columns` [n, k], k <= n, in memory of its own.

    By Householder's QR on a CPU; elsewhere, where that is a long chain of small kernels, by Cholesky's.
    """
    if waiting_costs(columns.device):
        return cholesky_qr(columns)
    # The scale is taken out, as QR squares it.
    scale = columns.abs().amax().clamp_min(torch.finfo(columns.dtype).tiny)
    basis: Tensor = torch.linalg.qr(columns / scale).Q
    return basis.contiguous()


def cholesky_qr(columns: Tensor) -> Tensor:
    """Return the Q of a QR decomposition [n, k] of `columns` [n, k], k <= n: products of matrices and small triangles.

    Done twice and in double precision, on columns of norm one: V = Q R with R^T R = V^T V has an error that grows with
    the square of V's condition number, and the second pass starts from a V that is orthonormal but for that. Columns
    that depend on others, or are zero, are nudged by a fixed random direction each, so that the result always has
    orthonormal columns. Nothing is read off the device.

    Source: Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 2015.
    """
    size = len(columns)
    nudge = directions(*columns.shape, device=columns.device)
    # Norms of float32 columns neither overflow nor vanish in double precision.
    basis: Tensor = columns.double()
    basis = basis / basis.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny) + nudge * (_NUDGE / size**0.5)
    for _ in range(2):
        triangle, _ = torch.linalg.cholesky_ex(basis.T @ basis)
        basis = torch.linalg.solve_triangular(triangle, basis.T, upper=False).T
    return basis.to(columns.dtype).contiguous()
