"""Gradient Filter, slowly: the equations of Yang, Li, Marculescu (CVPR 2023), one loop an index.

Patches tile the output from its centre: where the size is no multiple of the patch, the first and last are cut by the
border. Averages are over the elements that exist. An input block is the stride times as large as an output patch, and
its sum runs over the elements that exist.
"""

from math import ceil, floor

import torch
from torch import Tensor


def blocks(size: int, count: int, block: int) -> list[range]:
    """Return the rows of each of `count` blocks that tile `size` rows from the centre."""
    before = max(0, ceil((count * block - size) / 2))
    return [range(max(0, i * block - before), min(size, (i + 1) * block - before)) for i in range(count)]


def patch_grid(shape: torch.Size, patch: int) -> list[list[range]]:
    """Return the rows and the columns of the patches of an output."""
    return [blocks(size, ceil(size / patch), patch) for size in shape[2:]]


def filtered_output_gradient(grad: Tensor, patch: int) -> Tensor:
    """Eq. 2: one average for each patch, [b, o, p, q]."""
    rows, columns = patch_grid(grad.shape, patch)
    result = grad.new_zeros(*grad.shape[:2], len(rows), len(columns))
    for n in range(grad.shape[0]):
        for o in range(grad.shape[1]):
            for p, row in enumerate(rows):
                for q, column in enumerate(columns):
                    values = [grad[n, o, i, j] for i in row for j in column]
                    result[n, o, p, q] = sum(values) / len(values)
    return result


def filtered_input(x: Tensor, out_shape: torch.Size, patch: int, stride: tuple[int, int]) -> Tensor:
    """The sums of Eq. 5: one for each patch of the output, [b, c, p, q]."""
    grids = [
        blocks(size, ceil(out / patch), patch * step)
        for size, out, step in zip(x.shape[2:], out_shape[2:], stride, strict=True)
    ]
    result = x.new_zeros(*x.shape[:2], *(len(grid) for grid in grids))
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for p, row in enumerate(grids[0]):
                for q, column in enumerate(grids[1]):
                    result[n, c, p, q] = sum(x[n, c, i, j] for i in row for j in column)
    return result


def weight_gradient(sums: Tensor, averages: Tensor, weight: Tensor, depthwise: bool) -> Tensor:
    """Eq. 5: the same for every tap."""
    result = torch.zeros_like(weight)
    for o in range(weight.shape[0]):
        for c in range(weight.shape[1]):
            channel = o if depthwise else c
            value = sum(
                sums[n, channel, p, q] * averages[n, o, p, q]
                for n in range(sums.shape[0])
                for p in range(sums.shape[2])
                for q in range(sums.shape[3])
            )
            result[o, c, :, :] = value
    return result


def input_gradient(
    averages: Tensor, weight: Tensor, x_shape: torch.Size, patch: int, stride: tuple[int, int], depthwise: bool
) -> Tensor:
    """Eq. 3: the patch average times the sum of the kernel, the same throughout an input block."""
    grids = [
        blocks(size, count, patch * step)
        for size, count, step in zip(x_shape[2:], averages.shape[2:], stride, strict=True)
    ]
    result = averages.new_zeros(x_shape)
    for n in range(x_shape[0]):
        for c in range(x_shape[1]):
            outputs = [c] if depthwise else range(weight.shape[0])
            for p, row in enumerate(grids[0]):
                for q, column in enumerate(grids[1]):
                    value = sum(averages[n, o, p, q] * weight[o, 0 if depthwise else c].sum() for o in outputs)
                    for i in row:
                        for j in column:
                            result[n, c, i, j] = value
    return result


def dilated_input_gradient(
    averages: Tensor, weight: Tensor, x_shape: torch.Size, patch: int, dilation: int, depthwise: bool
) -> Tensor:
    """As published where the dilation is at least a patch: a tap reaches the patch that is `dilation // patch` on."""
    reach = dilation // patch
    grids = [blocks(size, count, patch) for size, count in zip(x_shape[2:], averages.shape[2:], strict=True)]
    _, _, high, wide = averages.shape
    result = averages.new_zeros(x_shape)
    for n in range(x_shape[0]):
        for c in range(x_shape[1]):
            outputs = [c] if depthwise else range(weight.shape[0])
            for p, row in enumerate(grids[0]):
                for q, column in enumerate(grids[1]):
                    value = averages.new_zeros(())
                    for o in outputs:
                        for u in range(weight.shape[2]):
                            for v in range(weight.shape[3]):
                                # The tap u reads row p from output row p - (u - middle) * reach.
                                at = p - (u - floor(weight.shape[2] / 2)) * reach
                                on = q - (v - floor(weight.shape[3] / 2)) * reach
                                if 0 <= at < high and 0 <= on < wide:
                                    value = value + averages[n, o, at, on] * weight[o, 0 if depthwise else c, u, v]
                    for i in row:
                        for j in column:
                            result[n, c, i, j] = value
    return result
