"""An activation as few-bit numbers of levels: smaller than a core and factors where spectra are flat."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Packed
from tuckprop.linalg.layout import flat
from tuckprop.linalg.levelcode import decode_into

# Shape, strides and dtype of the activation, bits an element, and the elements that the paper counts.
_Meta = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int, int]


class CodedPacked(Packed):
    """`x[i] = levels[code[i]]`, in the order of memory.

    Attributes:
        codes: uint8 [ceil(n * bits / 8)], packed.
        levels: float32 [2 ** bits].
    """

    def __init__(self, codes: Tensor, levels: Tensor, meta: _Meta) -> None:
        self.codes = codes
        self.levels = levels
        self._meta = meta

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the codes and the levels."""
        return self.codes, self.levels

    @property
    def meta(self) -> _Meta:
        """Shape, strides and dtype of the activation, bits an element, and the elements that the paper counts."""
        return self._meta

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: _Meta) -> "CodedPacked":
        """Make the object again."""
        codes, levels = tensors
        return cls(codes, levels, meta)

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return Size(self._meta[0])

    def dense(self) -> Tensor:
        """Return the levels; shape `self.shape`, with the strides of the activation."""
        shape, strides, dtype, bits, _ = self._meta
        x = torch.empty_strided(shape, strides, dtype=dtype, device=self.codes.device)
        decode_into(self.codes, self.levels, bits, flat(x))
        return x

    def paper_count(self) -> int:
        """Return what the paper counts for the factors that would be kept instead; it has no such form."""
        return self._meta[4]
