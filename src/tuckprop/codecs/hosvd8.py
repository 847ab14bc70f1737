"""HOSVD with its core and factors in eight bits: a quarter of the bytes at an error far below the truncation's."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Outline, Packed, codecs
from tuckprop.codecs.hosvd import HOSVD

# Four bits of exponent and three of mantissa. The largest values of a core are thousands of times its typical ones, so
# an integer code, as fine everywhere, would lose those.
_CODE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_CODE).max

# Of the form that is coded: its class, its meta, its dtype, its shape, and the elements that the paper counts for it.
EightBitMeta = tuple[type[Packed], Hashable, torch.dtype, Size, int]


class EightBitPacked(Packed):
    """Another packed form, each of its tensors in eight bits and with one scale.

    Attributes:
        codes: The other form's tensors over their scales, float8_e4m3fn.
        scales: One a tensor, of the activation's dtype, or float32 where that has half precision.
    """

    def __init__(self, codes: tuple[Tensor, ...], scales: Tensor, meta: EightBitMeta) -> None:
        self.codes = codes
        self.scales = scales
        self._meta = meta

    @classmethod
    def of(cls, form: Packed) -> "EightBitPacked":
        """Return `form` in eight bits."""
        tensors = form.tensors()
        dtype = tensors[0].dtype
        wide = [t.to(torch.promote_types(dtype, torch.float32)) for t in tensors]
        largest = torch.stack([t.abs().amax() for t in wide])
        scales = torch.where(largest > 0, largest / _LARGEST, 1)
        codes = tuple((t / scale).to(_CODE) for t, scale in zip(wide, scales, strict=True))
        return cls(codes, scales, (type(form), form.meta, dtype, form.shape, form.paper_count()))

    @cached_property
    def form(self) -> Packed:
        """The other form, as well as it was kept."""
        kind, meta, dtype, *_ = self._meta
        tensors = [
            (code.to(self.scales.dtype) * scale).to(dtype) for code, scale in zip(self.codes, self.scales, strict=True)
        ]
        return kind.rebuild(tensors, meta)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the codes and the scales."""
        return (*self.codes, self.scales)

    @property
    def meta(self) -> EightBitMeta:
        """What is known of the other form besides its tensors."""
        return self._meta

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: EightBitMeta) -> "EightBitPacked":
        """Make the object again."""
        return cls(tuple(tensors[:-1]), tensors[-1], meta)

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return self._meta[3]

    def dense(self) -> Tensor:
        """Return the activation, as well as it was kept."""
        return self.form.dense()

    def partial(self, keep: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return what the other form returns."""
        return self.form.partial(keep)

    def outline(self) -> Outline:
        """Return that of the other form."""
        return self.form.outline()

    def paper_count(self) -> int:
        """Return the elements that the paper counts for the other form."""
        return self._meta[4]


@codecs.register("hosvd8")
@dataclass(frozen=True)
class HOSVD8(HOSVD):
    """`HOSVD` whose core and factors are kept as eight-bit floating-point numbers, a quarter of the bytes.

    Rounding moves every element of the core and the factors by at most a sixteenth of itself (or, where it is tiny, by
    2e-6 of the largest), and each of these tensors by about a fortieth of its norm. At equal bytes a higher epsilon
    then gives a smaller error: the bytes of `HOSVD(0.8)` buy an epsilon of about 0.95.

    Attributes:
        epsilon: Share of the energy that each mode keeps, in (0, 1]; 1 keeps the tensor itself, unrounded.

    Raises:
        ConfigError: `epsilon` is outside (0, 1].
    """

    epsilon: float = 0.95
    label = "HOSVD8"

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x`, rounded; raises NotFactorableError where `x` is not finite."""
        return EightBitPacked.of(super().compress(x))
