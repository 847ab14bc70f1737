"""Where numbers come from: versions, device, processor, threads and seed, for every record and under every table."""

import json
import platform
from pathlib import Path

import torch
from arms import SEED

import tuckprop


def environment(device: torch.device | str = "cpu", threads: int | None = None, seed: int = SEED) -> dict[str, object]:
    """Return what a record says of its origin; without `threads` those of this process."""
    device = torch.device(device)
    return {
        "tuckprop": tuckprop.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _processor(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "seed": seed,
    }


def add_record(out: Path | None, record: dict[str, object], device: str = "cpu", threads: int | None = None) -> None:
    """Add a record, with where it comes from, to a JSONL file, if there is to be one."""
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(record | environment(device, threads)) + "\n")


def in_words(found: dict[str, object]) -> str:
    """Return it as one line of text."""
    return ", ".join(f"{key} {value}" for key, value in found.items())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
