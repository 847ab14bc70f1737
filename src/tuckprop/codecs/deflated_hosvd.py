"""HOSVD in eight bits, its bytes deflated: the smallest form here, for machines where every byte counts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Outline, Packed, codecs
from tuckprop.codecs.hosvd import HOSVD
from tuckprop.codecs.hosvd8 import HOSVD8, EightBitMeta, EightBitPacked
from tuckprop.linalg.deflate import deflate, inflate

# Of the form that is deflated: the shapes and the dtype of its codes, and its meta.
_Meta = tuple[tuple[Size, ...], torch.dtype, EightBitMeta]


class DeflatedPacked(Packed):
    """An eight-bit form whose codes are deflated together.

    Attributes:
        data: The codes of all tensors, one after the other, deflated: uint8 [n].
        scales: As there.
    """

    def __init__(self, data: Tensor, scales: Tensor, meta: _Meta) -> None:
        self.data = data
        self.scales = scales
        self._meta = meta

    @classmethod
    def of(cls, form: EightBitPacked) -> "DeflatedPacked":
        """Return `form` deflated."""
        codes = torch.cat([code.view(torch.uint8).reshape(-1) for code in form.codes])
        shapes = tuple(code.shape for code in form.codes)
        return cls(deflate(codes), form.scales, (shapes, form.codes[0].dtype, form.meta))

    @cached_property
    def form(self) -> EightBitPacked:
        """The eight-bit form, as it was."""
        shapes, dtype, meta = self._meta
        counts = [prod(shape) for shape in shapes]
        parts = inflate(self.data, sum(counts)).split(counts)
        codes = [part.view(dtype).view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return EightBitPacked.rebuild((*codes, self.scales), meta)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the deflated bytes and the scales."""
        return self.data, self.scales

    @property
    def meta(self) -> _Meta:
        """What is known of the eight-bit form besides its tensors."""
        return self._meta

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: _Meta) -> "DeflatedPacked":
        """Make the object again."""
        data, scales = tensors
        return cls(data, scales, meta)

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return self.form.shape

    def dense(self) -> Tensor:
        """Return the activation, as well as it was kept."""
        return self.form.dense()

    def partial(self, keep: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return what the eight-bit form returns."""
        return self.form.partial(keep)

    def outline(self) -> Outline:
        """Return that of the eight-bit form."""
        return self.form.outline()

    def paper_count(self) -> int:
        """Return the elements that the paper counts for the eight-bit form."""
        return self.form.paper_count()


@codecs.register("deflated_hosvd")
@dataclass(frozen=True)
class DeflatedHOSVD(HOSVD8):
    """`HOSVD8` whose bytes are deflated, and so are the bits that ReLU, ReLU6 and Hardtanh keep; nothing more is lost.

    The bits are most of what a network of ReLU6 holds under any of the other codecs; deflated they are a third to two
    thirds. Costs a pass of zlib over an eighth of a byte an element. On a GPU, where there is no zlib, nothing is
    deflated: it is `HOSVD8` there.

    Attributes:
        epsilon: Share of the energy that each mode keeps, in (0, 1]; 1 keeps the tensor itself, unrounded.

    Raises:
        ConfigError: `epsilon` is out of range.
    """

    epsilon: float = 0.95
    label = "Deflated HOSVD"

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x`, rounded and deflated; raises NotFactorableError where `x` is not finite."""
        form = EightBitPacked.of(HOSVD(self.epsilon).compress(x))
        return DeflatedPacked.of(form) if x.device.type == "cpu" else form
