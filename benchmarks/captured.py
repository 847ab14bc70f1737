"""What a captured training takes over many steps, those that are taken as usual and the captures counted.

    python benchmarks/captured.py --data-path PATH --weights mcunet.safetensors

One training after the other, on the same batches; all steps after the first few count. A step's time is a wall
clock's, from a device that has nothing to do to one that has nothing to do.
"""

import time
from dataclasses import dataclass, replace
from statistics import median

import torch
import tyro
from arms import NETWORKS, Training, batches
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from turns import Settings, write_record

from tuckprop.layers import trackers


@dataclass(frozen=True)
class Options(Settings):
    """What to run."""

    networks: tuple[str, ...] = ("resnet18", "mobilenetv2", "mcunet", "swin-t")
    """Of those in arms.py."""
    methods: tuple[str, ...] = ("plain", "subspace-0.8-captured")
    """Of those in arms.py; the first is the one the others are divided by."""
    batch: int = 128
    """Images a step."""
    resolution: int = 224
    """Pixels a side."""
    settle: int = 40
    """Steps that do not count."""
    steps: int = 200
    """Steps that do."""
    images: int = 20
    """Batches that are served over and over."""


def refreshes(training: Training) -> int:
    """Return how often bases were computed so far, at all sites."""
    return sum(getattr(tracker, "refreshes", 0) for tracker in trackers(training.model))


def main() -> None:
    """Train, print a table and write the records."""
    options = replace(tyro.cli(Options), device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    device = torch.device(options.device)
    console = Console(width=120)
    table = Table("network", "method", "step, ms: median", "mean", "ratio of means", "slow steps", "bases computed")
    for name in options.networks:
        network = replace(NETWORKS[name], batch=options.batch, resolution=options.resolution)
        served = list(batches(network, options.data, options.data_path, options.images, device))
        taken: dict[str, list[float]] = {method: [] for method in options.methods}
        computed: dict[str, int] = {}
        for method in options.methods:
            # One after the other: a graph's memory and another method's are not to share a card.
            training = Training(network, method, device, options.weights, bfloat16=options.bfloat16)
            given = [training.take(*pair) for pair in served]
            before = 0
            for step in range(options.settle + options.steps):
                if step == options.settle:
                    before = refreshes(training)
                torch.cuda.synchronize()
                start = time.perf_counter()
                training.step(*given[step % len(given)])
                torch.cuda.synchronize()
                if step >= options.settle:
                    taken[method].append(time.perf_counter() - start)
            computed[method] = refreshes(training) - before
            del training, given
            torch.cuda.empty_cache()
        means = {method: sum(times) / len(times) for method, times in taken.items()}
        for method, times in taken.items():
            middle = median(times)
            slow = sum(t > 1.5 * middle for t in times)
            ratio = means[method] / means[options.methods[0]]
            numbers = (f"{middle * 1e3:.1f}", f"{means[method] * 1e3:.1f}", f"{ratio:.2f}", f"{slow}")
            table.add_row(name, method, *numbers, f"{computed[method]}")
            where = {"network": name, "method": method, "batch": network.batch, "resolution": network.resolution}
            where |= {"tf32": options.tf32, "bfloat16": options.bfloat16, "settle": options.settle}
            found = {"mean": means[method], "median": middle, "ratio": ratio, "slow": slow, "bases": computed[method]}
            write_record(options, where | found | {"seconds": times})
    console.print(table)
    console.print(in_words(environment(options.device, options.threads)), highlight=False)


if __name__ == "__main__":
    main()
