"""The look that all figures share: a paper's column, small type, one colour and one marker a thing."""

from collections.abc import Iterable
from itertools import chain, count

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, five of Tol's and a grey, which people with colour blindness can tell apart, and a marker
# each for print in grey.
COLOURS = (
    "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255", "#332288",
    "#661100", "#AA4499", "#777777",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "d")
# Which of them the paper's methods and the best of ours have in every figure.
NUMBERS = {
    "plain": 0, "Gradient Filter 2": 1, "Gradient Filter 4": 2, "Gradient Filter 7": 3, "SVD 0.8": 4, "HOSVD 0.8": 5,
    "Subspace 0.8": 6, "SVD 0.9": 7, "HOSVD 0.9": 8, "recomputed HOSVD8 0.999": 9, "HOSVD8 0.9": 10, "HOSVD8 0.97": 11,
    "Deflated HOSVD 0.94": 12,
}  # fmt: skip
# A column of a paper, in inches.
SIZE = (3.5, 3.3)


def new_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty figure of a column's width and its axes, with labels and a grid."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3, linewidth=0.5)
    return figure, axes


def validation_label(metric: str) -> str:
    """Return the label of an axis with the metric that ranks runs, on validation images."""
    return "validation accuracy, %" if metric == "accuracy" else f"{metric}, %"


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return colour and marker of each method: its own if it has one, else the last that nobody here has."""
    names = list(dict.fromkeys(methods))
    numbers = {name: NUMBERS[name] for name in names if name in NUMBERS}
    # From the last one, so that the colours of the paper's methods stay theirs as long as others are there.
    order = chain(reversed(range(len(COLOURS))), count(len(COLOURS)))
    free = (number for number in order if number not in numbers.values())
    chosen = {name: numbers[name] if name in numbers else next(free) for name in names}
    # Past the last colour they come again, with other markers.
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        }
        for name, number in chosen.items()
    }


def legend_below(figure: Figure, columns: int = 2) -> None:
    """Add a legend of all labelled lines under the axes, outside them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
