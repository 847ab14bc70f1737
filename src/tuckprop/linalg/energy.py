"""The energy (sum of squares) of a tensor: a number that the device has, which the host reads when it likes."""

from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor

# Of a variance, in single precision.
_ROUNDING = 1e-6


def sum_of_squares(x: Tensor) -> Tensor:
    """Return the energy of `x`, a scalar; what is not contiguous is copied."""
    row = x.reshape(-1)
    return row.dot(row)


@dataclass(frozen=True)
class Rule:
    """What the host makes of the device's number.

    Attributes:
        elements: Of a standardised tensor; 0 where the number is the energy itself.
        eps: What was added to its variance, over how many groups it has; the number is the norm of
            `1 / sqrt(variance + eps)` over the groups.
    """

    elements: int = 0
    eps: float = 0.0

    def energy(self, number: float) -> float:
        """Return the energy; 0 where it is rounding, as of a constant input of a norm."""
        if not self.elements:
            return number
        share = 1 - self.eps * number * number
        return 0.0 if share <= _ROUNDING else self.elements * share

    def lost(self, number: float, kept: float) -> float:
        """Return the share of the energy that is lost where so much is kept; NaN of a tensor of 0, or not finite."""
        energy = self.energy(number)
        # Rounding loses nothing; of the two, NaN comes first.
        return max(1 - kept / energy, 0.0) if 0 < energy < inf else nan


@dataclass(frozen=True)
class Energy:
    """An energy that is not read yet.

    Attributes:
        number: A scalar, where the tensor is.
        rule: What it says.
    """

    number: Tensor
    rule: Rule = Rule()

    @classmethod
    def of(cls, x: Tensor) -> "Energy":
        """Return that of `x`."""
        return cls(sum_of_squares(x))

    @classmethod
    def standardised(cls, elements: int, invstd: Tensor, eps: float) -> "Energy":
        """Return that of a standardised tensor, whose variance is `variance / (variance + eps)` in each group.

        Args:
            elements: Of the tensor.
            invstd: `1 / sqrt(variance + eps)` of each group, any shape.
            eps: As there.
        """
        norm = torch.linalg.vector_norm(invstd, dtype=torch.float64)
        return cls(norm, Rule(elements, eps / invstd.numel()))

    def read(self) -> float:
        """Wait for the number, and return the energy."""
        return self.rule.energy(float(self.number))
