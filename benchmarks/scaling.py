"""How the cost of a method grows with batch, resolution and the number of trained layers, against plain training.

    python benchmarks/scaling.py --data-path PATH --weights mcunet.safetensors --out scaling.jsonl
    python benchmarks/draw_scaling.py scaling.jsonl --out FIGURE

One network; one of the three grows, the other two are as in arms.py. Every point is a comparison as in speed.py: steps
in turns, ratios to plain turn by turn, the memory of a step. A point that several lines go through is measured once.
"""

from dataclasses import dataclass, replace
from typing import Literal

import tyro
from arms import NETWORKS, Network
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from turns import Settings, compare, quartiles, write_record

from tuckprop.plan import choose_sites
from tuckprop.zoo import build


@dataclass(frozen=True)
class Options(Settings):
    """What grows."""

    network: str = "mcunet"
    """Of those in arms.py."""
    methods: tuple[str, ...] = ("plain", "subspace-0.8", "hosvd-0.8", "dense", "checkpoint")
    """Of those in arms.py; the first is the one the others are divided by."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Images a step."""
    resolutions: tuple[int, ...] = (64, 96, 128, 192, 224)
    """Pixels a side."""
    depths: tuple[int | Literal["all"], ...] = (2, 4, 8, 16, "all")
    """Convolutions that are trained, from the last (Linear layers in a transformer)."""


def points(options: Options) -> dict[Network, list[str]]:
    """Return every variant of the network, with the axes that it is a point of."""
    base = NETWORKS[options.network]
    found: dict[Network, list[str]] = {}
    for batch in options.batches:
        found.setdefault(replace(base, batch=batch), []).append("batch")
    for resolution in options.resolutions:
        found.setdefault(replace(base, resolution=resolution), []).append("resolution")
    for depth in options.depths:
        found.setdefault(replace(base, last=None if depth == "all" else depth), []).append("layers")
    return found


def layers(network: Network) -> int:
    """Return how many layers there are to count from the last."""
    model = build(network.name, classes=10)
    names, (final,) = choose_sites(model), choose_sites(model, last=1)
    kind = type(model.get_submodule(final))
    return sum(isinstance(model.get_submodule(name), kind) for name in names[: names.index(final) + 1])


def main() -> None:
    """Compare the methods at every point, write the records as they come, and print one table."""
    options = tyro.cli(Options)
    console = Console(width=140)
    every = layers(NETWORKS[options.network])
    table = Table(
        "batch", "resolution", "layers", "method", "step, s", "ratio to plain, paired", "quartiles", "held, MB",
        "peak, MB", title=options.network,
    )  # fmt: skip
    variants = points(options)
    for number, (network, axes) in enumerate(variants.items(), 1):
        trained = every if network.last is None else network.last
        place = {"batch": network.batch, "resolution": network.resolution, "layers": trained}
        console.print(f"{number} of {len(variants)}: {place}", highlight=False)
        for method, result in compare(options, network, options.methods).items():
            where = {"network": options.network, "method": method, "axes": axes, **place}
            write_record(options, where | result.record())
            ratio = quartiles(result.ratios)
            table.add_row(
                *map(str, place.values()),
                method,
                f"{quartiles(result.seconds).middle:.3f}",
                f"{ratio.middle:.2f}",
                f"{ratio.low:.2f}..{ratio.high:.2f}",
                f"{result.memory.held / 1e6:.1f}",
                f"{result.memory.peak / 1e6:.0f}",
            )
    console.print(table)
    console.print(in_words(environment(options.device, options.threads)), highlight=False)


if __name__ == "__main__":
    main()
