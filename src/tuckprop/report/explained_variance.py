"""Explained variance of a layer's input against the share of components, a line a mode (the paper's Fig. 4)."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from tuckprop.errors import ConfigError
from tuckprop.report.style import COLOURS, MARKERS, legend_below, new_axes
from tuckprop.spectra import LayerSpectrum


def plot_explained_variance(
    layer: LayerSpectrum, title: str, modes: Sequence[int] | None = None, epsilon: float = 0.8
) -> Figure:
    """Draw cumulative explained variance against the share of components.

    Args:
        layer: As `tuckprop.spectra.explained_variance` returns it.
        title: Such as the network and the layer.
        modes: Which modes, counted from 1 as the paper does; by default all.
        epsilon: A threshold to mark.

    Returns:
        The figure; a mode has the same colour and marker in every such figure.

    Raises:
        ConfigError: The layer's input has no such mode, or `epsilon` is outside (0, 1].
    """
    figure, axes = new_axes(title, "share of components, %", "explained variance, %")
    for mode in _checked(layer, modes, epsilon):
        curve, number = layer.curves[mode - 1], mode % len(COLOURS)
        shares = [100 * count / len(curve) for count in range(1, len(curve) + 1)]
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1}
        # A marker where the threshold is reached: it is what the codec keeps.
        axes.plot(
            shares,
            [100 * float(share) for share in curve],
            markevery=[layer.rank(mode - 1, epsilon) - 1],
            label=f"mode {mode}: {layer.axes[mode - 1]}, {layer.shape[mode - 1]}",
            **style,
        )
    axes.axhline(100 * epsilon, color=COLOURS[0], linewidth=0.8, linestyle=":", label=f"ε = {epsilon:g}")
    # Most of the variance lies in the first few components.
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=130)
    legend_below(figure)
    return figure


def explained_variance_table(
    layer: LayerSpectrum, title: str, modes: Sequence[int] | None = None, epsilon: float = 0.8
) -> Table:
    """Return the components that each mode needs for `epsilon`; the arguments are those of the plot.

    Raises:
        ConfigError: The layer's input has no such mode, or `epsilon` is outside (0, 1].
    """
    table = Table(title=title)
    for heading in ("mode", "", "size", f"components for {epsilon:g}", "share, %", "first explains, %"):
        table.add_column(heading, justify="left" if not heading else "right")
    for mode in _checked(layer, modes, epsilon):
        curve, rank = layer.curves[mode - 1], layer.rank(mode - 1, epsilon)
        share, first = 100 * rank / len(curve), 100 * float(curve[0])
        size = str(layer.shape[mode - 1])
        table.add_row(str(mode), layer.axes[mode - 1], size, str(rank), f"{share:.1f}", f"{first:.1f}")
    return table


def _checked(layer: LayerSpectrum, modes: Sequence[int] | None, epsilon: float) -> Sequence[int]:
    if not 0 < epsilon <= 1:
        raise ConfigError(f"epsilon: expected a share of variance in (0, 1], got {epsilon!r}")
    known = range(1, len(layer.curves) + 1)
    wrong = [mode for mode in modes or () if mode not in known]
    if wrong:
        raise ConfigError(f"modes: the input of layer {layer.name!r} has modes 1 to {len(known)}, got {wrong[0]}")
    return modes or known
