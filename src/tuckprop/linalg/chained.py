"""Mode products of one tensor, one after the other, in one call of a compiled kernel.

A site packs an activation by three products of a few microseconds each, and a layer's gradient takes as many: in small
steps, calls and casts take longer than what they compute. The kernel takes bases as they are kept, in half precision,
and a standardised tensor without forming it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop import native
from tuckprop.linalg.modes import expand, pays
from tuckprop.linalg.standardised import Standardised
from tuckprop.native.chain import KINDS, Side, Step, Steps

# Products of so many multiplications take about as long as a call of a library does, however they are done.
_LITTLE = 1 << 22

# Mode, rows, columns, kind and strides of a matrix; the kind of those that the kernel does not read.
_Kind = tuple[int, int, int, int, int, int]
_UNKNOWN = -2

# In order, the modes to contract: each alone, or two that follow each other in one product.
Groups = tuple[tuple[int, ...], ...]


class Contracted(NamedTuple):
    """A tensor contracted with matrices.

    Attributes:
        core: What comes of it, float32.
        energy: Sum of squares of the tensor; 0 where it was not asked for. Of a standardised one: of what it is of.
        kept: That of the core, likewise.
    """

    core: Tensor
    energy: float
    kept: float


class _Plan(NamedTuple):
    """The products of tensors of one shape with matrices of one kind.

    Attributes:
        steps: As the kernel takes them.
        modes: Two a step, in its order: those whose matrices it takes; None for none.
        shape: Of the result.
    """

    steps: Steps
    modes: tuple[int | None, ...]
    shape: tuple[int, ...]


def contracted(
    source: Tensor | Standardised, matrices: Mapping[int, Tensor], groups: Groups, measures: bool = False
) -> Contracted | None:
    """Contract modes of a tensor with the rows of matrices: `mode_product` along each.

    Args:
        source: Shape [n_1, ..., n_d].
        matrices: By mode, [n_mode, k], any strides, in single precision or one of the half ones.
        groups: The modes, all of them.
        measures: Whether energies are asked for.

    Returns:
        What comes of it, in float32. None where no kernel serves, or a library is faster.
    """
    x, standard = source, None
    if isinstance(source, Standardised):
        x, standard = source.x, source.along_one_axis()
        if standard is None:
            return None
    assert isinstance(x, Tensor)
    if not groups or not native.reads(x) or not x.is_contiguous() or torch.is_grad_enabled():
        return None
    kinds = tuple((mode, *m.shape, KINDS.get(m.dtype, _UNKNOWN), *m.stride()) for mode, m in matrices.items())
    plan = _plan(x.shape, kinds, groups)
    if plan is None:
        return None
    core = torch.empty(plan.shape, dtype=torch.float32, device="cpu")
    size = plan.steps.between
    between = torch.empty(size, dtype=torch.float32, device="cpu") if size else None
    given = [None if mode is None else matrices[mode] for mode in plan.modes]
    return Contracted(core, *native.chained_products(x, plan.steps, given, between, core, standard, measures))


def expand_each(core: Tensor, factors: Mapping[int, Tensor], work: torch.dtype | None = None) -> Tensor:
    """Return `core` with each of these axes multiplied by its factor [n, k]: `expand`, one after the other.

    Args:
        core: Shape [k_1, ..., k_d].
        factors: By axis.
        work: Dtype of the result, where core and factors are in a lower one; None where they are in that of the core.
    """
    work = core.dtype if work is None else work
    # The smallest growth first keeps the products in between small.
    axes = sorted(factors, key=lambda axis: factors[axis].shape[0] / factors[axis].shape[1])
    if work == torch.float32 and axes:
        found = contracted(core, {axis: factors[axis].T for axis in axes}, tuple((axis,) for axis in axes))
        if found is not None:
            return found.core
    core = core.to(work)
    for axis in axes:
        core = expand(core, factors[axis].to(work), axis)
    return core


@lru_cache(maxsize=4096)
def _plan(shape: Sequence[int], kinds: tuple[_Kind, ...], groups: Groups) -> _Plan | None:
    """Return the plan of products, or None where a library is faster; it is remembered, as sizes repeat.

    Args:
        shape: Of the tensor.
        kinds: Of each matrix.
        groups: As there.
    """
    if any(len(group) > 2 for group in groups) or any(kind == _UNKNOWN for _, _, _, kind, _, _ in kinds):
        return None
    sides = {mode: Side(size, rank, kind, row, column, mode) for mode, size, rank, kind, row, column in kinds}
    sizes = list(shape)
    steps, modes = list[Step](), list[int | None]()
    for group in groups:
        step = Step(prod(sizes[: group[0]]), prod(sizes[group[-1] + 1 :]), *(sides[mode] for mode in group))
        if not _worth(step):
            return None
        for mode in group:
            sizes[mode] = sides[mode].rank
        steps.append(step)
        modes += [*group, None][:2]
    return _Plan(Steps.of(steps), tuple(modes), tuple(sizes))


def _worth(step: Step) -> bool:
    """Say whether the kernel is about as fast as a library, or there is little to do."""
    size, rank = step.first.size * step.second.size, step.first.rank * step.second.rank
    little = step.before * size * step.after * rank <= _LITTLE
    return little or pays(size, rank, step.before, step.after)
