"""Speed-ups R_S: multiply-adds of plain training over those of a method. Ratios of counts, not of times.

Below one the method computes more. The gradient of the input is the same in every method and left out on both sides,
as the authors leave it out.

Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346), Fig. 3b; whether it includes forward is not certain, so both
readings are here.
"""

from tuckprop.theory import cost
from tuckprop.theory.convolution import Convolution


def hosvd_backward_speedup(conv: Convolution, ranks: tuple[int, ...]) -> float:
    """Return the plain weight gradient over HOSVD's; forward is left out.

    With all sizes n and all ranks k it is `D^2 n^5 / (k n^4 + n k^4 + n^2 k^3 + D^2 n^3 k^2 + D^2 n^2 k)`, near `D^2 n`
    for k = 1 and large n (derived here).

    Eq. 22 of docs/predictions.md.
    """
    return cost.plain_weight_gradient(conv) / cost.hosvd_weight_gradient(conv, ranks)


def hosvd_step_speedup_as_published(conv: Convolution, ranks: tuple[int, ...]) -> float:
    """Return forward and weight gradient, plain over HOSVD, by the authors' counts.

    Below one as soon as the decompositions outweigh the convolution: with all sizes n they take 4 n^7, it D^2 n^5.

    Eq. 23 of docs/predictions.md.
    """
    forward = cost.plain_forward_as_published(conv)
    plain = forward + cost.plain_weight_gradient(conv)
    return plain / (forward + cost.hosvd_overhead_as_published(conv) + cost.hosvd_weight_gradient(conv, ranks))


def hosvd_step_speedup_by_gram(conv: Convolution, ranks: tuple[int, ...]) -> float:
    """Return forward and weight gradient, plain over HOSVD, with bases from Gram matrices as here. Derived here.

    Eq. 24 of docs/predictions.md.
    """
    forward = cost.plain_forward(conv)
    plain = forward + cost.plain_weight_gradient(conv)
    return plain / (forward + cost.hosvd_overhead_by_gram(conv, ranks) + cost.hosvd_weight_gradient(conv, ranks))


def svd_backward_speedup(conv: Convolution, rank: int) -> float:
    """Return the plain weight gradient over SVD's, which restores A first: always under one. Derived here.

    Eq. 25 of docs/predictions.md.
    """
    return cost.plain_weight_gradient(conv) / cost.svd_weight_gradient(conv, rank)


def svd_step_speedup_as_published(conv: Convolution, rank: int) -> float:
    """Return forward and weight gradient, plain over SVD, by the authors' count of an SVD. Derived here.

    Eq. 26 of docs/predictions.md.
    """
    forward = cost.plain_forward_as_published(conv)
    plain = forward + cost.plain_weight_gradient(conv)
    return plain / (forward + cost.svd_overhead_as_published(conv) + cost.svd_weight_gradient(conv, rank))


def svd_step_speedup_by_gram(conv: Convolution, rank: int) -> float:
    """Return forward and weight gradient, plain over SVD, both as this library computes them. Derived here.

    Eq. 27 of docs/predictions.md.
    """
    forward = cost.plain_forward(conv)
    plain = forward + cost.plain_weight_gradient(conv)
    kept = cost.svd_overhead_by_gram(conv, rank) + cost.svd_weight_gradient_projected(conv, rank)
    return plain / (forward + kept)
