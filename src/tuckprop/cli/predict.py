"""`tuckprop predict`: what the paper's closed forms say of one convolution, or the paper's figures of them."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tuckprop.report import save_plot
from tuckprop.report.prediction_table import prediction_table
from tuckprop.report.predictions import predictions
from tuckprop.theory import Convolution


@dataclass(frozen=True)
class PredictOptions:
    """Predict storage, multiply-adds, speed-ups and errors of plain training, SVD and HOSVD for one convolution.

    Attributes:
        batch: Images.
        channels: Of the input.
        height: Of the input.
        width: Of the input.
        outputs: Channels of the output.
        kernel: Taps a side.
        stride: Of the convolution.
        padding: On every side; by default half the kernel, which keeps the size at stride 1.
        dilation: Of the convolution.
        groups: Of the convolution.
        ranks: HOSVD's ranks of batch, channels, height and width; SVD has the first.
        epsilon: Share of the activation's energy that every mode keeps, in (0, 1]; the errors follow from it alone.
        figure: Draw this figure instead, for sizes of its own: compression, speedup, snr, flops, flops_channels or
            flops_backward.
        out: File for the figure; its suffix is replaced by .png, .pdf and .svg. By default the figure's name.
    """

    batch: int = 128
    channels: int = 64
    height: int = 56
    width: int = 56
    outputs: int = 64
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    groups: int = 1
    ranks: tuple[int, int, int, int] = (4, 8, 8, 8)
    epsilon: float = 0.8
    figure: str | None = None
    out: Path | None = None


def predict(options: PredictOptions) -> int:
    """Print the table or write the figure; return the exit code."""
    if options.figure is not None:
        for file in save_plot(predictions[options.figure](), options.out or Path(f"{options.figure}.png")):
            print(file)
        return 0
    padding = options.dilation * (options.kernel - 1) // 2 if options.padding is None else options.padding
    conv = Convolution.of_layer(
        options.batch,
        options.channels,
        options.height,
        options.width,
        options.outputs,
        options.kernel,
        stride=options.stride,
        padding=padding,
        dilation=options.dilation,
        groups=options.groups,
    )
    Console().print(prediction_table(conv, options.ranks, options.epsilon), highlight=False)
    return 0
