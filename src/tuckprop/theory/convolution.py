"""The sizes of one convolution: all that the closed forms need to know of it."""

from dataclasses import dataclass, fields
from math import prod

from tuckprop.errors import ConfigError


@dataclass(frozen=True)
class Convolution:
    """A 2-D convolution of an activation A [batch, channels, height, width] to an output [batch, outputs, h', w'].

    Attributes:
        batch: B.
        channels: C, of the input.
        height: H, of the input.
        width: W, of the input.
        outputs: C', channels of the output.
        out_height: H'.
        out_width: W'.
        kernel: D, taps a side; the kernel is square, as in the paper.
        groups: Channel groups.

    Raises:
        ConfigError: A size is no integer of at least 1, or the groups do not divide the channels.
    """

    batch: int
    channels: int
    height: int
    width: int
    outputs: int
    out_height: int
    out_width: int
    kernel: int
    groups: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"Convolution({field.name}=...): expected an integer of at least 1, got {size!r}")
        if self.channels % self.groups or self.outputs % self.groups:
            raise ConfigError(
                f"Convolution(groups={self.groups}): expected a divisor of the channels in and out, "
                f"got {self.channels} and {self.outputs}"
            )

    @classmethod
    def of_layer(
        cls,
        batch: int,
        channels: int,
        height: int,
        width: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> "Convolution":
        """Return the sizes of a layer as `torch.nn.Conv2d` describes it; the output's size follows.

        Raises:
            ConfigError: A size or a setting cannot be used, or the window does not fit the input.
        """
        least_of = {"height": 1, "width": 1, "kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
        values = (height, width, kernel, stride, padding, dilation)
        for (name, least), value in zip(least_of.items(), values, strict=True):
            if value < least:
                raise ConfigError(f"Convolution.of_layer({name}=...): expected at least {least}, got {value}")
        reach = dilation * (kernel - 1) + 1
        sizes = [(size + 2 * padding - reach) // stride + 1 for size in (height, width)]
        if min(sizes) < 1:
            raise ConfigError(
                f"Convolution.of_layer: a window of {reach} does not fit {height} x {width} padded by {padding}; "
                "use a smaller kernel or more padding"
            )
        return cls(batch, channels, height, width, outputs, sizes[0], sizes[1], kernel, groups)

    @classmethod
    def cube(cls, size: int, kernel: int) -> "Convolution":
        """Return B = C = C' = H = W = H' = W' = `size`, the case that the paper's predictions are drawn for."""
        return cls(size, size, size, size, size, size, size, kernel)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M_1..M_4: the shape of A, [B, C, H, W]."""
        return self.batch, self.channels, self.height, self.width

    @property
    def elements(self) -> int:
        """BCHW: the elements of A."""
        return prod(self.shape)

    @property
    def positions(self) -> int:
        """H'W': the positions of the output."""
        return self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """D^2."""
        return self.kernel**2

    def unfolding(self, mode: int) -> tuple[int, int]:
        """Return the sizes [M_j, P_j] of the mode-j unfolding of A, `mode` counted from 0."""
        size = self.shape[mode]
        return size, self.elements // size


def check_ranks(shape: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    """Check that there is a rank a mode, from 1 to the mode's size.

    Raises:
        ConfigError: There is not.
    """
    if len(ranks) != len(shape) or not all(1 <= k <= n for n, k in zip(shape, ranks, strict=True)):
        raise ConfigError(f"ranks: expected {len(shape)}, each from 1 to its mode's size in {shape}, got {ranks}")
