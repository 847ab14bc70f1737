"""`tuckprop plot`: runs as a plot of accuracy against memory."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tuckprop.cli.reproduce import draw_tasks
from tuckprop.cli.table import finished_rows


@dataclass(frozen=True)
class PlotOptions:
    """Plot the accuracy of finished runs against their memory; PNG, PDF and SVG.

    Attributes:
        runs: Folders of runs, folders that hold several, .jsonl files of records, folders of such files, or the id of
            what `tuckprop reproduce` has run.
        out: File to write; its suffix, one of the three or none, is replaced by each of them. Runs on several data
            sets or networks have a plot for each: the second goes to OUT-2, and so on.
        memory: What to plot against: held (measured), paper (the paper's count) or process (peak of the process).
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("accuracy-memory.png")
    memory: str = "held"


def plot(options: PlotOptions) -> int:
    """Write it; return the exit code."""
    for file in draw_tasks(finished_rows(options.runs), options.memory, options.out):
        print(file)
    return 0
