"""`tuckprop demo`: plain and compressed training on digits, a process each; ends with a table and a plot."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tuckprop.errors import TuckpropError
from tuckprop.report import find_records, plot, save_plot, summarise, tables

# Training from scratch needs more and livelier steps than the paper's fine-tuning does.
_COMMON = ("--data", "digits", "--batch-size", "16", "--momentum", "0.9", "--threads", "1", "--overwrite", "--no-table")
_ARMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "hosvd": ("--codec", "hosvd", "--epsilon", "0.8"),
    "svd": ("--codec", "svd", "--epsilon", "0.8"),
    "gradient_filter": ("--codec", "gradient_filter", "--patch", "2"),
}


@dataclass(frozen=True)
class DemoOptions:
    """Train on scikit-learn's digits with each method, and compare: no download, under two minutes.

    Attributes:
        out: Folder for the runs and the plot; runs of an earlier demo in it are replaced.
        epochs: For each method.
        seeds: How many runs of each method, from seed 1 on.
    """

    out: Path = Path("runs/demo")
    epochs: int = 12
    seeds: int = 1


def demo(options: DemoOptions) -> int:
    """Run it; return the exit code."""
    console = Console()
    folders = []
    for seed in range(1, options.seeds + 1):
        for name, arm in _ARMS.items():
            folders.append(options.out / f"{name}-seed{seed}")
            where = ("--out", str(folders[-1]), "--seed", str(seed), "--epochs", str(options.epochs))
            # Peaks of different methods can be compared only if each has a process of its own.
            code = subprocess.run([sys.executable, "-m", "tuckprop.cli", "train", *_COMMON, *arm, *where]).returncode
            if code == 130:
                return code
            if code:
                raise TuckpropError(f"demo: training with {name} failed (exit code {code}); its message is above")
    rows = summarise(find_records(folders))
    for table in tables(rows):
        console.print(table)
    for file in save_plot(plot(rows), options.out / "accuracy-memory.png"):
        console.print(f"plot: {file}", highlight=False)
    return 0
