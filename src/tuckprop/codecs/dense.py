"""Keep the activation itself: the control arm, and the mode of exact gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor

from tuckprop.codecs._base import Codec, Packed, codecs


class DensePacked(Packed):
    """The activation, unchanged and shared with whoever else keeps it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the activation."""
        return (self.x,)

    @property
    def meta(self) -> None:
        """Nothing."""
        return

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: None) -> "DensePacked":
        """Make the object again."""
        return cls(tensors[0])

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        return self.x.shape

    def dense(self) -> Tensor:
        """Return the activation."""
        return self.x

    def paper_count(self) -> int:
        """Return the elements of the activation, the paper's count for plain training."""
        return self.x.numel()


@codecs.register("dense")
@dataclass(frozen=True)
class Dense(Codec):
    """Keep activations as they are: every gradient is PyTorch's, only the pointwise twins save memory."""

    label = "Dense"

    @property
    def lossless(self) -> bool:
        """Always."""
        return True

    def worth_trying(self, shape: Size) -> bool:
        """The activation is no smaller than itself."""
        return False

    def compress(self, x: Tensor) -> Packed:
        """Return `x` itself, wrapped."""
        return DensePacked(x)
