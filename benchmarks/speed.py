r"""Time and memory of one training step: a process a method, steps in turns, medians, quartiles and the ratio to plain.

    python benchmarks/speed.py --data-path PATH --weights mcunet.safetensors
    python benchmarks/speed.py --data-path PATH --weights mcunet.safetensors --device cuda --tf32 --batch 128 \
        --resolution 224 --warmup 12 --cycle 8 --methods plain plain-channels-last checkpoint dense asi subspace-0.8 \
        plain-captured subspace-0.8-captured        # then --bfloat16

Methods named captured replay CUDA graphs (tuckprop.capture), for which the first steps are taken as usual; how often
they are in a longer run is for captured.py to say. Held bytes and the peak are taken in the same processes, on steps
before the timed ones, as memory.py takes them. Memory that glibc keeps after it was freed counts in the peak.
"""

from dataclasses import dataclass, replace

import tyro
from arms import NETWORKS
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from turns import Result, Settings, compare, quartiles, write_record


@dataclass(frozen=True)
class Options(Settings):
    """What to time."""

    networks: tuple[str, ...] = ("resnet18", "resnet34", "mobilenetv2", "mcunet", "swin-t")
    """Of those in arms.py."""
    methods: tuple[str, ...] = (
        "plain", "plain-channels-last", "checkpoint", "bf16", "dense", "hosvd-0.8", "asi", "subspace-0.8",
    )  # fmt: skip
    """Of those in arms.py; the first is the one the others are divided by."""
    batch: int | None = None
    """Images a step, instead of the network's."""
    resolution: int | None = None
    """Pixels a side, instead of the network's."""


def main() -> None:
    """Compare the methods on every network, print a table each and write the records."""
    options = tyro.cli(Options)
    console = Console(width=140)
    for name in options.networks:
        network = NETWORKS[name]
        network = replace(
            network, batch=options.batch or network.batch, resolution=options.resolution or network.resolution
        )
        results = compare(options, network, options.methods)
        for method, result in results.items():
            where = {"network": name, "method": method, "batch": network.batch, "resolution": network.resolution}
            where |= {"tf32": options.tf32, "bfloat16": options.bfloat16}
            write_record(options, where | result.record())
        console.print(table(name, results))
    console.print(in_words(environment(options.device, options.threads)), highlight=False)


def table(network: str, results: dict[str, Result]) -> Table:
    """Return one network's table."""
    heads = ("method", "step, s", "quartiles", "ratio to plain, paired", "quartiles", "held, MB", "peak, MB")
    on_a_gpu = any(result.reserved for result in results.values())
    heads += ("reserved, MB",) if on_a_gpu else ()
    drawn = Table(*heads, title=network)
    for method, result in results.items():
        seconds, ratio = quartiles(result.seconds), quartiles(result.ratios)
        drawn.add_row(
            method,
            f"{seconds.middle:.3f}",
            f"{seconds.low:.3f}..{seconds.high:.3f}",
            f"{ratio.middle:.2f}",
            f"{ratio.low:.2f}..{ratio.high:.2f}",
            f"{result.memory.held / 1e6:.1f}",
            f"{result.memory.peak / 1e6:.0f}",
            *((f"{result.reserved / 1e6:.0f}",) if on_a_gpu else ()),
        )
    return drawn


if __name__ == "__main__":
    main()
