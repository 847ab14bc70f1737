"""Arguments of PyTorch's pools: one number for all spatial axes, or one an axis."""

from collections.abc import Sequence

Sizes = int | Sequence[int]


def per_axis(value: Sizes, axes: int) -> tuple[int, ...]:
    """Return one number an axis; a single one in a sequence stands for all axes too, as in PyTorch."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * axes if len(sizes) == 1 else sizes
