"""One run, from settings to a record on disk, that can be stopped and resumed."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuckprop import __version__, measure
from tuckprop.errors import ConfigError
from tuckprop.memory import peak_rss
from tuckprop.report.records import FILE as RECORD
from tuckprop.report.records import Memory, Record, read_record, write_record
from tuckprop.train.checkpoint import FILE as CHECKPOINT
from tuckprop.train.checkpoint import load_checkpoint, save_checkpoint
from tuckprop.train.folder import made_folder
from tuckprop.train.loop import Trainer
from tuckprop.train.prepare import Prepared, compress, prepare
from tuckprop.train.settings import Experiment
from tuckprop.train.watch import Watch


@dataclass(frozen=True)
class Start:
    """What to do about what an earlier run left in the folder.

    Attributes:
        resume: Go on from its checkpoint.
        overwrite: Begin anew in its place.
    """

    resume: bool = False
    overwrite: bool = False


def run(
    experiment: Experiment,
    out: Path,
    start: Start | None = None,
    *,
    begun: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Record:
    """Train, and leave a checkpoint and a record in `out`.

    Args:
        experiment: What to run.
        out: Folder of the run.
        start: What to do where `out` holds a run; by default that is an error, so that none is lost.
        begun: Is called once all settings are found usable, before the first step.
        stop: Is asked after every step whether to stop; the run can then be resumed.
        watch: Is told of steps and epochs.

    Returns:
        The record; not finished where `stop` said so.

    Raises:
        ConfigError: A setting has a value that cannot be used, or `out` holds a run or cannot be written to.
        DataError: Data or weights are missing or do not fit.
        CheckpointError: The run cannot be resumed.
    """
    start = start or Start()
    experiment.schedule.check()
    _refuse_earlier(out, start)
    with made_folder(out):
        prepared = prepare(experiment.network, experiment.data, experiment.machine, experiment.schedule.seed)
        experiment = replace(experiment, network=replace(experiment.network, model=prepared.name))
        sites = compress(prepared, experiment.compression)
        trainer = Trainer(
            prepared.model,
            experiment.schedule,
            task=prepared.task,
            sites=sites,
            channels_last=experiment.machine.channels_last,
        )
        identity = experiment.identity()
        if start.resume:
            trainer.restore(load_checkpoint(out / CHECKPOINT, identity))
    begun()
    settings, environment = experiment.flat(), describe_environment(prepared)
    record = Record(
        experiment.method(), settings, environment, sites, tuple(trainer.epochs), metric=prepared.task.metric
    )
    if start.resume and (earlier := _finished(out, len(trainer.epochs))) is not None:
        return earlier

    def save() -> None:
        save_checkpoint(out / CHECKPOINT, identity, trainer.state())
        write_record(replace(record, epochs=tuple(trainer.epochs)), out / RECORD)

    before = process_peak(prepared.device)
    finished = trainer.train(prepared.data.train, prepared.data.val, save=save, stop=stop, watch=watch)
    record = replace(record, epochs=tuple(trainer.epochs))
    if finished:
        record = replace(record, memory=measure_memory(trainer, prepared, before))
        write_record(record, out / RECORD)
    return record


def _refuse_earlier(out: Path, start: Start) -> None:
    """Check that no run is in the folder, unless `start` says what to do about it."""
    if not start.resume and not start.overwrite and ((out / CHECKPOINT).exists() or (out / RECORD).exists()):
        raise ConfigError(
            f"{out} holds a run already: pass --resume to go on with it, --overwrite to begin anew in its place, or "
            "another folder with --out"
        )


def _finished(out: Path, epochs: int) -> Record | None:
    """Return the record in the folder if it is that of a finished run of so many epochs."""
    if not (out / RECORD).exists():
        return None
    record = read_record(out / RECORD)
    return record if record.finished and len(record.epochs) == epochs else None


def measure_memory(trainer: Trainer, prepared: Prepared, before: int) -> Memory:
    """Return what a finished run held and took; `before` is what `process_peak` returned before the first step."""
    # The process first: measuring takes memory itself.
    peak = process_peak(prepared.device)
    report = measure(prepared.model, trainer.first_loss(prepared.data.train))
    return Memory(
        held_bytes=report.held_bytes,
        naive_bytes=report.naive_bytes,
        step_peak_bytes=report.peak_bytes,
        paper_bytes=round(trainer.epochs[-1].paper_bytes),
        process_peak_bytes=peak,
        process_start_bytes=before,
        process_peak_kind="CUDA allocator" if prepared.device.type == "cuda" else "resident set",
    )


def process_peak(device: torch.device) -> int:
    """Return the most bytes that the process has had so far: resident set on a CPU, allocator on a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()


def describe_environment(prepared: Prepared) -> dict[str, Any]:
    """Return versions, device, threads and weights, for a record."""
    device = prepared.device
    return {
        "tuckprop": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "weights": None if prepared.weights is None else str(prepared.weights),
    }
