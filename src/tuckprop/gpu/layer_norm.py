"""The backward of a layer norm from the normalised input: one pass over it and the gradient.

Index legend: m rows, c elements a row. With an output gradient G, the weight w, the normalised input A^ and the inverse
deviation r of a row:
    dbias[c] = sum_m G        dweight[c] = sum_m G A^        dA = r (w G - mean_c(w G) - A^ mean_c(w G A^))
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile, and rows of one at most.
_ELEMENTS = 4096
_ROWS = 32

# Programs that share the rows.
_PROGRAMS = 1024


@triton.jit
def _backward(
    grad, normal, means, invstds, deviations, weight, out, parts, m, c,
    WRITES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BC)
    own = column < c
    w = tl.load(weight + column, own, other=0.0).to(tl.float32)
    products, sums = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(m, BM), tl.num_programs(0)):
        row = tile * BM + tl.arange(0, BM)
        there = row < m
        inside = there[:, None] & own[None, :]
        place = row[:, None] * c + column[None, :]
        g = tl.load(grad + place, inside, other=0.0).to(tl.float32)
        mean, invstd = tl.load(means + row, there, other=0.0), tl.load(invstds + row, there, other=0.0)
        a = (tl.load(normal + place, inside, other=0.0).to(tl.float32) - mean[:, None]) * invstd[:, None]
        a = tl.where(inside, a, 0.0)
        products += tl.sum(g * a, 0)
        sums += tl.sum(g, 0)
        if WRITES:
            h = g * w[None, :]
            shift, share = tl.sum(h, 1) / c, tl.sum(h * a, 1) / c
            scale = tl.load(deviations + row, there, other=0.0)
            value = scale[:, None] * (h - shift[:, None] - a * share[:, None])
            tl.store(out + place, value.to(out.dtype.element_ty), inside)
    first = parts + tl.program_id(0) * 2 * c
    tl.store(first + column, products, own)
    tl.store(first + c + column, sums, own)


def backward(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, deviation: Tensor, weight: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a layer norm.

    Args:
        grad: G [m, c], contiguous.
        x: [m, c], contiguous; the normalised input is `(x - mean) invstd`.
        mean: float32 [m].
        invstd: float32 [m].
        deviation: r, float32 [m].
        weight: w [c].
        out: To be overwritten with the gradient of the input, [m, c], and may be `grad`; None for none.

    Returns:
        `sum G A^` and `sum G`, float32 [c].
    """
    m, c = grad.shape
    columns = triton.next_power_of_2(c)
    rows = max(1, min(_ROWS, _ELEMENTS // columns))
    programs = min(_PROGRAMS, triton.cdiv(m, rows))
    parts = torch.empty(programs, 2, c, dtype=torch.float32, device=grad.device)
    target = grad if out is None else out
    _backward[programs,](grad, x, mean, invstd, deviation, weight, target, parts, m, c, out is not None, rows, columns)
    totals = parts.sum(0)
    return totals[0], totals[1]


__all__ = ["backward"]
