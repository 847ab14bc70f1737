"""The paper's figures of what its closed forms predict, by name: `predictions[name]()` draws one.

Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346), Fig. 3 and the appendix's figures of predicted cost. The curves
are computed from `tuckprop.theory`; the sizes are chosen here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tuckprop.codecs import HOSVD, SVD, Codec
from tuckprop.registry import Registry
from tuckprop.report.style import COLOURS, MARKERS, NUMBERS, legend_below, new_axes
from tuckprop.theory import Convolution, cost, error, speed, storage

predictions: Registry[Callable[[], Figure]] = Registry("figure of predictions")

_SIZES = (16, 32, 64, 128)
_KERNEL = 3
# Closer together near one, where the ratio climbs; with 0.75, where HOSVD's bound leaves the ground.
_SHARES = tuple(1 - 0.5 * 2 ** (-n / 8) for n in range(57))
# One colour a method, in all of these figures.
_NUMBERS = (NUMBERS["plain"], NUMBERS["HOSVD 0.8"], NUMBERS["SVD 0.8"])
_PLAIN, _HOSVD, _SVD = ((COLOURS[number], MARKERS[number]) for number in _NUMBERS)


@predictions.register("compression")
def compression() -> Figure:
    """Draw HOSVD's compression rate R_C against its rank (Fig. 3a): all sizes n, all ranks alike."""
    figure, axes = new_axes("compression rate of HOSVD, B = C = H = W = n", "rank of every mode", "$R_C$")
    _against_rank(axes, lambda conv, ranks: storage.compression_rate(conv, storage.hosvd_elements(conv, ranks)))
    legend_below(figure)
    return figure


@predictions.register("speedup")
def speedup() -> Figure:
    """Draw HOSVD's speed-up R_S of the weight gradient against its rank (Fig. 3b): all sizes n, all ranks alike."""
    title = f"speed-up of the weight gradient by HOSVD,\nB = C = C' = H = W = n, kernel {_KERNEL} x {_KERNEL}"
    figure, axes = new_axes(title, "rank of every mode", "$R_S$, multiply-adds, without forward")
    _against_rank(axes, speed.hosvd_backward_speedup)
    legend_below(figure)
    return figure


def _against_rank(axes: Axes, value: Callable[[Convolution, tuple[int, ...]], float]) -> None:
    """Draw a line a size over all its ranks, and the line of no gain."""
    for size, colour, marker in zip(_SIZES, COLOURS[1:], MARKERS[1:], strict=False):
        conv = Convolution.cube(size, _KERNEL)
        ranks = range(1, size + 1)
        marked = [2**power - 1 for power in range(size.bit_length())]
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markersize": 4,
            "linewidth": 1,
            "markevery": marked,
        }
        axes.plot(ranks, [value(conv, (rank,) * 4) for rank in ranks], label=f"n = {size}", **style)
    axes.axhline(1, color=COLOURS[0], linewidth=0.8, linestyle=":", label="no gain")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


@predictions.register("snr")
def snr() -> Figure:
    """Draw the signal-to-noise ratio against the retained variance (Fig. 3c): bounds, a guess, and measured points.

    The points are of one random tensor whose singular values fall as a power in every mode.
    """
    figure, axes = new_axes("signal-to-noise ratio of the kept activation", "retained variance ε", "SNR, dB")
    lines = (
        ("HOSVD, bound 1 / (4 (1 - ε))", error.hosvd_snr_bound, _HOSVD, "-"),
        ("HOSVD, guess 1 / (1 - ε⁴)", error.hosvd_snr_guess, _HOSVD, "--"),
        ("SVD, bound 1 / (1 - ε)", error.svd_snr_bound, _SVD, "-"),
    )
    for label, bound, (colour, _), dashes in lines:
        ratios = [_decibel(bound(share)) for share in _SHARES]
        axes.plot(_SHARES, ratios, dashes, color=colour, linewidth=1, label=label)
    x = _decaying((32, 32, 24, 24))
    codecs: Sequence[tuple[str, Callable[[float], Codec], tuple[str, str]]] = (
        ("HOSVD, measured", HOSVD, _HOSVD),
        ("SVD, measured", SVD, _SVD),
    )
    shares = _SHARES[::5]
    for label, codec, (colour, marker) in codecs:
        measured = [_decibel(_measured(x, codec(share))) for share in shares]
        axes.plot(shares, measured, marker, color=colour, markersize=4, label=label)
    legend_below(figure)
    return figure


def _decaying(shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of normal numbers, damped as a power of the place along every axis of a random basis."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mode, size in enumerate(shape):
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        damped = basis * torch.arange(1, size + 1, dtype=torch.float64) ** -0.8
        x = torch.tensordot(damped, x.movedim(mode, 0), 1).movedim(0, mode)
    return x.contiguous()


def _measured(x: Tensor, codec: Codec) -> float:
    lost = (x - codec.compress(x).dense()).square().sum()
    return error.snr(float(x.square().sum()), float(lost))


def _decibel(ratio: float) -> float:
    return 10 * float(torch.tensor(ratio).log10())


# A label, the multiply-adds of a convolution, colour and marker, and dashes.
_Line = tuple[str, Callable[[Convolution], int], tuple[str, str], str]


@predictions.register("flops")
def flops() -> Figure:
    """Draw the multiply-adds of one forward against the size B = C = C' = H = W (the appendix's figure)."""
    convs = {size: Convolution.cube(size, _KERNEL) for size in (2**power for power in range(2, 9))}
    return _costs(f"forward, B = C = C' = H = W = n, kernel {_KERNEL} x {_KERNEL}", "size n", convs, _forward())


@predictions.register("flops_channels")
def flops_channels() -> Figure:
    """Draw the multiply-adds of one forward against the channels C = C', other sizes as in a late layer."""
    convs = {size: Convolution.of_layer(128, size, 14, 14, size, _KERNEL, padding=1) for size in (16, 32, 64, 128, 256)}
    title = f"forward, B = 128, H = W = 14, C = C' = n,\nkernel {_KERNEL} x {_KERNEL}"
    return _costs(title, "channels n", convs, _forward())


@predictions.register("flops_backward")
def flops_backward() -> Figure:
    """Draw the multiply-adds of one weight gradient against the size B = C = C' = H = W."""
    convs = {size: Convolution.cube(size, _KERNEL) for size in (2**power for power in range(2, 9))}
    lines: Sequence[_Line] = (
        ("vanilla", cost.plain_weight_gradient, _PLAIN, "-"),
        ("SVD, rank n/4", lambda conv: cost.svd_weight_gradient(conv, _low(conv.batch)), _SVD, "-"),
        ("HOSVD, rank n/4", lambda conv: cost.hosvd_weight_gradient(conv, _ranks(conv)), _HOSVD, "-"),
    )
    title = f"weight gradient, B = C = C' = H = W = n,\nkernel {_KERNEL} x {_KERNEL}"
    return _costs(title, "size n", convs, lines)


def _forward() -> Sequence[_Line]:
    """Return the lines of a forward: the convolution and what compression adds to it."""

    def added(overhead: Callable[[Convolution], int]) -> Callable[[Convolution], int]:
        return lambda conv: cost.plain_forward_as_published(conv) + overhead(conv)

    by_svd = added(lambda conv: cost.svd_overhead_by_gram(conv, _low(conv.batch)))
    by_hosvd = added(lambda conv: cost.hosvd_overhead_by_gram(conv, _ranks(conv)))
    return (
        ("vanilla", cost.plain_forward_as_published, _PLAIN, "-"),
        ("SVD", added(cost.svd_overhead_as_published), _SVD, "-"),
        ("HOSVD", added(cost.hosvd_overhead_as_published), _HOSVD, "-"),
        ("SVD here, by Gram, a quarter of the rank", by_svd, _SVD, "--"),
        ("HOSVD here, by Gram, a quarter of the ranks", by_hosvd, _HOSVD, "--"),
    )


def _costs(title: str, across: str, convs: Mapping[int, Convolution], lines: Sequence[_Line]) -> Figure:
    figure, axes = new_axes(title, across, "multiply-adds")
    for label, count, (colour, marker), dashes in lines:
        # Hollow where lines lie on each other.
        face = colour if dashes == "-" else "none"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1}
        counts = [count(conv) for conv in convs.values()]
        axes.plot(list(convs), counts, dashes, label=label, markerfacecolor=face, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure)
    return figure


def _low(size: int) -> int:
    """Return a rank of a quarter of the size."""
    return max(1, size // 4)


def _ranks(conv: Convolution) -> tuple[int, ...]:
    return tuple(_low(size) for size in (conv.batch, conv.channels, conv.height, conv.width))
