"""Curves by epoch."""

import pytest

from tests.report.made import record
from tuckprop.errors import ConfigError
from tuckprop.report import curves, plot, summarise

RECORDS = [
    record("HOSVD 0.8", last=4),
    record("plain", seed=1),
    record("plain", seed=2, accuracies=(0.4, 0.8), paper=(1.0, 2.0)),
    record("new", accuracies=(0.3,), paper=(1.0,), finished=False),
]


def test_a_line_a_run_with_its_values() -> None:
    above, below = curves(RECORDS).axes
    for axes, scale, value in ((above, 1, "loss"), (below, 100, "val_accuracy")):
        assert len(axes.lines) == len(RECORDS)
        for line, run in zip(axes.lines, RECORDS, strict=True):
            assert list(line.get_xdata()) == [epoch.epoch for epoch in run.epochs]
            assert list(line.get_ydata()) == pytest.approx([scale * getattr(epoch, value) for epoch in run.epochs])
            assert line.get_linestyle() == ("-" if run.finished else "--")


def test_a_method_has_the_colour_and_marker_of_the_other_plots() -> None:
    (reference,) = plot(summarise(RECORDS)).axes
    known = {c.get_label(): (c.lines[0].get_color(), c.lines[0].get_marker()) for c in reference.containers}
    drawn = [(line.get_color(), line.get_marker()) for line in curves(RECORDS).axes[0].lines]
    assert drawn[:3] == [known["HOSVD 0.8"], known["plain"], known["plain"]]
    assert drawn[3] not in known.values()


def test_the_legend_names_each_method_once_and_dashes_where_there_are_any() -> None:
    def names(figure) -> list[str]:  # type: ignore[no-untyped-def]
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert names(curves(RECORDS)) == ["plain", "HOSVD 0.8", "new", "not finished"]
    assert names(curves(RECORDS[:3])) == ["plain", "HOSVD 0.8"]


def test_a_long_run_has_few_markers_and_whole_epochs() -> None:
    long = record(accuracies=(0.5,) * 200, paper=(1.0,) * 200)
    figure = curves([long])
    figure.canvas.draw()
    assert figure.axes[0].lines[0].get_markevery() == 20
    assert all(float(tick).is_integer() for tick in curves(RECORDS).axes[1].get_xticks())


def test_no_epochs_and_several_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 0"):
        curves([record(accuracies=(), paper=(), finished=False)])
    with pytest.raises(ConfigError, match="got 2"):
        curves([record(), record(data="cifar10")])
