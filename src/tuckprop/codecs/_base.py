"""Where layers and codecs meet: a layer knows its axes, a codec knows its factors, both know `Packed`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Size, Tensor, nn

from tuckprop.linalg.standardised import Standardised
from tuckprop.registry import Registry


class Outline(NamedTuple):
    """A core and factors, without their elements.

    Attributes:
        core: Shape of the core.
        factors: Axis, size and rank of each factor.
    """

    core: Size
    factors: tuple[tuple[int, int, int], ...]


class Packed(ABC):
    """One activation, in the form that is kept for backward.

    A subclass is rebuilt in backward from its tensors and a static `meta`, so that the tensors themselves go through
    `save_for_backward`, where hooks, checkpointing and memory counters see them.
    """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that are kept."""

    @property
    @abstractmethod
    def meta(self) -> Hashable:
        """Whatever else `rebuild` needs; no tensors."""

    @classmethod
    @abstractmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: Any) -> "Packed":
        """Make the object again from what `tensors` and `meta` returned."""

    @property
    @abstractmethod
    def shape(self) -> Size:
        """Shape of the activation."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the activation, as well as it was kept; shape `self.shape`."""

    def partial(self, keep: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return a core and factors whose product is `dense()`, with factors on no axis outside `keep`.

        Args:
            keep: The axes on which the layer can use a factor as it is.

        Returns:
            The core, and for some axes in `keep` a factor [size, rank], where the core has `rank` on that axis; all in
            the dtype of the activation, or all in one of more precision.
        """
        return self.dense(), {}

    def outline(self) -> Outline:
        """Return the shapes of what `partial` returns with all axes to keep, without forming anything of their size."""
        return Outline(self.shape, ())

    @abstractmethod
    def paper_count(self) -> int:
        """Return the number of elements the codec's paper counts for this activation."""

    @property
    def nbytes(self) -> int:
        """Bytes of the kept tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors())


class Tracker(Protocol):
    """What a codec remembers at one site; it is copied, pickled and moved with the module."""

    def compress(self, x: Tensor) -> Packed:
        """Return `x` in the codec's form, with the help of what is remembered."""

    def compress_standardised(self, source: Standardised) -> Packed:
        """Return `source.dense()` in the codec's form, if possible without forming it."""

    def heir(self, codec: "Codec") -> "Tracker | None":
        """Return what a site goes on with when its codec becomes this one: by default, what has learnt nothing."""
        return codec.tracker()

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast every tensor that is remembered."""

    def state(self) -> dict[str, Any]:
        """Return what is remembered, for a checkpoint: tensors, plain values, lists and dictionaries of these."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` returned."""


@dataclass(frozen=True)
class Codec(ABC):
    """Settings of one way to keep an activation; the instance is the method."""

    label: ClassVar[str]

    @abstractmethod
    def compress(self, x: Tensor) -> Packed:
        """Return `x`, any shape, any strides, in the codec's form.

        Raises:
            NotFactorableError: `x` has no such form (NaN, Inf); the caller then keeps `x` itself.
        """

    @property
    def lossless(self) -> bool:
        """Whether every activation is kept exactly; layers that would approximate are then left plain."""
        return False

    def tracker(self) -> "Tracker | None":
        """Return the state that a site carries from step to step, or None for a codec without any."""
        return None

    def worth_trying(self, shape: Size) -> bool:
        """Say whether the form of an activation of this shape can be smaller than the activation."""
        return not self.lossless and prod(shape) > 1

    def refusal(self, module: nn.Module) -> str | None:
        """Return why this codec cannot serve `module`, or None if it can."""
        return None


codecs: Registry[type[Codec]] = Registry("codec")
