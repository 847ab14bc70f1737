"""The largest batch that trains under a hard memory limit, by bisection, one process a try.

    python benchmarks/largest_batch.py --data-path PATH --weights mcunet.safetensors --limit-mb 512 --markdown

The limit is RLIMIT_DATA (the process's own writable memory), set over what the process has when the model is in place
and has trained on two images; an allocation beyond it fails, and with it the training step. A try that fails without
saying that memory was short is made again without a limit: only if it succeeds there, memory was the reason. If not,
the benchmark ends with what the try wrote to stderr.
"""

import ctypes
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from arms import NETWORKS, Training, batches
from environment import add_record, environment, in_words
from rich.console import Console
from rich.table import Table

# What allocators say. oneDNN says only "could not create a primitive", which has other reasons too.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
)


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
    timeout: float = 1800
    """Seconds after which a try is an error."""
    markdown: bool = False
    """Print the table as Markdown."""
    out: Path | None = None
    """Add records to this JSONL file."""
    child: tuple[str, ...] = ()
    """Internal: try this network, method and batch in this process, under this many bytes or none."""


@dataclass(frozen=True)
class Largest:
    """What the search found.

    Attributes:
        batch: Largest that fits, to one part in sixteen; 0 if one image does not.
        capped: No larger one was tried, as the options say.
    """

    batch: int
    capped: bool

    def __str__(self) -> str:
        return f"{self.batch}{'+' if self.capped else ''}"


def data_bytes() -> int:
    """Return the writable memory of this process as RLIMIT_DATA counts it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def attempt(options: Options) -> None:
    """Train in this process, under a limit if one is given; fails where memory does."""
    network, method, batch, *limited = options.child
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    training = Training(NETWORKS[network], method, device, options.weights)
    few = replace(NETWORKS[network], batch=10)
    images, labels = next(iter(batches(few, options.data, options.data_path, 1, device)))
    training.step(*training.take(images[:2], labels[:2]))  # Threads and libraries take their memory now.
    ctypes.CDLL(None).malloc_trim(0)  # What that step has freed must not serve the next.
    for extra in limited:
        limit = data_bytes() + int(extra)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    chosen = torch.arange(int(batch)) % len(images)
    taken = training.take(images[chosen], labels[chosen])
    del images, labels
    for _ in range(options.steps):
        training.step(*taken)


def run(options: Options, *child: str) -> subprocess.CompletedProcess[str]:
    """Make a try in a fresh process."""
    command = [sys.executable, __file__, "--child", *child]
    for name in ("data", "data_path", "weights", "steps", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=options.timeout)


def fits(options: Options, network: str, method: str, batch: int) -> bool:
    """Say whether a fresh process gets through.

    Raises:
        RuntimeError: It fails, and not for want of memory.
    """
    limited = run(options, network, method, str(batch), str(options.limit_mb * 10**6))
    if limited.returncode == 0:
        return True
    if any(text in limited.stderr for text in _OUT_OF_MEMORY):
        return False
    free = run(options, network, method, str(batch))
    if free.returncode == 0:
        return False
    raise RuntimeError(
        f"{network}, {method}, batch {batch}: the try ended with status {free.returncode}, without a limit too; "
        f"its stderr ends with:\n{free.stderr.strip()[-4000:]}"
    )


def largest(options: Options, network: str, method: str) -> Largest:
    """Search by doubling and then by halves."""
    low, high = 0, 1
    while fits(options, network, method, high):
        if high == options.most:
            return Largest(high, capped=True)
        low, high = high, min(2 * high, options.most)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(options, network, method, middle) else (low, middle)
    return Largest(low, capped=False)


def show(options: Options, rows: dict[str, dict[str, Largest]]) -> None:
    """Print the table."""
    title = f"largest batch within {options.limit_mb} MB beyond the model's own"
    where = in_words(environment("cpu", options.threads))
    if options.markdown:
        print(f"| network | {' | '.join(options.methods)} |")
        print(f"| --- |{' ---: |' * len(options.methods)}")
        for network, found in rows.items():
            print(f"| {network} | {' | '.join(map(str, found.values()))} |")
        print(f"\n{title[:1].upper()}{title[1:]}; {where}.")
        return
    table = Table("network", *options.methods, title=title)
    for network, found in rows.items():
        table.add_row(network, *map(str, found.values()))
    console = Console(width=140)
    console.print(table)
    console.print(where, highlight=False)


def main() -> None:
    """Search for every network and method, write the records as they come, and print the table."""
    options = tyro.cli(Options)
    if options.child:
        attempt(options)
        return
    rows: dict[str, dict[str, Largest]] = {}
    for network in options.networks:
        for method in options.methods:
            found = largest(options, network, method)
            rows.setdefault(network, {})[method] = found
            record: dict[str, object] = {
                "network": network, "method": method, "resolution": NETWORKS[network].resolution,
                "limit_mb": options.limit_mb, "steps": options.steps, "batch": found.batch, "capped": found.capped,
            }  # fmt: skip
            add_record(options.out, record, threads=options.threads)
    show(options, rows)


if __name__ == "__main__":
    main()
