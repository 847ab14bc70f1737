"""Memory of one training step, one process a method: bytes held for backward, and peak memory.

    python benchmarks/memory.py --data-path PATH --weights mcunet.safetensors

Held bytes are unique storages at the end of the forward; the peak is the process's resident set (on a GPU: the caching
allocator's) over what it was when the model and one batch were in place.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro
from arms import NETWORKS, Training, batches
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from step_memory import step_memory

from tuckprop.memory import return_freed_memory


@dataclass(frozen=True)
class Options:
    """What to measure."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    networks: tuple[str, ...] = ("mcunet", "mobilenetv2", "mobilenetv2-eval-bn", "resnet18")
    """Of those in arms.py."""
    methods: tuple[str, ...] = (
        "plain", "checkpoint", "bf16", "dense", "hosvd-0.8", "hosvd8-0.9", "deflated-0.95", "recomputed-0.999",
        "subspace-0.8",
    )  # fmt: skip
    """Of those in arms.py; the first is the one the others are divided by."""
    repeats: int = 3
    """Processes a method."""
    steps: int = 3
    """Training steps before the peak is read."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 2
    """CPU threads."""
    return_freed: bool = False
    """Let every method return freed memory to the operating system at once (tuckprop.memory.return_freed_memory)."""
    out: Path | None = None
    """Write records to this JSONL file."""
    child: tuple[str, ...] = field(default=())
    """Internal: measure this network and method in this process."""


def measure(options: Options) -> dict[str, object]:
    """Train a few steps in this process and return what they took, in bytes."""
    network, method = options.child
    torch.set_num_threads(options.threads)
    if options.return_freed and not return_freed_memory():
        raise RuntimeError("--return-freed: this C library is not glibc")
    device = torch.device(options.device)
    served = next(iter(batches(NETWORKS[network], options.data, options.data_path, 1, device)))
    training = Training(NETWORKS[network], method, device, options.weights)
    found = step_memory(training, *training.take(*served), options.steps)
    return {"network": network, "method": method, **asdict(found), **environment(device)}


def run(options: Options, network: str, method: str) -> dict[str, object]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--child", network, method]
    for name in ("data", "data_path", "weights", "steps", "device", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--return-freed"] if options.return_freed else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = {"network": network, "method": method, "error": done.stderr.strip().splitlines()[-1]}
        return error | environment(options.device, options.threads)
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure every network under every method and print the table."""
    options = tyro.cli(Options)
    if options.child:
        print(json.dumps(measure(options)))
        return
    console = Console(width=140)
    for network in options.networks:
        table = Table(
            "method", "held, MB", "held / plain", "1 / x", "peak, MB (min..max)", "peak / plain", title=network
        )
        first: tuple[float, float] | None = None
        for method in options.methods:
            records = [run(options, network, method) for _ in range(options.repeats)]
            if options.out is not None:
                with options.out.open("a") as out:
                    out.writelines(json.dumps(record) + "\n" for record in records)
            if errors := [r["error"] for r in records if "error" in r]:
                table.add_row(method, str(errors[0]))
                continue
            held = statistics.median(float(str(r["held"])) for r in records)
            peaks = sorted(float(str(r["peak"])) for r in records)
            peak = statistics.median(peaks)
            first = first or (held, peak)
            table.add_row(
                method,
                f"{held / 1e6:.1f}",
                f"{held / first[0]:.4f}",
                f"1/{first[0] / held:.1f}",
                f"{peak / 1e6:.0f} ({peaks[0] / 1e6:.0f}..{peaks[-1] / 1e6:.0f})",
                f"{peak / first[1]:.2f}",
            )
        console.print(table)
    console.print(in_words(environment(options.device, options.threads)), highlight=False)


if __name__ == "__main__":
    main()
