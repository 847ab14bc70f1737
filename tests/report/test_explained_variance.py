"""Figure and table of explained variance."""

import pytest
import torch

from tuckprop.errors import ConfigError
from tuckprop.report.explained_variance import explained_variance_table, plot_explained_variance
from tuckprop.spectra import LayerSpectrum

LAYER = LayerSpectrum(
    "conv",
    (4, 2, 5, 1),
    ("batch", "channels", "height", "width"),
    tuple(
        torch.tensor(curve, dtype=torch.float64)
        for curve in ([0.5, 0.75, 0.9, 1.0], [0.85, 1.0], [0.3, 0.6, 0.8, 0.95, 1.0], [1.0])
    ),
)


def test_a_line_a_mode_with_a_marker_where_the_threshold_is_reached() -> None:
    (axes,) = plot_explained_variance(LAYER, "title").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == [
        "mode 1: batch, 4", "mode 2: channels, 2", "mode 3: height, 5", "mode 4: width, 1", "ε = 0.8",
    ]  # fmt: skip
    for line, curve in zip(lines.values(), LAYER.curves, strict=False):
        assert line.get_ydata() == pytest.approx([100 * float(share) for share in curve])
        assert line.get_xdata()[-1] == pytest.approx(100)
        assert line.get_xdata()[0] == pytest.approx(100 / len(curve))
    assert [lines[name].get_markevery() for name in list(lines)[:4]] == [[2], [0], [2], [0]]
    assert axes.get_xscale() == "log"


def test_a_mode_looks_the_same_in_every_figure() -> None:
    whole, part = (plot_explained_variance(LAYER, "title", modes).axes[0].lines for modes in (None, (2, 3)))
    assert [line.get_label() for line in part] == ["mode 2: channels, 2", "mode 3: height, 5", "ε = 0.8"]
    assert [line.get_color() for line in part[:2]] == [line.get_color() for line in whole[1:3]]
    assert len({line.get_color() for line in whole}) == 5


def test_the_legend_is_outside_the_axes() -> None:
    figure = plot_explained_variance(LAYER, "title")
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_the_table_has_the_components_that_reach_the_threshold() -> None:
    table = explained_variance_table(LAYER, "title", epsilon=0.75)
    cells = [list(column.cells) for column in table.columns]
    assert cells[3] == ["2", "1", "3", "1"]
    assert cells[4] == ["50.0", "50.0", "60.0", "100.0"]
    assert cells[5] == ["50.0", "85.0", "30.0", "100.0"]
    assert "0.75" in str(table.columns[3].header)


@pytest.mark.parametrize("make", [plot_explained_variance, explained_variance_table])
def test_unknown_modes_and_thresholds_are_refused(make: object) -> None:
    for modes in ([0], [5], [1, -1]):
        with pytest.raises(ConfigError, match="modes 1 to 4"):
            make(LAYER, "title", modes)
    for epsilon in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="epsilon"):
            make(LAYER, "title", None, epsilon)
