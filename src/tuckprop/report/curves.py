"""Loss and the metric that ranks runs epoch by epoch: a line a run, one colour a method."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tuckprop.errors import ConfigError
from tuckprop.report.records import Record
from tuckprop.report.style import COLOURS, SIZE, method_styles, validation_label
from tuckprop.report.summary import summarise, task

# More markers on a line than these hide it.
_MARKS = 10


def curves(records: Sequence[Record]) -> Figure:
    """Draw training loss above the metric that ranks runs, a line a run; runs that are not finished are dashed.

    Args:
        records: Of one task; those without an epoch are left away.

    Returns:
        The figure; a method has the colour and the marker that `tuckprop.report.plot` gives it.

    Raises:
        ConfigError: No record has an epoch, or the records are of several tasks.
    """
    begun = [record for record in records if record.epochs]
    tasks = sorted({task(record) for record in begun})
    if len(tasks) != 1:
        raise ConfigError(
            f"curves: expected runs of one task with an epoch or more, got {len(tasks)} ({'; '.join(tasks) or 'none'})"
        )
    width, height = SIZE
    figure = Figure(figsize=(width, 1.5 * height), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    # The order of the rows, so that the colours are those of the other plots; then methods with no finished run.
    methods = list(dict.fromkeys([row.method for row in summarise(begun)] + [record.method for record in begun]))
    styles = method_styles(methods)
    for record in begun:
        style = styles[record.method]
        _line(above, record, style, [epoch.loss for epoch in record.epochs])
        _line(below, record, style, [100 * epoch.val_accuracy for epoch in record.epochs])
    above.set_title(tasks[0], fontsize=8)
    above.set_ylabel("training loss", fontsize=8)
    below.set_ylabel(validation_label(begun[0].metric), fontsize=8)
    below.set_xlabel("epoch", fontsize=8)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, linewidth=0.5)
    _legend(figure, styles, all(record.finished for record in begun))
    return figure


def _line(axes: Axes, record: Record, style: dict[str, str], values: Sequence[float]) -> None:
    axes.plot(
        [epoch.epoch for epoch in record.epochs],
        values,
        color=style["color"],
        marker=style["marker"],
        markersize=3,
        markevery=-(-len(values) // _MARKS),
        linewidth=0.8,
        alpha=0.8,
        linestyle="-" if record.finished else "--",
    )


def _legend(figure: Figure, styles: dict[str, dict[str, str]], finished: bool) -> None:
    """Add an entry a method, and one for dashed lines where there are any."""
    entries = [
        Line2D([], [], color=style["color"], marker=style["marker"], markersize=4, linewidth=1)
        for style in styles.values()
    ]
    labels = list(styles)
    if not finished:
        entries.append(Line2D([], [], color=COLOURS[0], linestyle="--", linewidth=0.8))
        labels.append("not finished")
    figure.legend(entries, labels, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
