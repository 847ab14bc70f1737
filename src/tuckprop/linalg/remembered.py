"""Bases of one mode for tensors to come: the principal axes of this tensor, and of those before it.

A basis of one tensor alone fits its noise; where samples are few, it misses the next tensor. So the Gram matrix of the
mode is mixed with what the basis in use knows of earlier ones, U diag(s) U^T with the share s of the energy along each
vector, and the axes of the sum are taken. How many is decided on this tensor alone, whose energy they have to keep.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuckprop.linalg.eigen import eigh
from tuckprop.linalg.iteration import iterate
from tuckprop.linalg.modes import mode_gram, mode_product

# Earlier tensors weigh as much as this one does, so that their part halves with every basis.
_MEMORY = 1.0

# Random columns beside the known ones: room for a subspace to turn and to grow.
_EXTRA = 8


@dataclass(frozen=True)
class Remembered:
    """A basis and what it has seen.

    Attributes:
        basis: Orthonormal columns [n, k].
        shares: Share of the energy along each, [k], of this tensor and earlier ones.
        needed: How many of the first columns keep what this tensor was asked to keep; more are room for later ones.
    """

    basis: Tensor
    shares: Tensor
    needed: int


def remembering(
    x: Tensor, mode: int, epsilon: float, energy: float, before: Remembered | None, room: float = 0.0
) -> Remembered | None:
    """Return a basis from the whole Gram matrix of the mode.

    Args:
        x: Shape [n_1, ..., n_d], contiguous.
        mode: The axis of `x`.
        epsilon: Share of the energy of `x` to keep, in (0, 1).
        energy: Sum of squares of `x`, positive.
        before: What was known, or None.
        room: Columns beyond those, until this share of what they lose is kept too, in [0, 1).

    Returns:
        A basis that keeps `epsilon`; None where rounding stands in the way.
    """
    return _leading(mode_gram(x, mode), epsilon, energy, before, room)


def remembering_within(
    x: Tensor, mode: int, epsilon: float, energy: float, before: Remembered | None, room: float = 0.0
) -> Remembered | None:
    """Return a basis found by block subspace iteration, for modes whose whole Gram matrix would cost too much.

    The block is what was known, and a few random columns; a step of iteration follows (two, where nothing was known),
    then a rotation within it.
    Arguments are those of `remembering`.

    Returns:
        A basis that keeps `epsilon`, which is measured, not estimated; None where the block does not reach it.
    """
    size = x.shape[mode]
    generator = torch.Generator().manual_seed(size)
    width = _EXTRA if before is None else before.basis.shape[1] // 2 + _EXTRA
    block = torch.randn(size, width, generator=generator, dtype=torch.float32).to(x)
    if before is not None:
        block = torch.cat([before.basis.to(x), block], 1)
    for _ in range(1 if before is not None else 2):
        block = iterate(x, block, mode)
    within = None if before is None else replace(before, basis=block.T @ before.basis.to(x))
    found = _leading(mode_gram(mode_product(x, block, mode), mode), epsilon, energy, within, room)
    return None if found is None else replace(found, basis=(block @ found.basis).contiguous())


def _leading(gram: Tensor, epsilon: float, energy: float, before: Remembered | None, room: float) -> Remembered | None:
    own = gram / energy
    mixed, total = own, 1.0
    if before is not None:
        basis = before.basis.to(own)
        mixed, total = own + _MEMORY * (basis * before.shares.to(own)) @ basis.T, 1.0 + _MEMORY
    energies, vectors = eigh(mixed)
    energies, vectors = energies.flip(0), vectors.flip(1)
    kept = (vectors * (own @ vectors)).sum(0).clamp_min(0).cumsum(0)
    needed = int((kept < epsilon).sum()) + 1
    if needed > len(kept):
        return None
    rank = needed if not room else min(len(kept), int((kept < 1 - (1 - epsilon) * (1 - room)).sum()) + 1)
    # A clone: one column of a column-major matrix counts as contiguous, and would keep the matrix alive.
    leading = vectors[:, :rank].clone(memory_format=torch.contiguous_format)
    return Remembered(leading, energies[:rank].clamp_min(0) / total, needed)
