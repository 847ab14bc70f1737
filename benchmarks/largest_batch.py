"""The largest batch that trains under a hard memory limit, by bisection, one process a try.

    python benchmarks/largest_batch.py --data-path PATH --weights mcunet.safetensors --limit-mb 512

The limit is RLIMIT_DATA (the process's own writable memory), set over what the process has when model, libraries and a
few images are in place; an allocation beyond it fails, and with it the training step.
"""

import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from arms import NETWORKS, Training, batches
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """What to try."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    networks: tuple[str, ...] = ("mcunet", "mobilenetv2", "resnet18")
    """Of those in arms.py."""
    methods: tuple[str, ...] = ("plain", "checkpoint", "bf16", "dense", "hosvd-0.8", "subspace-0.8")
    """Of those in arms.py."""
    limit_mb: int = 512
    """Megabytes (10^6) beyond those in use when the model is in place."""
    most: int = 2048
    """Largest batch to try."""
    steps: int = 3
    """Training steps that must succeed."""
    threads: int = 2
    """CPU threads."""
    child: tuple[str, ...] = ()
    """Internal: try this network, method and batch in this process."""


def data_bytes() -> int:
    """Return the writable memory of this process as RLIMIT_DATA counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmData")


def attempt(options: Options) -> None:
    """Train under the limit in this process; fails where memory does."""
    network, method, batch = options.child[0], options.child[1], int(options.child[2])
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    training = Training(network, method, device, options.weights)
    one = replace(NETWORKS[network], batch=10)
    (images, labels), *_ = batches(one, options.data, options.data_path, 1, device)
    training.step(images, labels)  # Threads and libraries take their memory now.
    limit = data_bytes() + options.limit_mb * 10**6
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    repeats = -(-batch // len(images))
    images, labels = images.repeat(repeats, 1, 1, 1)[:batch], labels.repeat(repeats)[:batch]
    for _ in range(options.steps):
        training.step(images, labels)


def fits(options: Options, network: str, method: str, batch: int) -> bool:
    """Say whether a fresh process gets through."""
    command = [sys.executable, __file__, "--child", network, method, str(batch)]
    for name in ("data", "data_path", "weights", "limit_mb", "steps", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "memory" not in done.stderr.lower() and "alloc" not in done.stderr.lower():
        raise RuntimeError(f"{network}, {method}, batch {batch}: {done.stderr.strip()[-2000:]}")
    return done.returncode == 0


def largest(options: Options, network: str, method: str) -> int:
    """Return the largest batch that fits, to one part in sixteen, or 0."""
    low, high = 0, 1
    while high <= options.most and fits(options, network, method, high):
        low, high = high, high * 2
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(options, network, method, middle) else (low, middle)
    return low


def main() -> None:
    """Search for every network and method and print the table."""
    options = tyro.cli(Options)
    if options.child:
        attempt(options)
        return
    table = Table(
        "network", *options.methods, title=f"largest batch within {options.limit_mb} MB beyond the model's own"
    )
    for network in options.networks:
        table.add_row(network, *(str(largest(options, network, method)) for method in options.methods))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
