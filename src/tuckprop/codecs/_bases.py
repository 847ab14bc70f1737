"""The bases of one site for one activation size, and what is known of them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tuckprop.linalg.energy import Energy, Rule
from tuckprop.linalg.lagged import Lagged

# After so many misses, the axis with the largest basis is left whole until the horizon: where samples are few
# beside its size, as in late layers, a basis fits its own batch and no other.
_PATIENCE = 4


@dataclass(frozen=True)
class Measured:
    """What an activation lost, on its way to the host.

    Attributes:
        numbers: That of its energy, and the energy that was kept.
        rule: What the first of them says.
    """

    numbers: Lagged
    rule: Rule = field(default_factory=Rule)

    @classmethod
    def sent(cls, energy: Energy, kept: Tensor) -> "Measured":
        """Send off both numbers; neither is waited for."""
        return cls(Lagged(torch.stack([energy.number, kept])), energy.rule)

    @classmethod
    def known(cls, lost: float) -> "Measured":
        """Return one whose share is known."""
        return cls(Lagged(torch.tensor([1.0, 1.0 - lost], dtype=torch.float64)))

    def lost(self) -> float:
        """Return the share of the energy that was lost; NaN of an activation that was 0, or not finite."""
        return self.rule.lost(*self.numbers.read())


@dataclass
class Bases:
    """Orthonormal bases of one site for one activation size; all but their age stays as it is.

    Attributes:
        factors: Axis to basis [n, k]; replaced, never changed in place, as a graph may still hold them.
        shares: Axis to the share of the energy along each vector [k], of this activation and earlier ones.
        ranks: Rank of every axis but the batch, also of axes left whole.
        lost: Share of the energy that was lost when the bases were computed, but for the room they have.
        expected: The same with that room.
        age: Activations packed with them since.
        misses: How often bases lost more than they may: raised where they served no activation beyond that they were
            computed from, lowered where they were replaced for another reason.
        whole: Axes that have no basis, because theirs do not carry over from one batch to the next.
        batch_pays: Whether a factor of the batch saved enough bytes when the bases were new.
        measured: What the last activation packed with them lost, where that is read a step later.
        due: Whether they serve no more, as the site has other settings now; what was learnt with them does.
    """

    factors: dict[int, Tensor]
    shares: dict[int, Tensor]
    ranks: dict[int, int]
    lost: float
    expected: float = 0.0
    age: int = 0
    misses: int = 0
    whole: frozenset[int] = frozenset()
    batch_pays: bool = True
    measured: Measured | None = None
    due: bool = False

    def lessons(self, missed: bool, horizon: int, late: bool) -> tuple[int, frozenset[int]]:
        """Return the misses of the bases that take the place of these, and the axes that these are to leave whole.

        Args:
            missed: Whether they are replaced because they lost too much.
            horizon: Uses after which bases are computed anew in any case, with all axes.
            late: Whether a miss is seen a step later.
        """
        if self.due:
            return self.misses, self.whole
        if self.age >= horizon:
            return max(0, self.misses - 1), frozenset()
        if not missed:
            return max(0, self.misses - 1), self.whole
        # Where it is seen late, the bases served one activation more, well or not.
        if self.age > (2 if late else 1):
            return max(1, self.misses), self.whole
        if self.misses + 1 < _PATIENCE or not self.factors:
            return self.misses + 1, self.whole
        return 0, self.whole | {max(self.factors, key=lambda axis: self.factors[axis].numel())}
