"""Carry runs out one after the other, each in a process of its own, so that memory peaks can be compared."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tuckprop.data.load import subject
from tuckprop.errors import CheckpointError, TuckpropWarning
from tuckprop.report import Record, read_record
from tuckprop.report.records import FILE as RECORD
from tuckprop.reproduce.grid import Run
from tuckprop.train import DataSettings
from tuckprop.train.checkpoint import FILE as CHECKPOINT
from tuckprop.train.folder import make_folder

# What the process of a run returns after Ctrl-C.
_INTERRUPTED = 130
_BOX = " │╭╮╰╯─"
_WARNING = f"tuckprop: {TuckpropWarning.__name__}: "


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        run: The run.
        folder: Where it is.
        error: Its one line of error; None where it finished.
    """

    run: Run
    folder: Path
    error: str | None = None


def carry_out(runs: Sequence[Run], out: Path, tell: Callable[[str], None]) -> list[Outcome]:
    """Carry out the runs that are not finished yet.

    A run that was cut off goes on; one that fails is noted, and the others go on. Where it failed for its data set's
    files, those of the same data set are not started: they have the same error.

    Args:
        runs: What to run.
        out: Folder for the runs' folders.
        tell: Is told what happens, a line at a time.

    Returns:
        An outcome a run.

    Raises:
        ConfigError: The folder cannot be made or written to.
        KeyboardInterrupt: A run was interrupted.
    """
    make_folder(out)
    outcomes: list[Outcome] = []
    spent: list[float] = []
    warned: set[str] = set()
    unread: dict[tuple[str, ...], str] = {}
    for number, run in enumerate(runs, start=1):
        folder = out / run.name
        if finished(folder, run.settings):
            tell(f"run {number} of {len(runs)}: {run.name} is finished")
            for line in _other_files(folder, run.settings):
                if line not in warned:
                    tell(f"{_WARNING}{line}")
                    warned.add(line)
            outcomes.append(Outcome(run, folder))
            continue
        images = _images(run.settings)
        if images in unread:
            outcomes.append(Outcome(run, folder, unread[images]))
            continue
        left = f", about {_minutes(sum(spent) / len(spent) * (len(runs) - number + 1))} left" if spent else ""
        tell(f"run {number} of {len(runs)}: {run.name}{left}")
        begun = perf_counter()
        error = _train(run, folder, tell)
        outcomes.append(Outcome(run, folder, error))
        spent.append(perf_counter() - begun)
        if error is None:
            continue
        tell(f"run {number} of {len(runs)}: failed: {error}")
        if error.startswith(about := subject(images[0])):
            unread[images] = error
            if any(_images(other.settings) == images for other in runs[number:]):
                tell(f"no other run of {about} is started")
    return outcomes


def finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Say whether the folder holds a finished run of these settings."""
    record = _finished_record(folder)
    return record is not None and not _differences(record, settings)


def _images(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what decides which files are read: the data set's name first."""
    defaults = asdict(DataSettings())
    return tuple(str(settings.get(name, defaults[name])) for name in ("data", "data_path", "half"))


def _other_files(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return, in words, which other files than those given the finished run in the folder was made from."""
    record = _finished_record(folder)
    lines = []
    for name, absent in {"weights": "none", "data_path": "the usual place"}.items():
        there, here = (found.get(name) for found in (record.settings if record else settings, settings))
        # Without a path the data set is found in the usual place, wherever that is here.
        if _whole(there) != _whole(here) and not (name == "data_path" and here is None):
            lines.append(
                f"{name}: finished runs in {folder.parent} were made with {there or absent}, got {here or absent}; "
                "they are kept as they are, give another --out to run them anew"
            )
    return lines


def _whole(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser().resolve()


def _finished_record(folder: Path) -> Record | None:
    """Return the record of the finished run in the folder; None without one."""
    if not (folder / RECORD).exists():
        return None
    try:
        record = read_record(folder)
    except CheckpointError:
        return None
    return record if record.finished else None


def _differences(record: Record, settings: Mapping[str, Any]) -> list[str]:
    """Return which settings, in words, the run was not made with."""
    made = record.settings | record.settings["codec_settings"]
    elsewhere = {"data_path", "weights", "device", "threads"}
    return [
        f"{name} is {made.get(name)!r} there, {value!r} here"
        for name, value in settings.items()
        if name not in elsewhere and str(made.get(name)) != str(value)
    ]


def _train(run: Run, folder: Path, tell: Callable[[str], None]) -> str | None:
    """Return the error's line, or None; tell the warnings."""
    earlier = _finished_record(folder)
    if earlier is not None:
        differing = "; ".join(_differences(earlier, run.settings))
        return f"{folder} holds a finished run with other settings: {differing}; it is kept, give another --out"
    command = [sys.executable, "-m", "tuckprop.cli", "train", *run.arguments(), "--out", str(folder), "--no-table"]
    if (folder / CHECKPOINT).exists():
        command.append("--resume")
    elif (folder / RECORD).exists():
        command.append("--overwrite")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    # The command line's parser draws a box around what it says.
    lines = [line.strip(_BOX) for line in done.stderr.splitlines()]
    for line in lines:
        if line.startswith(_WARNING):
            tell(line)
    said = [line for line in lines if line.startswith("tuckprop: ")] or [" ".join(line for line in lines if line)]
    return None if done.returncode == 0 else (said[-1].removeprefix("tuckprop: ") or f"exit code {done.returncode}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
