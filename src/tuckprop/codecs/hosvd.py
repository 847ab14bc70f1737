"""HOSVD at an explained-variance threshold: the paper's method."""

import math
from dataclasses import dataclass

from torch import Tensor

from tuckprop.codecs._base import Codec, Packed, codecs
from tuckprop.codecs._tucker import in_memory_order
from tuckprop.errors import ConfigError
from tuckprop.linalg.basis import working_dtype
from tuckprop.linalg.tucker import hosvd


def check_epsilon(epsilon: float, owner: str) -> None:
    """Check that `epsilon` is a share of variance.

    Raises:
        ConfigError: `epsilon` is no number in (0, 1].
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise ConfigError(f"{owner}(epsilon=...): expected a number in (0, 1], got {epsilon!r}")
    if math.isnan(epsilon) or not 0 < epsilon <= 1:
        raise ConfigError(
            f"{owner}(epsilon=...): expected a share of variance in (0, 1], got {epsilon!r}; the paper uses 0.8 and 0.9"
        )


@codecs.register("hosvd")
@dataclass(frozen=True)
class HOSVD(Codec):
    """Truncated HOSVD, decomposed anew at each step; each mode keeps the fewest vectors that reach `epsilon`.

    The kept A' obeys `|A - A'| <= sqrt(d (1 - epsilon)) |A|` for d axes. A mode whose factor would take more elements
    than it saves is left whole, which the paper's code does not do: A' is nearer to A, and smaller. Ranks, and the
    paper's count, are those of the paper all the same.

    Attributes:
        epsilon: Share of the energy that each mode keeps, in (0, 1]; 1 keeps the tensor itself.

    Raises:
        ConfigError: `epsilon` is outside (0, 1].

    Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346).
    """

    epsilon: float = 0.8
    label = "HOSVD"

    @property
    def lossless(self) -> bool:
        """At epsilon 1."""
        return self.epsilon >= 1

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, "HOSVD")

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x`; raises NotFactorableError where `x` is not finite."""
        return in_memory_order(
            x, working_dtype(x.dtype, self.epsilon), lambda y, order: hosvd(y, [self.epsilon] * y.dim())
        )
