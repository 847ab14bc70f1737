"""Subspace iteration on a mode-n unfolding, without forming the unfolding."""

from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.modes import mode_product
from tuckprop.linalg.orthonormal import orthonormal


def gram_times(x: Tensor, basis: Tensor, mode: int) -> Tensor:
    """Return `A_(n) A_(n)^T basis` for the mode-n unfolding of `x`.

    Args:
        x: Shape [n_1, ..., n_d], contiguous.
        basis: Shape [n_mode, k].
        mode: The axis of `x`.

    Returns:
        Shape [n_mode, k]; costs 4 k operations an element of `x`, where the Gram matrix itself costs 2 n_mode.
    """
    before, size, after = prod(x.shape[:mode]), x.shape[mode], prod(x.shape[mode + 1 :])
    projected = mode_product(x, basis, mode)
    if after == 1:
        return x.reshape(before, size).T @ projected.reshape(before, -1)
    if before == 1:
        return x.reshape(size, after) @ projected.reshape(-1, after).T
    return torch.bmm(x.reshape(before, size, after), projected.reshape(before, -1, after).transpose(1, 2)).sum(0)


def iterate(x: Tensor, basis: Tensor, mode: int) -> Tensor:
    """Return an orthonormal basis after one step of subspace iteration from `basis`; shapes as for `gram_times`.

    Source: the warm start of ASI (Nguyen et al., ICML 2025): V = A_(n)^T U, then U = QR(A_(n) V).Q.
    """
    return orthonormal(gram_times(x, basis, mode))
