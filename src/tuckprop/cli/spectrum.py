"""`tuckprop spectrum`: how much the leading components of a layer's input explain, or of every layer's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from torch import nn

from tuckprop.errors import ConfigError
from tuckprop.plan import choose_sites
from tuckprop.report import save_plot
from tuckprop.report.explained_variance import explained_variance_table, plot_explained_variance
from tuckprop.report.plot import check_suffix
from tuckprop.spectra import explained_variance
from tuckprop.train import DataSettings, Machine, NetworkSettings, prepare

_LAYER = "Name of a convolution or Linear layer, or its place from the end: -4 is the fourth-last convolution."


@dataclass(frozen=True)
class SpectrumOptions:
    """Plot the explained variance of a layer's input on one batch against the components kept, for each mode."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    machine: Machine = field(default_factory=Machine)
    seed: int = 233
    layer: Annotated[str, tyro.conf.arg(help=_LAYER)] = "-4"
    every: Annotated[
        bool, tyro.conf.arg(help="Plot every convolution and Linear layer instead, each to files of its own.")
    ] = False
    modes: Annotated[tuple[int, ...], tyro.conf.arg(help="Which modes, counted from 1; by default all.")] = ()
    epsilon: Annotated[float, tyro.conf.arg(help="Share of variance to mark.")] = 0.8
    out: Annotated[Path, tyro.conf.arg(help="File to write, as .png, .pdf and .svg.")] = Path("spectrum.png")


def spectrum(options: SpectrumOptions) -> int:
    """Write the plot and print a table; return the exit code."""
    check_suffix(options.out)
    prepared = prepare(options.network, options.data, options.machine, options.seed)
    names = choose_sites(prepared.model) if options.every else [_find(prepared.model, options.layer)]
    images, _ = next(prepared.data.train.serve())
    console = Console()
    for name, layer in explained_variance(prepared.model, images.to(prepared.device), names).items():
        title = f"{prepared.name} on {options.data.data}, input of layer {name}"
        figure = plot_explained_variance(layer, title, options.modes, options.epsilon)
        console.print(explained_variance_table(layer, title, options.modes, options.epsilon), highlight=False)
        out = options.out
        own = out.with_name(f"{out.stem}-{name.replace('.', '_')}{out.suffix}")
        for file in save_plot(figure, own if options.every else out):
            print(file)
    return 0


def _find(model: nn.Module, layer: str) -> str:
    """Return the name of the layer that the option means.

    Raises:
        ConfigError: The model has no such layer.
    """
    names = choose_sites(model)
    if layer in names:
        return layer
    if not layer.removeprefix("-").isdecimal() or int(layer) >= 0:
        shown = ", ".join(names[-4:])
        raise ConfigError(f"--layer: expected a layer's name or a place such as -4, got {layer!r}; the last: {shown}")
    try:
        return choose_sites(model, last=-int(layer))[0]
    except ConfigError as error:
        raise ConfigError(f"--layer: the model has no {layer.removeprefix('-')} such layers ({error})") from error
