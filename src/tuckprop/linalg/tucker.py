"""The truncated higher-order singular value decomposition (HOSVD)."""

from collections.abc import Sequence
from itertools import combinations
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.basis import Spectrum, low_rank_spectrum, may_be_low_rank, spectra
from tuckprop.linalg.modes import mode_gram, mode_product, trailing_grams
from tuckprop.linalg.standardised import Standardised

# One element moved through memory costs as much as this many operations; products along the last mode run slower.
_MOVE = 32
_LAST = 1.5

# Two modes of so many positions together are contracted at once.
_JOINT = 64


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
    found: dict[int, Spectrum] = {}
    known: dict[int, Tensor] = {}
    inner = x
    if modes:
        wide = max(modes, key=lambda mode: x.shape[mode])
        if may_be_low_rank(x, wide, epsilons[wide]):
            known = {wide: mode_gram(x, wide)}
            if (few := low_rank_spectrum(known[wide], epsilons[wide])) is not None:
                # All energy lies in the range of this mode: the others are found in it.
                found, known, inner = {wide: few}, {}, mode_product(x, few.vectors, wide)
    rest = {mode: epsilons[mode] for mode in modes if mode not in found}
    found |= spectra(inner, rest, trailing_grams(inner) | known)
    ranks = [1] * x.dim()
    if modes:
        # The host waits for all ranks once.
        for mode, rank in zip(modes, torch.stack([found[mode].rank for mode in modes]).tolist(), strict=True):
            ranks[mode] = rank
    factors = {mode: found[mode].leading(ranks[mode]) for mode in modes_worth_factoring(x.shape, ranks)}
    if inner is not x and wide in factors:
        # The coordinates along this mode's vectors are known already, the leading one last.
        core = inner.narrow(wide, inner.shape[wide] - ranks[wide], ranks[wide]).flip(wide)
        core = project(core, {mode: factor for mode, factor in factors.items() if mode != wide})
    else:
        core = project(x, factors)
    return core, factors, tuple(ranks)


def project(x: Tensor | Standardised, factors: dict[int, Tensor]) -> Tensor:
    """Return the core: `x` contracted with every factor [n_j, k_j], in the order that costs least."""
    modes = sorted(factors, key=lambda m: _cost(*factors[m].shape, last=m == len(x.shape) - 1))
    if isinstance(x, Standardised):
        if not modes:
            return x.dense()
        first = modes.pop(0)
        core = x.mode_product(factors[first], first)
    else:
        core = x
    height, width = core.dim() - 2, core.dim() - 1
    if {height, width} <= set(modes) and core.shape[height] * core.shape[width] <= _JOINT:
        # Two modes this small are contracted by one product.
        # Views of their own: one column counts as contiguous with strides that kron refuses.
        both = torch.kron(*(factors[mode].reshape(-1).view(factors[mode].shape) for mode in (height, width)))
        sizes = (factors[height].shape[1], factors[width].shape[1])
        core, modes = core.flatten(height), [mode for mode in modes if mode < height]
        sooner = [mode for mode in modes if _cost(*factors[mode].shape) < _cost(*both.shape, last=True)]
        for mode in sooner:
            core = mode_product(core, factors[mode], mode)
        core = mode_product(core, both, height).unflatten(height, sizes)
        modes = [mode for mode in modes if mode not in sooner]
    for mode in modes:
        core = mode_product(core, factors[mode], mode)
    return core


def _cost(size: int, rank: int, *, last: bool = False) -> float:
    """Return by what the modes of a chain of products are ordered: what one costs an element, over what it removes."""
    share = rank / size
    cost = (2 * rank + _MOVE * (1 + share)) * (_LAST if last else 1)
    return cost / (1 - share) if share < 1 else float("inf")


def modes_worth_factoring(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the modes whose factors make core plus factors smallest, in elements.

    Args:
        shape: Sizes n_1..n_d.
        ranks: Ranks k_1..k_d.

    Returns:
        A subset of the modes, ascending; modes of full rank are never in it.
    """
    shrinking = [mode for mode, (size, rank) in enumerate(zip(shape, ranks, strict=True)) if rank < size]

    def elements(chosen: tuple[int, ...]) -> int:
        core = prod(ranks[m] if m in chosen else n for m, n in enumerate(shape))
        return core + sum(shape[m] * ranks[m] for m in chosen)

    subsets = (s for count in range(len(shrinking) + 1) for s in combinations(shrinking, count))
    return min(subsets, key=elements)
