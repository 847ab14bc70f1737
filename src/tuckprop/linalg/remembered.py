"""Bases of one mode for tensors to come: the principal axes of this tensor, and of those before it.

A basis of one tensor alone fits its noise; where samples are few, it misses the next tensor. So the Gram matrix of the
mode is mixed with what the basis in use knows of earlier ones, U diag(s) U^T with the share s of the energy along each
vector, and the axes of the sum are taken. How many is decided on this tensor alone, whose energy they have to keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuckprop.linalg.eigen import eigh, eigh_batched
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


def remembering_each(
    x: Tensor, epsilon: float, energy: float, before: Mapping[int, Remembered | None], room: float = 0.0
) -> dict[int, Remembered | None]:
    """Return `remembering` of several modes: one batch of eigenproblems, for whose ranks the host waits once.

    Args:
        x: As there, like `epsilon`, `energy` and `room`.
        epsilon: As there.
        energy: As there.
        before: What was known, by mode.
        room: As there.
    """
    owns = [mode_gram(x, mode) / energy for mode in before]
    mixtures = [_mixed(own, known) for own, known in zip(owns, before.values(), strict=True)]
    pairs = eigh_batched([mixed for mixed, _ in mixtures])
    counts = [_counts(own, vectors, epsilon, room) for own, (_, vectors) in zip(owns, pairs, strict=True)]
    rows = torch.stack(counts).tolist()
    return {
        mode: _chosen(*pair, total, *row)
        for mode, pair, (_, total), row in zip(before, pairs, mixtures, rows, strict=True)
    }


def _leading(gram: Tensor, epsilon: float, energy: float, before: Remembered | None, room: float) -> Remembered | None:
    own = gram / energy
    mixed, total = _mixed(own, before)
    energies, vectors = eigh(mixed)
    needed, rank = _counts(own, vectors, epsilon, room).tolist()
    return _chosen(energies, vectors, total, needed, rank)


def _mixed(own: Tensor, before: Remembered | None) -> tuple[Tensor, float]:
    """Return a Gram matrix of energy 1 with what is known of earlier ones, and the energy of the sum."""
    if before is None:
        return own, 1.0
    basis = before.basis.to(own)
    return own + _MEMORY * (basis * before.shares.to(own)) @ basis.T, 1.0 + _MEMORY


def _counts(own: Tensor, vectors: Tensor, epsilon: float, room: float) -> Tensor:
    """Return how many of the vectors, the last one first, keep `epsilon`, and how many with the room; int64 [2]."""
    kept = (vectors * (own @ vectors)).sum(0).flip(0).clamp_min(0).cumsum(0)
    shares = kept.new_tensor([epsilon, 1 - (1 - epsilon) * (1 - room)])
    return (kept < shares[:, None]).sum(1) + 1


def _chosen(energies: Tensor, vectors: Tensor, total: float, needed: int, rank: int) -> Remembered | None:
    """Return the last vectors, the last one first; None where all of them do not keep what is needed."""
    size = len(energies)
    if needed > size:
        return None
    rank = min(rank, size)
    # A clone: one column of a column-major matrix counts as contiguous, and would keep the matrix alive.
    leading = vectors[:, size - rank :].flip(1).clone(memory_format=torch.contiguous_format)
    return Remembered(leading, energies[size - rank :].flip(0).clamp_min(0) / total, needed)
