"""`tuckprop train`: one run, from data to a record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tuckprop.cli._interrupt import stop_on_interrupt
from tuckprop.cli._options import CompressionOptions, to_compression
from tuckprop.cli._progress import TrainingProgress
from tuckprop.data import datasets
from tuckprop.report import summarise, tables
from tuckprop.train import DataSettings, Experiment, Machine, NetworkSettings, Schedule, Start, codec_name, run


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        out: Folder of the run; by default runs/ and a name made of the settings.
        resume: Go on from the checkpoint in that folder.
        overwrite: Begin anew where that folder holds a run.
        table: Print a table at the end.
    """

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    table: bool = True


@dataclass(frozen=True)
class TrainOptions:
    """Train a network and leave a checkpoint and a record.

    Without options: a small network on scikit-learn's digits, which needs no download.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    compression: CompressionOptions = field(default_factory=CompressionOptions)
    schedule: Schedule = field(default_factory=Schedule)
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)


def train(options: TrainOptions) -> int:
    """Run it; return the exit code: 0, or 130 where it was interrupted."""
    console = Console()
    experiment = Experiment(
        options.network, options.data, to_compression(options.compression), options.schedule, options.machine
    )
    output = options.output
    out = output.out or Path("runs") / _folder(experiment)
    start = Start(resume=output.resume, overwrite=output.overwrite)
    progress = TrainingProgress(console)

    def begun() -> None:
        console.print(f"{experiment.method()} -> {out}", highlight=False, soft_wrap=True)

    with stop_on_interrupt() as stop, progress:
        record = run(experiment, out, start, begun=begun, stop=stop, watch=progress)
    if not record.finished:
        console.print(
            f"stopped after {len(record.epochs)} whole epochs; the checkpoint is in {out}. "
            "Go on with the same command and --resume" + ("." if output.out else f" --out {out}."),
            highlight=False,
        )
        return 130
    for table in tables(summarise([record])) if output.table else []:
        console.print(table)
    return 0


def _folder(experiment: Experiment) -> str:
    """Return a folder's name that tells the run apart from others that differ in method, depth or seed."""
    compression = experiment.compression
    codec = compression.codec
    settings: dict[str, Any] = experiment.flat()["codec_settings"]
    method = ["plain"] if codec is None else [codec_name(codec), *map(str, settings.values())]
    if compression.paper_patches:
        method = [codec_name(codec), "patches"] if codec is not None else method
    depth = "all" if compression.last is None else f"last{compression.last}"
    if compression.paper_layers is not None:
        depth = f"paper{compression.paper_layers}"
    if compression.train_only is not None:
        depth = "+".join(compression.train_only)
    model = experiment.network.model or datasets[experiment.data.data].network
    parts = [experiment.data.data, model, *method, depth, f"seed{experiment.schedule.seed}"]
    return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts)
