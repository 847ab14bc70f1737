"""Plots."""

from pathlib import Path

import pytest
from PIL import Image

from tests.report.made import record, segmentation
from tuckprop.errors import ConfigError
from tuckprop.report import measures, plot, save_plot, summarise
from tuckprop.report.style import COLOURS, NUMBERS, method_styles

ROWS = summarise(
    record(method, last=last, seed=seed, held=size * last * seed)
    for method, size in (("plain", 2**20), ("HOSVD 0.8", 2**13))
    for last in (2, 4)
    for seed in (1, 2)
)


def test_no_two_methods_look_alike() -> None:
    styles = method_styles([f"method {number}" for number in range(40)])
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 40


def test_a_method_looks_the_same_beside_whatever_others() -> None:
    few = method_styles(["HOSVD 0.8", "plain"])
    many = method_styles(["ours", "Gradient Filter 2", "plain", "SVD 0.8", "HOSVD 0.8", "theirs"])
    assert all(many[name] == style for name, style in few.items())
    assert len({style["color"] for style in many.values()}) == len(many)


def test_each_method_with_a_colour_of_its_own_has_it_alone() -> None:
    best = {"recomputed HOSVD8 0.999", "HOSVD8 0.9", "HOSVD8 0.97", "Deflated HOSVD 0.94", "Subspace 0.8"}
    assert best <= NUMBERS.keys()
    assert len(set(NUMBERS.values())) == len(NUMBERS) <= len(COLOURS) == len(set(COLOURS))
    # Others take the colours of the paper's methods last.
    others = method_styles(["plain", "theirs", "others'"])
    papers = method_styles(["Gradient Filter 2", "Gradient Filter 4", "SVD 0.8", "HOSVD 0.8", "Subspace 0.8"])
    assert not {style["color"] for style in others.values()} & {style["color"] for style in papers.values()}


def test_a_line_a_method_on_a_log_axis_with_the_rows_values() -> None:
    (axes,) = plot(ROWS, "held").axes
    assert axes.get_xscale() == "log"
    containers = {container.get_label(): container for container in axes.containers}
    assert list(containers) == ["plain", "HOSVD 0.8"]
    for method, container in containers.items():
        rows = [row for row in ROWS if row.method == method]
        line = container.lines[0]
        assert line.get_xdata().tolist() == [row.held.mean for row in rows]
        assert line.get_ydata().tolist() == pytest.approx([100 * row.best_accuracy.mean for row in rows])
    colours = {container.lines[0].get_color() for container in containers.values()}
    assert len(colours) == 2
    assert [text.get_text() for text in axes.texts] == ["2", "4", "2", "4"]


@pytest.mark.parametrize("held", [[5000, 5100], [10**3, 10**9], [7, 7]])
def test_the_memory_axis_has_labels_however_close_the_points(held: list[int]) -> None:
    figure = plot(summarise(record(f"m{n}", held=h) for n, h in enumerate(held)))
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [t for t, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
             if low <= t <= high and label.get_text()]  # fmt: skip
    assert len(shown) >= 2
    # Beside the points there is room for a number of layers.
    assert low <= min(held) / 2 < 2 * max(held) <= high


def test_the_legend_is_outside_the_axes() -> None:
    figure = plot(ROWS)
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_numbers_of_layers_lie_over_no_marker_and_no_other_number() -> None:
    close = (("a", 1000, 0.50), ("b", 1080, 0.51), ("c", 1100, 0.90))
    many = [record(m, last=n, held=h * n, accuracies=(a,), paper=(1.0,)) for m, h, a in close for n in (1, 2)]
    figure = plot(summarise(many))
    figure.canvas.draw()
    (axes,) = figure.axes
    numbers = [text.get_window_extent() for text in axes.texts]
    scale = figure.dpi / 72
    lines = [container.lines[0] for container in axes.containers]
    markers = [axes.transData.transform((x, y)) for line in lines for x, y in line.get_xydata()]
    assert len(markers) == 6
    assert len(numbers) >= 4
    assert any(text.get_position()[0] < 0 for text in axes.texts)
    for number, box in enumerate(numbers):
        assert not any(box.overlaps(other) for other in numbers[:number])
        assert not any(box.contains(x, y) or box.padded(scale).contains(x, y) for x, y in markers)


@pytest.mark.parametrize("memory", list(measures))
@pytest.mark.parametrize("methods", [2, 14])
def test_numbers_of_layers_lie_over_one_another_and_the_frame_nowhere(methods: int, memory: str) -> None:
    # A long legend leaves the axes low.
    figure = plot(summarise(
        record(f"m{m}", last=n, held=h * n, accuracies=(0.6 + 0.01 * m * n,), paper=(float(h * n),))
        for m, h in ((m, 1000 + 150 * m) for m in range(methods)) for n in (1, 2, 4, 16)
    ), memory)  # fmt: skip
    figure.canvas.draw()
    (axes,) = figure.axes
    frame, numbers = axes.get_window_extent(), [text.get_window_extent() for text in axes.texts]
    assert 2 <= len(numbers) <= 4 * methods
    for number, box in enumerate(numbers):
        assert frame.x0 < box.x0 < box.x1 < frame.x1
        assert frame.y0 < box.y0 < box.y1 < frame.y1
        assert not any(box.overlaps(other) for other in numbers[:number])


@pytest.mark.parametrize("memory", list(measures))
def test_every_kind_of_memory_is_drawn_to_three_files(tmp_path: Path, memory: str) -> None:
    files = save_plot(plot(ROWS, memory), tmp_path / "new" / "figure.png")
    assert [file.name for file in files] == ["figure.png", "figure.pdf", "figure.svg"]
    assert Image.open(files[0]).convert("L").getextrema() == (0, 255)
    assert files[1].read_bytes().startswith(b"%PDF")
    assert b"<svg" in files[2].read_bytes()


@pytest.mark.parametrize("name", ["figure", "figure.png", "figure.PDF", "figure.svg"])
def test_the_three_suffixes_stand_for_all_three(tmp_path: Path, name: str) -> None:
    files = save_plot(plot(ROWS), tmp_path / name)
    assert [file.name for file in files] == ["figure.png", "figure.pdf", "figure.svg"]


@pytest.mark.parametrize("name", ["figure.xyz", "epsilon-0.8"])
def test_a_suffix_that_would_be_lost_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name}: expected a name without suffix, or with one of \.png, \.pdf, \.svg"
    ):
        save_plot(plot(ROWS), tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


def test_the_axis_says_what_ranks_the_runs() -> None:
    assert plot(ROWS).axes[0].get_ylabel() == "validation accuracy, %"
    assert plot(summarise([segmentation()])).axes[0].get_ylabel() == "mIoU, %"


def test_nothing_several_tasks_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 0"):
        plot([])
    with pytest.raises(ConfigError, match="got 2"):
        plot(summarise([record(), record(data="cifar10")]))
    with pytest.raises(ConfigError, match="held"):
        plot(ROWS, "imagined")
