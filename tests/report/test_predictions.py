"""Figures and tables of predictions."""

import io
from math import inf

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from tuckprop.errors import ConfigError
from tuckprop.report.prediction_table import prediction_table
from tuckprop.report.predictions import predictions
from tuckprop.theory import Convolution, cost, error, speed, storage

CONV = Convolution.of_layer(128, 64, 56, 56, 64, 3, padding=1)


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines}


@pytest.mark.parametrize("name", list(predictions))
def test_every_figure_has_a_column_s_width_and_a_legend_outside_its_axes(name: str) -> None:
    figure = predictions[name]()
    assert figure.get_figwidth() == 3.5
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    box = legend.get_window_extent()
    assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1
    assert {str(line.get_label()) for line in axes.lines} == {text.get_text() for text in legend.get_texts()}


def test_the_figures_of_the_paper_are_there() -> None:
    assert list(predictions) == ["compression", "speedup", "snr", "flops", "flops_channels", "flops_backward"]
    with pytest.raises(ConfigError, match="known: compression, speedup, snr, flops, flops_channels, flops_backward"):
        predictions["nothing"]


def test_rates_and_speedups_fall_with_the_rank_and_are_those_of_the_formulas() -> None:
    for name in ("compression", "speedup"):
        (axes,) = predictions[name]().axes
        drawn = lines(axes)
        for size in (16, 32, 64, 128):
            ranks, values = zip(*drawn[f"n = {size}"], strict=True)
            assert list(ranks) == list(range(1, size + 1))
            assert list(values) == sorted(values, reverse=True)
    conv, ranks = Convolution.cube(64, 3), (4,) * 4
    assert dict(drawn["n = 64"])[4] == speed.hosvd_backward_speedup(conv, ranks)
    (axes,) = predictions["compression"]().axes
    rate = storage.compression_rate(conv, storage.hosvd_elements(conv, ranks))
    assert dict(lines(axes)["n = 64"])[4] == rate


def test_measured_ratios_lie_over_their_bounds() -> None:
    (axes,) = predictions["snr"]().axes
    drawn = lines(axes)
    for method in ("HOSVD", "SVD"):
        bound = dict(next(points for label, points in drawn.items() if label.startswith(f"{method}, bound")))
        points = drawn[f"{method}, measured"]
        assert len(points) > 8
        assert all(ratio >= bound[share] - 1e-9 for share, ratio in points)
        # Bounds that the points are far from would say little.
        assert min(ratio - bound[share] for share, ratio in points) < 1


def test_vanilla_forward_grows_more_slowly_than_svd_and_hosvd() -> None:
    (axes,) = predictions["flops"]().axes
    drawn = lines(axes)
    growth = {label: points[-1][1] / points[0][1] for label, points in drawn.items()}
    assert growth["vanilla"] == pytest.approx(64**5)
    assert growth["HOSVD"] > growth["SVD"] > 100 * growth["vanilla"]
    assert all(points[-1][1] >= drawn["vanilla"][-1][1] for points in drawn.values())


def test_costs_are_those_of_the_formulas() -> None:
    (axes,) = predictions["flops_channels"]().axes
    conv = Convolution(128, 64, 14, 14, 64, 14, 14, 3)
    drawn = {label: dict(points) for label, points in lines(axes).items()}
    assert drawn["vanilla"][64] == cost.plain_forward_as_published(conv)
    assert drawn["HOSVD"][64] == drawn["vanilla"][64] + cost.hosvd_overhead_as_published(conv)
    (axes,) = predictions["flops_backward"]().axes
    drawn = {label: dict(points) for label, points in lines(axes).items()}
    cube = Convolution.cube(64, 3)
    assert drawn["vanilla"][64] == cost.plain_weight_gradient(cube)
    assert drawn["HOSVD, rank n/4"][64] == cost.hosvd_weight_gradient(cube, (16,) * 4) < drawn["SVD, rank n/4"][64]


def test_the_table_has_the_numbers_of_the_formulas_and_a_note_for_each() -> None:
    table = prediction_table(CONV, (4, 8, 8, 8))
    rows = {name: [str(column._cells[row]) for column in table.columns[1:]]
            for row, name in enumerate(table.columns[0]._cells)}  # fmt: skip
    assert rows["elements kept"] == ["25.69 M", "803,328", "3,968", "1"]
    assert rows["compression rate R_C"][:3] == ["1", "31.98", "6474"]
    assert rows["bytes kept"][:3] == ["98 MiB", "3.064 MiB", "15.5 KiB"]
    assert rows["weight gradient"][0] == f"{cost.plain_weight_gradient(CONV) / 1e9:.4g} G"
    assert rows["R_S, weight gradient"][2] == f"{speed.hosvd_backward_speedup(CONV, (4, 8, 8, 8)):.4g}"
    notes = [str(number) for number in range(1, len(rows) + 1)]
    assert [cells[-1] for cells in rows.values()] == notes
    captions = str(table.caption).splitlines()
    assert [line.partition(".")[0] for line in captions[:-1]] == notes
    assert all(line.endswith(")") and any(s in line for s in ("paper", "code", "here")) for line in captions[:-1])
    # The notes speak of rows by number.
    assert list(rows)[3:7] == ["forward, full SVDs", "forward, Gram matrices", "weight gradient",
                               "the same, not restored"]  # fmt: skip


@pytest.mark.parametrize("epsilon", [0.5, 0.9, 1.0])
def test_the_table_has_the_errors_of_the_retained_share(epsilon: float) -> None:
    table = prediction_table(CONV, (4, 8, 8, 8), epsilon)
    rows = {name: [str(column._cells[row]) for column in table.columns[1:4]]
            for row, name in enumerate(table.columns[0]._cells)}  # fmt: skip
    lost, snr, guess, gradient = list(rows)[-4:]
    shown = {name: [float(cell.replace("∞", "inf")) for cell in rows[name]] for name in (lost, snr, guess, gradient)}
    expected = {
        lost: [0, 1 - epsilon, error.hosvd_error_bound(epsilon)],
        snr: [inf, error.svd_snr_bound(epsilon), error.hosvd_snr_bound(epsilon)],
        guess: [inf, error.svd_snr_bound(epsilon), error.hosvd_snr_guess(epsilon)],
        gradient: [0, (1 - epsilon) ** 0.5, error.weight_gradient_error_bound(epsilon, 1, 1)],
    }
    for name, values in expected.items():
        assert shown[name] == pytest.approx(values, rel=1e-3)
    # The notes of the last two bounds speak of the row of the first.
    assert list(rows).index(lost) + 1 == 12
    with pytest.raises(ConfigError, match="epsilon"):
        prediction_table(CONV, (4, 8, 8, 8), 1 + epsilon)


def test_the_table_fits_a_narrow_terminal() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(prediction_table(CONV, (4, 8, 8, 8)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "forward, Gram matrices" in text


def test_svds_rank_is_never_more_than_its_unfolding_has() -> None:
    tall = Convolution.of_layer(50, 1, 2, 2, 1, 1)
    table = prediction_table(tall, (9, 1, 1, 1))
    assert table.columns[2]._cells[0] == str(storage.svd_elements(tall, 4))


def test_ranks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="ranks"):
        prediction_table(CONV, (4, 8, 8, 57))
