"""Bases of every mode of an activation that keep a share of its energy: turned from known ones, or new."""

from collections.abc import Mapping

from torch import Tensor

from tuckprop.linalg.basis import spectrum
from tuckprop.linalg.lagged import waiting_costs
from tuckprop.linalg.remembered import Remembered, remembering, remembering_each, remembering_within

# Up to this size a mode's Gram matrix and its eigendecomposition cost less than subspace iteration; beyond it they do
# again where more than a third of the basis is known.
_WIDE = 256


def each_basis(
    y: Tensor, epsilon: float, energy: float, before: Mapping[int, Remembered | None], room: float
) -> dict[int, Remembered]:
    """Return a basis of every mode; elsewhere than on a CPU, those of small Gram matrices in one batch.

    Args:
        y: Contiguous, finite, float32 or float64.
        epsilon: Share of the energy that each keeps, in (0, 1].
        energy: Sum of squares of `y`.
        before: By mode, the basis that is known, or None.
        room: Columns beyond those, until this share of what they lose is kept too, in [0, 1).
    """
    found: dict[int, Remembered | None] = {}
    if waiting_costs(y.device) and energy and epsilon < 1:
        small = {mode: known for mode, known in before.items() if y.shape[mode] ** 2 <= min(_WIDE**2, y.numel())}
        found = remembering_each(y, epsilon, energy, small, room) if len(small) > 1 else {}
    return {mode: found.get(mode) or _basis(y, mode, epsilon, energy, known, room) for mode, known in before.items()}


def _basis(y: Tensor, mode: int, epsilon: float, energy: float, before: Remembered | None, room: float) -> Remembered:
    size = y.shape[mode]
    found = None
    if energy and epsilon < 1:
        if size > _WIDE and (before is None or before.basis.shape[1] < size // 3):
            found = remembering_within(y, mode, epsilon, energy, before, room)
        if found is None and size * size <= y.numel():
            found = remembering(y, mode, epsilon, energy, before, room)
    if found is not None:
        return found
    exact = spectrum(y, mode, epsilon)
    rank = int(exact.rank)
    return Remembered(exact.leading(rank), exact.energies[:rank].clamp_min(0) / (energy or 1.0), rank)
