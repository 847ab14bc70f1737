"""Draw the records of scaling.py: time against plain, and bytes held, as batch, resolution and depth grow.

    python benchmarks/draw_scaling.py scaling.jsonl --out FIGURE

Points are medians, bars go from the first to the third quartile. Held bytes are one measurement each.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter, StrMethodFormatter

from tuckprop.report.plot import save_plot
from tuckprop.report.style import COLOURS, method_styles

AXES = {"batch": "batch", "resolution": "resolution, px", "layers": "layers trained"}
# Ticks of a log axis that are nearer than this share of its length would run into one another.
ROOM = 0.17
# What other figures call these methods, whose colours they have there.
NAMES = {"subspace-0.8": "Subspace 0.8", "hosvd-0.8": "HOSVD 0.8", "hosvd8-0.9": "HOSVD8 0.9"}


@dataclass(frozen=True)
class Options:
    """What to draw."""

    records: Annotated[Path, tyro.conf.Positional]
    """JSONL file of scaling.py, of one network."""
    out: Path
    """Figure; its suffix is replaced by .png, .pdf and .svg."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records.

    Raises:
        ValueError: There are none, or those of several networks.
    """
    records = [json.loads(line) for line in path.read_text().splitlines() if line]
    networks = {record["network"] for record in records}
    if len(networks) != 1:
        raise ValueError(f"{path}: expected records of one network, got {sorted(networks) or 'none'}")
    return records


def draw(records: list[dict[str, Any]]) -> Figure:
    """Return the figure: a column of panels for each axis that the records have."""
    figure = Figure(figsize=(3.5, 3.4), layout="constrained")
    names = [name for name in AXES if any(name in record["axes"] for record in records)]
    panels = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    methods = list(dict.fromkeys(record["method"] for record in records))
    styles = method_styles(NAMES.get(method, method) for method in methods)
    for column, name in enumerate(names):
        on_axis = sorted((r for r in records if name in r["axes"]), key=lambda r: r[name])
        above, below = panels[:, column]
        for number, method in enumerate(methods):
            chosen = [r for r in on_axis if r["method"] == method]
            label = NAMES.get(method, method)
            style: dict[str, Any] = {**styles[label], "label": label, "markersize": 3, "linewidth": 0.8}
            where = [r[name] for r in chosen]
            if number:  # The first is 1 by definition, and drawn as a line.
                ratios = [r["ratio_quartiles"] for r in chosen]
                middle = [q["middle"] for q in ratios]
                bars = [[q["middle"] - q["low"] for q in ratios], [q["high"] - q["middle"] for q in ratios]]
                above.errorbar(where, middle, yerr=bars, capsize=1.5, elinewidth=0.8, **style)
            below.plot(where, [r["held"] / 1e6 for r in chosen], **style)
        above.axhline(1, color=COLOURS[0], linewidth=0.8)
        below.set_yscale("log")
        below.set_xlabel(AXES[name], fontsize=7)
        for axes in (above, below):
            _dress(axes, sorted({r[name] for r in on_axis}))
    panels[0, 0].set_ylabel(f"step time / {methods[0]}", fontsize=7)
    panels[1, 0].set_ylabel("held for backward, MB", fontsize=7)
    panels[1, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    figure.align_ylabels()
    handles, labels = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=6.5, frameon=False)
    first = records[0]
    figure.suptitle(f"{first['network']}, {first['device']}, threads: {first['threads']}", fontsize=7.5)
    return figure


def _dress(axes: Axes, values: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_apart(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=6, length=2, pad=1.5)
    axes.grid(alpha=0.3, linewidth=0.5)


def _apart(values: list[int]) -> list[int]:
    """Return the values whose labels have room on a log axis, the first and the last among them."""
    least = (values[-1] / values[0]) ** ROOM
    kept = values[:1]
    for value in values[1:-1]:
        if value / kept[-1] >= least and values[-1] / value >= least:
            kept.append(value)
    return kept + values[-1:] if len(values) > 1 else kept


def main() -> None:
    """Draw and save."""
    options = tyro.cli(Options)
    for file in save_plot(draw(read(options.records)), options.out):
        print(file)


if __name__ == "__main__":
    main()
