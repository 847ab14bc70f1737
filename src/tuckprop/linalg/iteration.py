"""Subspace iteration on a mode-n unfolding, without forming the unfolding."""

from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.basis import eigh
from tuckprop.linalg.modes import mode_gram, mode_product

# Random columns beside the known ones: room for a subspace to turn and to grow.
_EXTRA = 8


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
    stack, small = x.reshape(before, size, after), projected.reshape(before, -1, after)
    if before == 1:
        return stack[0] @ small[0].T
    return torch.bmm(stack, small.transpose(1, 2)).sum(0)


def iterate(x: Tensor, basis: Tensor, mode: int) -> Tensor:
    """Return an orthonormal basis after one step of subspace iteration from `basis`; shapes as for `gram_times`.

    Source: the warm start of ASI (Nguyen et al., ICML 2025): V = A_(n)^T U, then U = QR(A_(n) V).Q.
    """
    # The scale is taken out before squaring it once more in QR.
    stepped = gram_times(x, basis, mode)
    scale = stepped.abs().amax().clamp_min(torch.finfo(stepped.dtype).tiny)
    moved: Tensor = torch.linalg.qr(stepped / scale).Q
    return moved.contiguous()


def leading_subspace(x: Tensor, mode: int, epsilon: float, energy: float, start: Tensor | None) -> Tensor | None:
    """Return an orthonormal basis that keeps a share `epsilon` of the energy, found by block subspace iteration.

    The block is what was known, and a few random columns; two steps and a rotation to the block's own principal axes
    follow. The energy that the basis keeps is measured, not estimated; its rank may exceed the least by a little.

    Args:
        x: Shape [n_1, ..., n_d], contiguous.
        mode: The axis of `x`.
        epsilon: Share of the energy to keep, in (0, 1).
        energy: Sum of squares of `x`.
        start: A basis to start from, [n_mode, k], or None.

    Returns:
        Shape [n_mode, rank], or None where the block did not reach `epsilon`.
    """
    size = x.shape[mode]
    generator = torch.Generator().manual_seed(size)
    width = _EXTRA if start is None else start.shape[1] // 2 + _EXTRA
    extra = torch.randn(size, width, generator=generator, dtype=torch.float32).to(x)
    block = extra if start is None else torch.cat([start.to(x), extra], 1)
    for _ in range(2):
        block = iterate(x, block, mode)
    energies, rotation = eigh(mode_gram(mode_product(x, block, mode), mode))
    share = energies.flip(0).clamp_min(0).cumsum(0) / energy
    rank = int((share < epsilon).sum()) + 1
    if rank > len(energies):
        return None
    basis: Tensor = block @ rotation.flip(1)[:, :rank]
    return basis.contiguous()
