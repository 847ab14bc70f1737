"""The backward of a batch norm from a normalised input that is not formed: two passes over the gradient.

Index legend: b batch, c channels, s positions, n = b s samples a channel; k ranks. With an output gradient G, the
normalised input A^[b, c, s] = sum_k U[c, k] D[b, k, s], a tile at a time, and w r the weight over the deviation:
    dbias[c] = sum G        dweight[c] = sum G A^        dA = w r (G - dbias / n - A^ dweight / n)
The first pass sums, the second writes. Without U, A^ = (X - mean) r is read off a tensor of the gradient's shape.
Any strides are read as they are: channels first or last.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuckprop.gpu import product_precision

# Channels and positions of a tile.
_CHANNELS = 32
_POSITIONS = 128

# Programs that share the samples of a tile's channels: enough to fill a GPU several times.
_PROGRAMS = 2048

# A factor of more columns is not kept in registers.
MOST_RANKS = 64


@triton.jit
def _normalised(
    d, u, mean, invstd, at, here, c, k, channels, rank, dk, FACTORED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    if FACTORED:
        tile = tl.load(d + (k[:, None] * dk + at[None, :]), (k[:, None] < rank) & here[None, :], other=0.0)
        return tl.dot(u, tile, input_precision=PRECISION)
    tile = tl.load(d + (c[:, None] * dk + at[None, :]), (c[:, None] < channels) & here[None, :], other=0.0)
    return (tile.to(tl.float32) - mean[:, None]) * invstd[:, None]


@triton.jit
def _sums(
    grad, d, factor, means, invstds, out, samples, channels, positions, rank, gb, gc, gs, db, dk, ds,
    FACTORED: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    k = tl.arange(0, BK)
    own = c < channels
    u = tl.load(factor + c[:, None] * rank + k[None, :], own[:, None] & (k[None, :] < rank), other=0.0)
    mean, invstd = tl.load(means + c, own, other=0.0), tl.load(invstds + c, own, other=0.0)
    products, sums = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    tiles = tl.cdiv(positions, BS)
    for tile in range(tl.program_id(1), samples * tiles, tl.num_programs(1)):
        b = tile // tiles
        s = (tile % tiles) * BS + tl.arange(0, BS)
        here = s < positions
        inside = own[:, None] & here[None, :]
        g = tl.load(grad + (c[:, None] * gc + (b * gb + s * gs)[None, :]), inside, other=0.0).to(tl.float32)
        a = _normalised(d, u, mean, invstd, b * db + s * ds, here, c, k, channels, rank, dk, FACTORED, PRECISION)
        products += tl.sum(g * a, 1)
        sums += tl.sum(g, 1)
    row = out + tl.program_id(1) * 2 * channels
    tl.store(row + c, products, own)
    tl.store(row + channels + c, sums, own)


@triton.jit
def _apply(
    grad, d, factor, means, invstds, scales, totals, out, samples, channels, positions, rank,
    gb, gc, gs, db, dk, ds, ob, oc, os,
    FACTORED: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    k = tl.arange(0, BK)
    own = c < channels
    u = tl.load(factor + c[:, None] * rank + k[None, :], own[:, None] & (k[None, :] < rank), other=0.0)
    mean, invstd = tl.load(means + c, own, other=0.0), tl.load(invstds + c, own, other=0.0)
    scale = tl.load(scales + c, own, other=0.0)
    count = (samples * positions).to(tl.float32)
    share = tl.load(totals + c, own, other=0.0) / count
    shift = tl.load(totals + channels + c, own, other=0.0) / count
    tiles = tl.cdiv(positions, BS)
    for tile in range(tl.program_id(1), samples * tiles, tl.num_programs(1)):
        b = tile // tiles
        s = (tile % tiles) * BS + tl.arange(0, BS)
        here = s < positions
        inside = own[:, None] & here[None, :]
        g = tl.load(grad + (c[:, None] * gc + (b * gb + s * gs)[None, :]), inside, other=0.0).to(tl.float32)
        a = _normalised(d, u, mean, invstd, b * db + s * ds, here, c, k, channels, rank, dk, FACTORED, PRECISION)
        value = scale[:, None] * (g - shift[:, None] - a * share[:, None])
        place = out + (c[:, None] * oc + (b * ob + s * os)[None, :])
        tl.store(place, value.to(out.dtype.element_ty), inside)


class Normalised(NamedTuple):
    """A normalised input that is not formed.

    Attributes:
        core: D [b, k, s..] where there is a factor, else X [b, c, s..]; the positions of one sample and row are
            evenly spaced.
        factor: U [c, k], contiguous, k at most `MOST_RANKS`; or None.
        mean: Of X, float32 [c]; unused where there is a factor.
        invstd: Likewise, `1 / sqrt(variance + eps)`.
    """

    core: Tensor
    factor: Tensor | None
    mean: Tensor
    invstd: Tensor


def backward(grad: Tensor, source: Normalised, scale: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a batch norm in training.

    Args:
        grad: G [b, c, s..], dense in memory.
        source: The normalised input.
        scale: Weight times `1 / sqrt(variance + eps)`, float32 [c].
        out: To be overwritten with the gradient of the input, of the shape of `grad`, and may be it; None for none.

    Returns:
        `sum G A^` and `sum G`, float32 [c].
    """
    core, factor, mean, invstd = source
    samples, channels = grad.shape[:2]
    rank = 1 if factor is None else factor.shape[1]
    g, d = _flat(grad), _flat(core)
    positions = g.shape[2]
    bc = min(_CHANNELS, max(16, triton.next_power_of_2(channels)))
    bs = min(_POSITIONS, max(16, triton.next_power_of_2(positions)))
    blocks = triton.cdiv(channels, bc)
    splits = max(1, min(_PROGRAMS // blocks, samples * triton.cdiv(positions, bs)))
    parts = torch.empty(splits, 2, channels, dtype=torch.float32, device=grad.device)
    sizes = (samples, channels, positions, rank)
    shape = (factor is not None, product_precision(), bc, bs, max(16, triton.next_power_of_2(rank)))
    given = (g, d, scale if factor is None else factor, mean, invstd)
    _sums[blocks, splits](*given, parts, *sizes, *g.stride(), *d.stride(), *shape)
    totals = parts[0] if splits == 1 else parts.sum(0)
    if out is not None:
        o = _flat(out)
        _apply[blocks, splits](*given, scale, totals, o, *sizes, *g.stride(), *d.stride(), *o.stride(), *shape)
    return totals[0], totals[1]


def _flat(x: Tensor) -> Tensor:
    """Return [b, c, s], a view."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


__all__ = ["MOST_RANKS", "Normalised", "backward"]
