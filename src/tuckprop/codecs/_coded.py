"""An activation as few-bit numbers of levels: smaller than a core and factors where spectra are flat."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Packed
from tuckprop.linalg.layout import flat
from tuckprop.linalg.levelcode import decode_into
from tuckprop.linalg.mixed_code import Stretch

# Shape, strides and dtype of the activation, bits and number of the elements of each stretch, and the elements that the
# paper counts.
_Meta = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, tuple[tuple[int, int], ...], int]


class CodedPacked(Packed):
    """`x[i] = levels[code[i]]`, in the order of memory.

    Attributes:
        stretches: Codes and levels of the first elements, of those that follow, and so on.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: torch.dtype,
        by_paper: int,
    ) -> None:
        self.stretches = tuple(stretches)
        self._shape, self._strides, self._dtype, self._by_paper = shape, strides, dtype, by_paper

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the codes and the levels of each stretch."""
        return tuple(tensor for stretch in self.stretches for tensor in (stretch.codes, stretch.levels))

    @property
    def meta(self) -> _Meta:
        """Of the activation shape, strides and dtype, of each stretch bits and elements, and what the paper counts."""
        sizes = tuple((stretch.bits, stretch.elements) for stretch in self.stretches)
        return self._shape, self._strides, self._dtype, sizes, self._by_paper

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: _Meta) -> "CodedPacked":
        """Make the object again."""
        shape, strides, dtype, sizes, by_paper = meta
        parts = zip(tensors[::2], tensors[1::2], sizes, strict=True)
        return cls([Stretch(codes, levels, *size) for codes, levels, size in parts], shape, strides, dtype, by_paper)

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return Size(self._shape)

    def dense(self) -> Tensor:
        """Return the levels; shape `self.shape`, with the strides of the activation."""
        x = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self.stretches[0].codes.device)
        values = flat(x).split([stretch.elements for stretch in self.stretches])
        for stretch, part in zip(self.stretches, values, strict=True):
            decode_into(stretch.codes, stretch.levels, stretch.bits, part)
        return x

    def paper_count(self) -> int:
        """Return what the paper counts for the factors that would be kept instead; it has no such form."""
        return self._by_paper
