"""The bases of one site for one activation size, and what is known of them."""

from dataclasses import dataclass

from torch import Tensor

from tuckprop.linalg.lagged import Lagged


@dataclass(frozen=True)
class Bases:
    """Orthonormal bases of one site for one activation size.

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
        batch_rank: The rank of that factor then; 0 for none.
        measured: What the last activation packed with them lost, where that is read a step later: the share of the
            energy lost to the bases, and the share of the rest lost to a factor of the batch.
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
    batch_rank: int = 0
    measured: Lagged | None = None
