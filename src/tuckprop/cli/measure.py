"""`tuckprop measure`: bytes that a training step really holds."""

from dataclasses import dataclass, field

import tuckprop
from tuckprop.cli._options import CompressionOptions, to_compression
from tuckprop.train import DataSettings, Machine, NetworkSettings, Schedule, Trainer, compress, prepare


@dataclass(frozen=True)
class MeasureOptions:
    """Run one training step and print who holds how many bytes for backward."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    compression: CompressionOptions = field(default_factory=CompressionOptions)
    machine: Machine = field(default_factory=Machine)
    seed: int = 233


def measure(options: MeasureOptions) -> int:
    """Print it; return the exit code."""
    compression = to_compression(options.compression)
    prepared = prepare(options.network, options.data, options.machine, options.seed)
    sites = compress(prepared, compression)
    trainer = Trainer(
        prepared.model, Schedule(), task=prepared.task, sites=sites, channels_last=options.machine.channels_last
    )
    print(tuckprop.measure(prepared.model, trainer.first_loss(prepared.data.train)))
    return 0
