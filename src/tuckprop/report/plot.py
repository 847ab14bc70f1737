"""Accuracy against memory, as the field draws it: memory on a log axis, one colour a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from tuckprop.errors import ConfigError
from tuckprop.registry import Registry
from tuckprop.report.style import method_styles, new_axes, validation_label
from tuckprop.report.summary import Row, Spread
from tuckprop.report.table import unit


@dataclass(frozen=True)
class Measure:
    """A kind of memory to plot against.

    Attributes:
        label: Of the axis.
        value: Bytes of a row.
    """

    label: str
    value: Callable[[Row], Spread]


# Points (1/72 inch): a digit's width and height, half a marker, and the gap between a number and what is beside it.
_DIGIT, _HEIGHT, _MARKER, _GAP = 4, 5, 3, 1

_SUFFIXES = (".png", ".pdf", ".svg")

measures: Registry[Measure] = Registry("kind of memory")
measures.add("held", Measure("held for backward, measured", lambda row: row.held))
measures.add("paper", Measure("activation memory, paper's count (peak)", lambda row: row.paper_peak))
measures.add("process", Measure("peak of the process, measured", lambda row: row.process_peak))


def plot(rows: Sequence[Row], memory: str = "held") -> Figure:
    """Draw the metric that ranks runs against memory, a line a method through its numbers of trained layers.

    Args:
        rows: Of one task.
        memory: Which kind, a name in `measures`.

    Returns:
        The figure.

    Raises:
        ConfigError: There are no rows, rows of several tasks, or no such kind of memory.
    """
    measure = measures[memory]
    tasks = sorted({row.task for row in rows})
    if len(tasks) != 1:
        raise ConfigError(f"plot: expected finished runs of one task, got {len(tasks)} ({'; '.join(tasks) or 'none'})")
    depths = {row.layers for row in rows}
    layers = "" if len(depths) > 1 else f", {next(iter(depths))} layers"
    figure, axes = new_axes(f"{tasks[0]}{layers}", measure.label, validation_label(rows[0].metric))
    styles = method_styles(row.method for row in rows)
    lines = {
        method: _line(axes, [row for row in rows if row.method == method], measure, style)
        for method, style in styles.items()
    }
    axes.set_xscale("log", base=2)
    axes.set_xlim(*_limits([measure.value(row).mean for row in rows]))
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    if len(depths) > 1:
        # The layout is settled by all that stands around the axes, and decides which numbers have room.
        figure.draw_without_rendering()
        _number(axes, [row for method in styles for row in rows if row.method == method], measure, styles)
    return figure


def _line(axes: Axes, points: list[Row], measure: Measure, style: dict[str, Any]) -> Artist:
    """Draw one method with its spreads."""
    drawn = axes.errorbar(
        [measure.value(row).mean for row in points],
        [100 * row.best_accuracy.mean for row in points],
        xerr=[measure.value(row).sd or 0 for row in points],
        yerr=[100 * (row.best_accuracy.sd or 0) for row in points],
        markersize=5,
        linewidth=1,
        capsize=2,
        label=points[0].method,
        **style,
    )
    line: Artist = drawn.lines[0]
    return line


def _number(axes: Axes, points: list[Row], measure: Measure, styles: dict[str, dict[str, Any]]) -> None:
    """Write the number of layers above each point, right or left of it, but where that has no room.

    It has none over another number, over a marker, or over the frame.
    """
    points_per_pixel = 72 / axes.figure.dpi
    places = [(measure.value(row).mean, 100 * row.best_accuracy.mean) for row in points]
    centres = [tuple(float(value) * points_per_pixel for value in axes.transData.transform(place)) for place in places]
    frame = Bbox(points_per_pixel * axes.get_window_extent().get_points()).padded(-_GAP)
    taken = [Bbox.from_extents(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in centres]
    for row, place, (x, y) in zip(points, places, centres, strict=True):
        width = _DIGIT * len(row.layers.number)
        for left in (4, -4 - width):
            box = Bbox.from_bounds(x + left, y + 4, width, _HEIGHT)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            taken.append(box.padded(_GAP))
            color = styles[row.method]["color"]
            axes.annotate(row.layers.number, place, (left, 4), textcoords="offset points", fontsize=6, color=color)
            break


def _tick(value: float, position: int | None = None) -> str:
    size, name = unit(value)
    return f"{value / size:g} {name}"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds around the values, with room beside the points and at least two powers of two between them."""
    low, high = log2(max(min(values), 1)), log2(max(*values, 2))
    room = max(1.0, 0.08 * (high - low))
    return 2.0 ** (low - room), 2.0 ** (high + room)


def check_suffix(path: Path) -> None:
    """Check that a file to save a figure to has none of the suffixes that it would lose without a word.

    Raises:
        ConfigError: It has one.
    """
    if path.suffix and path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"{path}: expected a name without suffix, or with one of {', '.join(_SUFFIXES)}, got {path.suffix}; a "
            "figure is written as each of them"
        )


def save_plot(figure: Figure, path: Path) -> list[Path]:
    """Save a figure as PNG, PDF and SVG.

    Args:
        figure: As `plot` returns it.
        path: Without suffix, or with one of the three, which is replaced; its folder is made where there is none.

    Returns:
        The files.

    Raises:
        ConfigError: The suffix is another.
    """
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in _SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=300)
    return files
