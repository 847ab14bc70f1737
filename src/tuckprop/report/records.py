"""The record of a run: what was asked, on what it ran, and what came out; JSON lines on disk."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tuckprop.errors import CheckpointError
from tuckprop.whole_file import whole_file

FILE = "record.jsonl"
_FORMAT = 1
_KINDS = ("run", "epoch", "memory")


@dataclass(frozen=True)
class Epoch:
    """One epoch: the steps from one validation to the next.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean training loss.
        train_accuracy: The metric that ranks runs on the training images, as they were trained on: for classification
            the share that were right.
        val_loss: Mean validation loss.
        val_accuracy: That metric on the validation images after the epoch.
        learning_rate: Used in its last step.
        paper_bytes: Mean over its batches of the activation bytes as the paper counts them.
        step_seconds: Median over its batches of the seconds a step takes, data included.
        seconds: Whole epoch, validation included.
        metrics: All metrics on the validation images, by name; empty in records of before there were several.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    paper_bytes: float
    step_seconds: float
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """What a run measured once. Bytes; see `tuckprop.MemoryReport` for the first four.

    Attributes:
        held_bytes: Really held for backward on the first batch, with the trained weights.
        naive_bytes: The same with shared storages counted each time.
        step_peak_bytes: Most bytes allocated at once in that forward and backward.
        paper_bytes: The paper's count for that batch.
        process_peak_bytes: Peak of the whole process during training: resident set on a CPU, allocator on a GPU.
        process_start_bytes: The same just before the first step: libraries, data and weights.
        process_peak_kind: "resident set" or "CUDA allocator".
    """

    held_bytes: int
    naive_bytes: int
    step_peak_bytes: int
    paper_bytes: int
    process_peak_bytes: int
    process_start_bytes: int
    process_peak_kind: str


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        method: How a table or plot names the method, such as "HOSVD 0.8".
        settings: Everything that was asked for, flat, JSON values.
        environment: Versions, device, threads.
        sites: Names of the layers whose activations the paper counts.
        epochs: Those that are finished.
        memory: Measured at the end; None before.
        metric: Name of the metric that ranks runs, which epochs have as their accuracy.
    """

    method: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    sites: tuple[str, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    memory: Memory | None = None
    metric: str = "accuracy"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.memory is not None

    @property
    def best_accuracy(self) -> float:
        """Highest validation accuracy over epochs, as the paper reports it."""
        return self.best_epoch.val_accuracy

    @property
    def best_epoch(self) -> Epoch:
        """The first epoch of the highest validation accuracy."""
        return max(self.epochs, key=lambda epoch: epoch.val_accuracy)

    @property
    def last_accuracy(self) -> float:
        """Validation accuracy after the last epoch."""
        return self.epochs[-1].val_accuracy

    @property
    def peak_paper_bytes(self) -> float:
        """Largest over epochs of the epoch's mean, as the paper reports it."""
        return max(epoch.paper_bytes for epoch in self.epochs)


def write_record(record: Record, path: Path) -> None:
    """Write a record: a line for the run, one for each epoch, one for the memory at the end; all or nothing.

    Args:
        record: What to write.
        path: The file; its folder is made where there is none.
    """
    head = {"kind": "run", "format": _FORMAT, "method": record.method, "settings": record.settings}
    head |= {"environment": record.environment, "sites": list(record.sites), "metric": record.metric}
    lines = [head, *({"kind": "epoch"} | asdict(epoch) for epoch in record.epochs)]
    if record.memory is not None:
        lines.append({"kind": "memory"} | asdict(record.memory))
    with whole_file(path) as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Args:
        path: The file, or the folder of the run.

    Returns:
        The record.

    Raises:
        CheckpointError: There is none, or there are several in one file, or a line is damaged.
    """
    path = path / FILE if path.is_dir() else path
    records = read_records(path)
    if len(records) > 1:
        raise CheckpointError(f"{path}: expected the record of one run, got those of {len(records)}")
    return records[0]


def read_records(path: Path) -> list[Record]:
    """Read a file that has the records of several runs, one behind the other.

    Args:
        path: The file.

    Returns:
        The records, in their order.

    Raises:
        CheckpointError: There is none, or a line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected the record of a run ({FILE}), cannot read it: {error}") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            begun = records.pop() if records and not (isinstance(entry, dict) and entry.get("kind") == "run") else None
            records.append(_add(begun, entry))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}, line {number}: expected a line of a run's record: {error}") from error
    if not records:
        raise CheckpointError(f"{path}: expected the record of a run, it is empty")
    return records


def _add(record: Record | None, line: Any) -> Record:
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {line!r}")
    kind = line.pop("kind")
    if kind == "run":
        if line.pop("format") != _FORMAT:
            raise ValueError(f"not of format {_FORMAT}")
        wanted = {f.name for f in fields(Record)}
        if unknown := line.keys() - wanted:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        return Record(**line | {"sites": tuple(line["sites"])})
    if record is None:
        raise ValueError("the first line must describe the run")
    if kind == "epoch":
        return replace(record, epochs=(*record.epochs, Epoch(**line)))
    if kind == "memory":
        return replace(record, memory=Memory(**line))
    raise ValueError(f"unknown kind {kind!r}")


def find_records(paths: Iterable[Path]) -> list[Record]:
    """Read the records of runs.

    Args:
        paths: Record files, of one run or of several, folders of runs, or folders that hold those at any depth. Of a
            folder without a run's folder, the other .jsonl files that hold records of runs are read.

    Returns:
        The records, each file once, in the order of their paths.

    Raises:
        CheckpointError: A path holds no record, or a record is damaged.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = _files(path) if path.is_dir() else [path]
        if not found:
            raise CheckpointError(
                f"{path}: expected the folder of a run or of several, found no {FILE} in it and no other .jsonl file "
                "with records of runs"
            )
        files |= dict.fromkeys(file.resolve() for file in found)
    return [record for file in files for record in read_records(file)]


def _files(folder: Path) -> list[Path]:
    """Return the records of runs below a folder: those of runs' folders, without any the files that collect them."""
    return sorted(folder.rglob(FILE)) or [path for path in sorted(folder.rglob("*.jsonl")) if _of_runs(path)]


def _of_runs(path: Path) -> bool:
    """Say whether a file holds records of runs; also where its first line is damaged, which reading it will say."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return True
    return isinstance(line, dict) and line.get("kind") in _KINDS
