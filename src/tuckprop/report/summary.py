"""Runs that differ in nothing but the seed become one row: means and spreads."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from tuckprop.report.depth import Depth
from tuckprop.report.records import Memory, Record

# Settings that tell where a run was made, not what.
_ELSEWHERE = {"seed", "weights", "data_path", "device", "threads"}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation.

    Attributes:
        mean: Over values.
        sd: Sample standard deviation; None for a single value.
    """

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return that of one value or more."""
        return cls(mean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """One method on one task.

    Attributes:
        task: Data set and network, such as "cifar10, mcunet".
        method: Such as "HOSVD 0.8".
        layers: Which layers are trained.
        metric: Name of the metric that ranks runs, called accuracy below.
        runs: How many seeds.
        best_accuracy: Highest validation accuracy over epochs (the paper's), over seeds.
        last_accuracy: Validation accuracy after the last epoch, over seeds.
        others: The other metrics on validation images after the best epoch, by name, over seeds.
        paper_peak: The paper's count: largest epoch mean of a run; bytes, over seeds.
        paper_mean: The paper's count: epoch means of all epochs of all seeds; bytes.
        held: Really held for backward on one batch; bytes, over seeds.
        process_peak: Peak of the process; bytes, over seeds.
        step_seconds: Median step, over seeds.
    """

    task: str
    method: str
    layers: Depth
    metric: str
    runs: int
    best_accuracy: Spread
    last_accuracy: Spread
    others: dict[str, Spread]
    paper_peak: Spread
    paper_mean: Spread
    held: Spread
    process_peak: Spread
    step_seconds: Spread


def task(record: Record) -> str:
    """Return the name of a run's task: data set and network, such as "cifar10, mcunet"."""
    return f"{record.settings['data']}, {record.settings['model']}"


def summarise(records: Iterable[Record]) -> list[Row]:
    """Return a row for every group of finished runs that differ in nothing but the seed.

    Args:
        records: In any order; unfinished ones are left away.

    Returns:
        Rows by task and number of layers, otherwise in the order of their first records.
    """

    def known(name: str, value: Any) -> bool:
        # Older records lack settings that came later, and are as None or off there.
        return name not in _ELSEWHERE and value is not None and value is not False

    groups: dict[Any, list[Record]] = {}
    for record in records:
        if record.finished:
            key = repr(sorted((k, v) for k, v in record.settings.items() if known(k, v)))
            groups.setdefault((record.method, key), []).append(record)
    rows = [_row(group) for group in groups.values()]
    return sorted(rows, key=lambda row: (row.task, row.layers.order, str(row.layers)))


def _row(group: list[Record]) -> Row:
    settings = group[0].settings

    def over(value: Callable[[Record], float]) -> Spread:
        return Spread.of([value(record) for record in group])

    def measured(value: Callable[[Memory], int]) -> Spread:
        return Spread.of([float(value(record.memory)) for record in group if record.memory is not None])

    others = [name for name in group[0].best_epoch.metrics if name != group[0].metric]
    return Row(
        task=task(group[0]),
        method=group[0].method,
        layers=Depth.of(settings),
        metric=group[0].metric,
        runs=len(group),
        best_accuracy=over(lambda record: record.best_accuracy),
        last_accuracy=over(lambda record: record.last_accuracy),
        others={name: Spread.of([record.best_epoch.metrics[name] for record in group]) for name in others},
        paper_peak=over(lambda record: record.peak_paper_bytes),
        paper_mean=Spread.of([epoch.paper_bytes for record in group for epoch in record.epochs]),
        held=measured(lambda memory: memory.held_bytes),
        process_peak=measured(lambda memory: memory.process_peak_bytes),
        step_seconds=over(lambda record: median(epoch.step_seconds for epoch in record.epochs)),
    )
