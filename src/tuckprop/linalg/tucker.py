"""The truncated higher-order singular value decomposition (HOSVD)."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.basis import spectra
from tuckprop.linalg.chained import Contracted, contracted
from tuckprop.linalg.energy import sum_of_squares
from tuckprop.linalg.lagged import waiting_costs
from tuckprop.linalg.low_rank import FAR_FROM_ONE, low_rank_range
from tuckprop.linalg.modes import JOINT, MOVE, measured_product, mode_product, product_cost, trailing_grams
from tuckprop.linalg.ranks import read_ranks
from tuckprop.linalg.standardised import Standardised

# Products along the last mode run slower.
_LAST = 1.5


def hosvd(x: Tensor, epsilons: Sequence[float]) -> tuple[Tensor, dict[int, Tensor], tuple[int, ...]]:
    """Factor `x` into a core and one orthonormal factor a mode, each mode truncated on its own.

    Every factor comes from the unfolding of the original tensor. A mode whose factor would cost more elements than it
    saves is left whole, which lowers the error.

    Args:
        x: Contiguous, finite, float32 or float64, shape [n_1, ..., n_d].
        epsilons: Share of the energy each mode keeps, in (0, 1].

    Returns:
        The core; the factors by mode, each [n_j, k_j] (`x` is near the core times every factor); the ranks k_1..k_d
        that reach the thresholds, also of modes left whole. `|x - x'|^2 <= sum_j (1 - eps_j) |x|^2`.

    Raises:
        NotFactorableError: `x` has a NaN or an Inf, or its squares overflow or vanish.

    Source: De Lathauwer et al. 2000, Nguyen et al. NeurIPS 2024 (arXiv 2411.06346).
    """
    modes = [mode for mode, size in enumerate(x.shape) if size > 1]
    wide = max(modes, key=lambda mode: x.shape[mode], default=0)
    within = None
    if max(epsilons, default=1) <= FAR_FROM_ONE and not waiting_costs(x.device):
        within = low_rank_range(x, wide)
    # All energy lies in the range of that mode: every mode is found in it.
    inner, grams = (x, {}) if within is None else (within.core, {wide: within.gram})
    found = spectra(inner, {mode: epsilons[mode] for mode in modes}, trailing_grams(inner) | grams)
    ranks = [1] * x.dim()
    if modes:
        for mode, rank in zip(modes, read_ranks([found[mode].rank for mode in modes]), strict=True):
            ranks[mode] = rank
    factors = {mode: found[mode].leading(ranks[mode]) for mode in modes_worth_factoring(x.shape, ranks)}
    if within is None or wide not in factors:
        core = project(x, factors)
    else:
        core = project(inner, factors)
        factors[wide] = within.basis @ factors[wide]
    return core, factors, tuple(ranks)


def project(x: Tensor | Standardised, factors: dict[int, Tensor]) -> Tensor:
    """Return the core: `x` contracted with every factor [n_j, k_j], in the order that costs least."""
    if all(factor.dtype == torch.float32 for factor in factors.values()):
        found = contracted(x, factors, _order(x, factors))
        if found is not None:
            return found.core
    left = dict(factors)
    if isinstance(x, Standardised):
        if not left:
            return x.dense()
        first = min(left, key=lambda mode: _standardised_cost(x, mode, left[mode].shape[1]))
        core = x.mode_product(left.pop(first), first)
    else:
        core = x
    for modes in _order(core, left):
        stack, matrix = _as_one(core, factors, modes)
        core = _split(mode_product(stack, matrix, modes[0]), factors, modes)
    return core


def measured_project(x: Tensor | Standardised, factors: dict[int, Tensor], work: torch.dtype) -> Contracted:
    """Return what `project` returns, and the energy of both, on a CPU; a tensor is read once for all.

    Args:
        x: The tensor, in the core's precision or, in single or one of the half ones, in a lower one.
        factors: By mode, [n_j, k_j], in the core's precision or float16.
        work: Dtype of the core.
    """
    found = contracted(x, factors, _order(x, factors), measures=True) if work == torch.float32 else None
    if isinstance(x, Standardised):
        energy = x.energy.read()
        if found is not None:
            return found._replace(energy=energy)
        core = project(x, _cast(factors, work))
        return Contracted(core, energy, float(sum_of_squares(core)))
    if found is not None:
        return found
    if not factors:
        core = x.to(work)
        energy = float(sum_of_squares(core))
        return Contracted(core, energy, energy)
    first = _order(x, factors)[0]
    factors = _cast(factors, work)
    core, energy = measured_product(*_as_one(x, factors, first), first[0])
    left = {mode: factor for mode, factor in factors.items() if mode not in first}
    core = project(_split(core, factors, first), left)
    return Contracted(core, energy, float(sum_of_squares(core)))


def _cast(factors: dict[int, Tensor], work: torch.dtype) -> dict[int, Tensor]:
    return {mode: factor.to(work) for mode, factor in factors.items()}


def _as_one(x: Tensor, factors: dict[int, Tensor], modes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a tensor in which these modes, the last ones or one alone, are one, and the matrix to contract it with."""
    if len(modes) == 1:
        return x, factors[modes[0]]
    # Views of their own: one column counts as contiguous with strides that kron refuses.
    return x.flatten(modes[0]), torch.kron(*(factors[mode].reshape(-1).view(factors[mode].shape) for mode in modes))


def _split(core: Tensor, factors: dict[int, Tensor], modes: tuple[int, ...]) -> Tensor:
    """Undo what `_as_one` made of the modes."""
    return core if len(modes) == 1 else core.unflatten(modes[0], [factors[mode].shape[1] for mode in modes])


def _standardised_cost(x: Standardised, mode: int, rank: int) -> float:
    """Return what the product costs an element, over the share of the elements that it removes.

    Where it has to be formed for it, it is read and written twice.
    """
    size = x.shape[mode]
    price = product_cost(1, size, rank) * (_LAST if mode == len(x.shape) - 1 else 1)
    price += 0 if x.multiplies_unformed(mode) else 4 * MOVE
    return price / (1 - rank / size) if rank < size else float("inf")


def _order(x: Tensor | Standardised, factors: dict[int, Tensor]) -> tuple[tuple[int, ...], ...]:
    return _remembered_order(x.shape, tuple((mode, factor.shape[1]) for mode, factor in factors.items()))


@lru_cache(maxsize=4096)
def _remembered_order(shape: Sequence[int], ranks: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], ...]:
    """Return `contraction_order`: sizes repeat from step to step."""
    return tuple(contraction_order(shape, dict(ranks)))


def contraction_order(shape: Sequence[int], ranks: Mapping[int, int]) -> list[tuple[int, ...]]:
    """Return the modes to contract, in the order that costs least; the last two in one product where they are small.

    Args:
        shape: Sizes n_1..n_d.
        ranks: By mode to contract, the rank.
    """
    last = len(shape) - 1
    groups: list[tuple[int, ...]] = [(mode,) for mode in ranks]
    if {last - 1, last} <= set(ranks) and shape[last - 1] * shape[last] <= JOINT:
        groups = [*((mode,) for mode in ranks if mode < last - 1), (last - 1, last)]

    def cost(modes: tuple[int, ...]) -> float:
        """Return what a product costs an element, over the share of the elements that it removes."""
        size, rank = prod(shape[mode] for mode in modes), prod(ranks[mode] for mode in modes)
        price = product_cost(1, size, rank) * (_LAST if last in modes else 1)
        return price / (1 - rank / size) if rank < size else float("inf")

    return sorted(groups, key=cost)


def modes_worth_factoring(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the modes whose factors make core plus factors smallest, in elements.

    Args:
        shape: Sizes n_1..n_d.
        ranks: Ranks k_1..k_d.

    Returns:
        A subset of the modes, ascending; modes of full rank are never in it.
    """
    return _remembered_worth(tuple(shape), tuple(ranks))


@lru_cache(maxsize=4096)
def _remembered_worth(shape: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Return `modes_worth_factoring`: sizes and ranks repeat from step to step."""
    shrinking = [mode for mode, (size, rank) in enumerate(zip(shape, ranks, strict=True)) if rank < size]

    def elements(chosen: tuple[int, ...]) -> int:
        core = prod(ranks[m] if m in chosen else n for m, n in enumerate(shape))
        return core + sum(shape[m] * ranks[m] for m in chosen)

    subsets = (s for count in range(len(shrinking) + 1) for s in combinations(shrinking, count))
    return min(subsets, key=elements)
