"""How a tensor lies in memory: whoever works in that order needs no copy of a channels-last tensor."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_dense(x: Tensor) -> bool:
    """Say whether the elements of `x` fill one stretch of memory, each place once, in whatever order."""
    return x.is_contiguous() or _fills(x.shape, x.stride())


# Layouts repeat from step to step, and small layers ask about them for as long as they compute.
@lru_cache(maxsize=1024)
def _fills(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    """Return a view [n] of a dense tensor, in the order of its memory."""
    return x.as_strided((x.numel(),), (1,))


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format that PyTorch's kernels give what they compute from `x`."""
    last = _CHANNELS_LAST.get(x.dim())
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the axes of `x` from the slowest in memory to the fastest; a dense tensor so permuted is contiguous."""
    return _order(x.stride())


@lru_cache(maxsize=1024)
def _order(strides: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis)))


def moves_nothing(order: Sequence[int]) -> bool:
    """Say whether a permutation leaves every axis where it is."""
    return all(axis == place for place, axis in enumerate(order))


@lru_cache(maxsize=1024)
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation that undoes this one: where each axis is in it."""
    return tuple(order.index(axis) for axis in range(len(order)))
