"""`tuckprop plan`: what a conversion would do and save."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

import tuckprop
from tuckprop.cli._options import CompressionOptions, to_compression
from tuckprop.convert import keep_frozen
from tuckprop.errors import ConfigError
from tuckprop.train import DataSettings, Machine, NetworkSettings, choose, prepare


@dataclass(frozen=True)
class PlanOptions:
    """Print what a conversion would do, layer by layer, and what it would save on one batch."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    compression: CompressionOptions = field(default_factory=lambda: CompressionOptions(codec="hosvd"))
    machine: Machine = field(default_factory=Machine)
    seed: int = 233
    save: Annotated[Path | None, tyro.conf.arg(help="Write the plan as JSON to this file too.")] = None


def plan(options: PlanOptions) -> int:
    """Print it; return the exit code."""
    compression = to_compression(options.compression)
    if compression.codec is None:
        raise ConfigError("plan: expected a codec to plan for, got plain; see --help for the codecs")
    if compression.recompute:
        raise ConfigError(
            "plan: expected a conversion, got recompute; `tuckprop measure --recompute` says what it holds"
        )
    prepared = prepare(options.network, options.data, options.machine, options.seed)
    images, _ = next(prepared.data.train.serve())
    choice = choose(prepared, compression)
    assert choice.codec is not None
    keep_frozen(prepared.model, choice.frozen, batch_norms=choice.frozen_norms)
    made = tuckprop.plan(
        prepared.model,
        images.to(prepared.device),
        choice.codec,
        last=choice.last,
        select=choice.select,
        pointwise=compression.pointwise,
        budget=compression.budget,
    )
    made = replace(made, frozen=choice.frozen or made.frozen)
    print(made)
    if options.save is not None:
        options.save.write_text(made.to_json(), encoding="utf-8")
    return 0
