"""Two few-bit codes of one tensor: where one loses too much, and the next far less than it may, each serves a part.

So a few-bit form too takes as many bytes as the share of energy that it keeps asks for, and not up to twice as many.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from torch import Tensor

from tuckprop.linalg.fitted_code import FittedCode
from tuckprop.linalg.layout import flat
from tuckprop.linalg.standardised import Standardised

# Parts begin at multiples of so many elements: at whole bytes, and whole words of the activation.
_GRAIN = 64

# Of what may be lost, so much is aimed at, as parts of a tensor are not alike.
_AIM = 0.95

# A mix that saves less than this share of the bytes is not worth two codes.
_WORTH = 0.05


class Stretch(NamedTuple):
    """Elements that follow each other in memory, coded.

    Attributes:
        codes: uint8 [ceil(elements * bits / 8)], packed.
        levels: float32 [2 ** bits].
        bits: Bits an element.
        elements: How many.
    """

    codes: Tensor
    levels: Tensor
    bits: int
    elements: int


@dataclass(frozen=True, eq=False)
class MixedCode:
    """One code, or two of which one serves the first elements in the order of memory.

    Attributes:
        rest: The code of all elements, or of those behind the first.
        first: That of the first elements, of more bits; None where there is one code.
        share: Share of the elements that the first are; 0 where there is one code.
    """

    rest: FittedCode
    first: FittedCode | None = None
    share: float = 0.0

    @classmethod
    def between(cls, fewer: FittedCode, more: FittedCode, losses: tuple[float, float], most: float) -> "MixedCode":
        """Return the mix of two codes that should lose somewhat less than the most, or the second where that is small.

        Args:
            fewer: A code that loses more than `most`.
            more: A code of more bits that loses no more than that.
            losses: What each loses, as a share of the energy.
            most: What may be lost.
        """
        share = (losses[0] - _AIM * most) / (losses[0] - losses[1])
        saved = (1 - share) * (1 - fewer.bits / more.bits)
        return cls(fewer, more, share) if share > 0 and saved > _WORTH else cls(more)

    def encode(self, x: Tensor | Standardised, energy: float) -> tuple[tuple[Stretch, ...], float]:
        """Return the codes of a tensor, and the share of the energy that is lost.

        Args:
            x: As `FittedCode.encode` takes it; it is formed where there are two codes.
            energy: Its sum of squares, positive.
        """
        count = x.shape.numel()
        if self.first is None:
            codes, levels, lost = self.rest.encode(x, energy)
            return (Stretch(codes, levels, self.rest.bits, count),), lost
        head, values = self._head(count), flat(x.dense() if isinstance(x, Standardised) else x)
        stretches, lost = [], 0.0
        for code, part in ((self.first, values[:head]), (self.rest, values[head:])):
            # Of the same root mean square as the whole, to which levels are scaled.
            share = part.numel() / count
            if not share:
                continue
            codes, levels, of_part = code.encode(part, energy * share)
            stretches.append(Stretch(codes, levels, code.bits, part.numel()))
            lost += of_part * share
        return tuple(stretches), lost

    def _head(self, count: int) -> int:
        """Return how many of the elements are the first ones."""
        return min(count, _GRAIN * ceil(self.share * count / _GRAIN))


__all__ = ["MixedCode", "Stretch"]
