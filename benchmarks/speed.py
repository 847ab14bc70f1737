"""Time of one training step, a process a method, steps in alternation: medians, quartiles, and the ratio to plain.

python benchmarks/speed.py --data-path PATH --weights mcunet.safetensors
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import tyro
from arms import NETWORKS, Training, batches
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """What to time."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    networks: tuple[str, ...] = ("resnet18", "resnet34", "mobilenetv2", "mcunet", "swin-t")
    """Of those in arms.py."""
    methods: tuple[str, ...] = ("plain", "checkpoint", "bf16", "dense", "hosvd-0.8", "asi", "subspace-0.8")
    """Of those in arms.py; the first is the one the others are divided by."""
    repeats: int = 11
    """Turns a method that are timed, of two steps each."""
    warmup: int = 4
    """Turns a method before."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """Write records to this JSONL file."""


def work(connection: Connection, options: Options, network: str, method: str) -> None:
    """Train one network under one method in this process; of the two steps of a turn, the second one's seconds go back.

    The first brings this process's memory back into the caches, as it is in a training run.
    """
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    training = Training(network, method, device, options.weights)
    while (turn := connection.recv()) is not None:
        for pair in turn:
            images, labels = (torch.from_numpy(part).to(device) for part in pair)
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            training.step(images, labels)
            if device.type == "cuda":
                torch.cuda.synchronize()
        connection.send(time.perf_counter() - start)


@contextmanager
def workers(options: Options, network: str) -> Iterator[dict[str, Connection]]:
    """Start a process a method: the memory that one method leaves behind must not serve another.

    Yields:
        The way to each, by method.
    """
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for method in options.methods:
        connections[method], far = context.Pipe()
        processes.append(context.Process(target=work, args=(far, options, network, method), daemon=True))
        processes[-1].start()
    try:
        yield connections
    finally:
        for connection in connections.values():
            connection.send(None)
        for process in processes:
            process.join()


def main() -> None:
    """Time every network under every method and print the table."""
    options = tyro.cli(Options)
    console = Console(width=140)
    for network in options.networks:
        times: dict[str, list[float]] = {method: [] for method in options.methods}
        count = options.warmup + options.repeats
        with workers(options, network) as arms:
            served = batches(NETWORKS[network], options.data, options.data_path, 2 * count, torch.device("cpu"))
            pairs = [(images.numpy(), labels.numpy()) for images, labels in served]
            for number in range(0, 2 * count, 2):
                for method, connection in arms.items():
                    connection.send(pairs[number : number + 2])
                    times[method].append(connection.recv())
        report(console, network, {m: t[options.warmup :] for m, t in times.items()}, options)


def report(console: Console, network: str, times: dict[str, list[float]], options: Options) -> None:
    """Print one network's table, and write its records."""
    table = Table("method", "step, s", "quartiles", "ratio to plain, paired", "quartiles", title=network)
    base = next(iter(times.values()))
    for method, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, base, strict=True)]
        low, middle, high = statistics.quantiles(seconds, n=4)
        below, ratio, above = statistics.quantiles(ratios, n=4)
        table.add_row(method, f"{middle:.3f}", f"{low:.3f}..{high:.3f}", f"{ratio:.2f}", f"{below:.2f}..{above:.2f}")
        if options.out is not None:
            record = {"network": network, "method": method, "seconds": seconds, "torch": torch.__version__}
            with options.out.open("a") as out:
                out.write(json.dumps(record | {"device": options.device, "threads": options.threads}) + "\n")
    console.print(table)


if __name__ == "__main__":
    main()
