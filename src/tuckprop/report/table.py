"""Rows as a table, for a terminal or for Markdown."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from rich.table import Table

from tuckprop.report.summary import Row, Spread

_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))


def percent(value: Spread) -> str:
    """Return a share in percent, such as "81.2 ± 0.4"."""
    return f"{100 * value.mean:.1f}" + ("" if value.sd is None else f" ± {100 * value.sd:.1f}")


def data_size(value: Spread) -> str:
    """Return bytes in a unit that fits, such as "4.71 ± 0.12 KiB"."""
    size, name = unit(value.mean)
    spread = "" if value.sd is None else f" ± {_digits(value.sd / size)}"
    return f"{_digits(value.mean / size)}{spread} {name}"


def unit(nbytes: float) -> tuple[int, str]:
    """Return the largest binary unit that is not larger than `nbytes`, in bytes, and its name."""
    return next(((2**power, name) for power, name in _UNITS if nbytes >= 2**power), (1, "B"))


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(value: Spread) -> str:
    """Return seconds as milliseconds, such as "12.5 ± 0.3"."""
    return _digits(1000 * value.mean) + ("" if value.sd is None else f" ± {_digits(1000 * value.sd)}")


Column = tuple[str, Callable[[Row], str]]
# Heading and cell; the first two are text.
TEXT_COLUMNS = 2
_METHOD: tuple[Column, ...] = (
    ("method", lambda row: row.method),
    ("layers", lambda row: str(row.layers)),
)
BRIEF_CAPTION = (
    "{metric}: validation, best epoch. paper's count: a formula over ranks, largest epoch mean. held: unique bytes "
    "kept for backward, measured on one batch. process: its peak, libraries and data included."
)
FULL_CAPTION = (
    "Mean ± standard deviation over seeds (paper's count, mean: over epochs and seeds). On validation images: "
    "{metrics}. Paper's count: a formula over the ranks of the compressed layers' inputs; peak: largest epoch mean. "
    "Held for backward: unique bytes measured on one batch. Process peak: libraries and data included."
)


def _brief(row: Row) -> tuple[Column, ...]:
    """Return the terminal's columns for rows of the task of `row`."""
    return (
        *_METHOD,
        (f"{row.metric}, %", lambda row: percent(row.best_accuracy)),
        ("paper's count", lambda row: data_size(row.paper_peak)),
        ("held", lambda row: data_size(row.held)),
        ("process", lambda row: data_size(row.process_peak)),
        ("step, ms", lambda row: milliseconds(row.step_seconds)),
    )


def full_columns(row: Row) -> tuple[Column, ...]:
    """Return all columns for rows of the task of `row`."""
    others = [(f"{name}, best epoch, %", partial(_other, name)) for name in row.others]
    return (
        *_METHOD,
        ("runs", lambda row: str(row.runs)),
        (f"{row.metric}, best epoch, %", lambda row: percent(row.best_accuracy)),
        (f"{row.metric}, last epoch, %", lambda row: percent(row.last_accuracy)),
        *others,
        ("paper's count, peak", lambda row: data_size(row.paper_peak)),
        ("paper's count, mean", lambda row: data_size(row.paper_mean)),
        ("held for backward", lambda row: data_size(row.held)),
        ("process peak", lambda row: data_size(row.process_peak)),
        ("step, ms", lambda row: milliseconds(row.step_seconds)),
    )


def _other(name: str, row: Row) -> str:
    return percent(row.others[name])


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a brief table for the terminal for each task among the rows."""
    result = []
    for (task, metric), group in groupby(rows, key=_task):
        members = list(group)
        columns = _brief(members[0])
        caption = BRIEF_CAPTION.format(metric=metric)
        table = Table(title=task, caption=caption, caption_justify="left")
        for number, (heading, _) in enumerate(columns):
            table.add_column(heading, justify="left" if number < TEXT_COLUMNS else "right", overflow="fold")
        for row in members:
            table.add_row(*(cell(row) for _, cell in columns))
        result.append(table)
    return result


def markdown(rows: Sequence[Row]) -> str:
    """Return Markdown with a full table for each task among the rows."""
    parts = []
    for (task, _metric), group in groupby(rows, key=_task):
        members = list(group)
        columns = full_columns(members[0])
        marks = ["---" if number < TEXT_COLUMNS else "---:" for number in range(len(columns))]
        lines = [[heading for heading, _ in columns], marks, *([cell(row) for _, cell in columns] for row in members)]
        parts.append(f"**{task}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, full_caption(rows)]) + "\n"


def full_caption(rows: Sequence[Row]) -> str:
    """Return what explains the columns of a full table."""
    metrics = ", ".join(dict.fromkeys(name for row in rows for name in (row.metric, *row.others)))
    return FULL_CAPTION.format(metrics=metrics)


def _task(row: Row) -> tuple[str, str]:
    """Return what the rows of one table share."""
    return row.task, row.metric
