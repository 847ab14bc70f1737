"""SVD of the batch unfolding at an explained-variance threshold: the paper's other method."""

from dataclasses import dataclass

from torch import Size, Tensor

from tuckprop.codecs._base import Codec, Packed, codecs
from tuckprop.codecs._tucker import in_memory_order
from tuckprop.codecs.hosvd import check_epsilon
from tuckprop.linalg.basis import spectrum, working_dtype
from tuckprop.linalg.modes import mode_product


@codecs.register("svd")
@dataclass(frozen=True)
class SVD(Codec):
    """Truncated SVD of the activation unfolded to [batch, everything else], decomposed anew at each step.

    The kept A' obeys `|A - A'| <= sqrt(1 - epsilon) |A|`. It is kept as U [batch, k], orthonormal, and U^T A.

    Attributes:
        epsilon: Share of the energy to keep, in (0, 1]; 1 keeps the tensor itself.

    Raises:
        ConfigError: `epsilon` is outside (0, 1].

    Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346).
    """

    epsilon: float = 0.8
    label = "SVD"

    @property
    def lossless(self) -> bool:
        """At epsilon 1."""
        return self.epsilon >= 1

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, "SVD")

    def worth_trying(self, shape: Size) -> bool:
        """A batch of one has nothing to share."""
        return shape[0] > 1 and super().worth_trying(shape)

    def compress(self, x: Tensor) -> Packed:
        """Return U [batch, k] and U^T A; raises NotFactorableError where `x` is not finite."""

        def factor(y: Tensor, order: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor], tuple[int, ...]]:
            batch = order.index(0)
            found = spectrum(y, batch, self.epsilon)
            rank = int(found.rank)
            left = found.leading(rank)
            ranks = tuple(rank if axis == batch else 0 for axis in range(y.dim()))
            return mode_product(y, left, batch), {batch: left}, ranks

        return in_memory_order(x, working_dtype(x.dtype, self.epsilon), factor)
