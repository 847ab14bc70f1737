"""Gradient Filter: patch sums of the activation, patch averages of the output gradient; the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch.nn.functional as F
from torch import Size, Tensor, nn

from tuckprop.codecs._base import Codec, Packed, codecs
from tuckprop.errors import ConfigError, UnsupportedError

# Shape of the activation, block (rows, columns) that one sum covers, zero padding before the first block.
_Meta = tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]


class PatchSums(Packed):
    """Sums of the activation over non-overlapping blocks.

    Attributes:
        sums: Shape [batch, channels, blocks down, blocks across].
        block: Rows and columns of the activation that one sum covers.
        pad: Zero rows above and zero columns left of the activation, before it is cut in blocks.
    """

    def __init__(self, sums: Tensor, shape: Size, block: tuple[int, int], pad: tuple[int, int]) -> None:
        self.sums = sums
        self.block = block
        self.pad = pad
        self._shape = shape

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the sums."""
        return (self.sums,)

    @property
    def meta(self) -> _Meta:
        """The shape, the block and the padding."""
        return tuple(self._shape), self.block, self.pad

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: _Meta) -> "PatchSums":
        """Make the object again."""
        return cls(tensors[0], Size(meta[0]), meta[1], meta[2])

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return self._shape

    def spread(self, blocks: Tensor) -> Tensor:
        """Give every position of the activation the value of its block.

        Args:
            blocks: Shape [batch, any channels, blocks down, blocks across].

        Returns:
            Shape [batch, the same channels, height, width] of the activation.
        """
        (rows, columns), (top, left) = self.block, self.pad
        height, width = self._shape[-2:]
        full = blocks.repeat_interleave(rows, -2).repeat_interleave(columns, -1)[..., top:, left:]
        # Rows and columns that no output looks at belong to no block.
        return F.pad(full, (0, width - full.shape[-1], 0, height - full.shape[-2]))

    def dense(self) -> Tensor:
        """Return the activation with each block replaced by its sum over the block's area."""
        return self.spread(self.sums / (self.block[0] * self.block[1]))

    def paper_count(self) -> int:
        """Return the number of sums (Yang et al., CVPR 2023, Sec. 3.3 and its code)."""
        return self.sums.numel()


@codecs.register("gradient_filter")
@dataclass(frozen=True)
class GradientFilter(Codec):
    """Gradient Filter with square patches: both gradients are approximate, as published.

    Attributes:
        patch: Side of the patch of the output gradient that shares one average; the paper writes R2, R4, R7.

    Raises:
        ConfigError: `patch` is no integer of at least 1.

    Source: Yang, Li, Marculescu, "Efficient On-device Training via Gradient Filtering", CVPR 2023.
    """

    patch: int = 2
    label = "Gradient Filter"

    def __post_init__(self) -> None:
        if isinstance(self.patch, bool) or not isinstance(self.patch, int) or self.patch < 1:
            raise ConfigError(
                "GradientFilter(patch=...): expected an integer of at least 1 (the paper uses 2, 4, 7), "
                f"got {self.patch!r}"
            )

    def refusal(self, module: nn.Module) -> str | None:
        """Serve what the publication defines: Conv2d, dense or depthwise, zero padding."""
        if not isinstance(module, nn.Conv2d):
            return "Gradient Filter is defined for Conv2d only"
        if module.groups not in {1, module.in_channels} or (module.groups > 1 and module.out_channels != module.groups):
            return "Gradient Filter is defined for groups = 1 and for depthwise convolutions"
        if module.padding_mode != "zeros":
            return f"Gradient Filter is defined for zero padding, not {module.padding_mode!r}"
        return None

    def compress(self, x: Tensor) -> Packed:
        """Return the sums of `x` over patches, as a convolution that keeps its size would have them."""
        if x.dim() != 4:
            raise UnsupportedError(f"Gradient Filter: expected [batch, channels, height, width], got {tuple(x.shape)}")
        return self.patch_sums(x, (x.shape[2], x.shape[3]), (1, 1))

    def patch_sums(self, x: Tensor, out_size: tuple[int, int], stride: tuple[int, int]) -> PatchSums:
        """Return the sums of `x` over the blocks that face the patches of the output.

        Args:
            x: Shape [batch, channels, height, width].
            out_size: Height and width of the convolution's output.
            stride: The convolution's stride.

        Returns:
            One sum for each patch of the output (Eq. 5).
        """
        block = (self.patch * stride[0], self.patch * stride[1])
        patches = [ceil(out / self.patch) for out in out_size]
        margins = [p * b - size for p, b, size in zip(patches, block, x.shape[-2:], strict=True)]
        pad = tuple(max(0, ceil(m / 2)) for m in margins)
        rest = [max(0, m - p) for m, p in zip(margins, pad, strict=True)]
        padded = F.pad(x, (pad[1], rest[1], pad[0], rest[0]))
        sums = F.avg_pool2d(padded, block, stride=block, divisor_override=1)
        return PatchSums(sums[..., : patches[0], : patches[1]].contiguous(), x.shape, block, (pad[0], pad[1]))
