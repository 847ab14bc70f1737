"""Multiply-adds of forward and of the weight gradient; one multiply-add is two floating-point operations.

Two countings stand side by side. Functions that end in `as_published` are the authors' own formulas, which take the
input's size for the output's, ignore groups and count a full SVD of every unfolding. The others count what is computed.
The gradient of the input is exact and costs the same in every method; the authors do not count it.

Symbols: A [B, C, H, W], output [B, C', H', W'], kernel D x D, ranks K_j, unfolding of mode j [M_j, P_j].
Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346), and the counts in its authors' public code.
"""

from math import prod

from tuckprop.linalg.tucker import contraction_order
from tuckprop.theory.convolution import Convolution, check_ranks


def plain_forward_as_published(conv: Convolution) -> int:
    """Return `D^2 C C' B H W`, as the authors count: the input's size, no groups.

    Eq. 7 of docs/predictions.md.
    """
    return conv.taps * conv.channels * conv.outputs * conv.batch * conv.height * conv.width


def plain_forward(conv: Convolution) -> int:
    """Return `D^2 (C / groups) C' B H' W'`, what the convolution computes. Derived here.

    Eq. 8 of docs/predictions.md.
    """
    return conv.taps * (conv.channels // conv.groups) * conv.outputs * conv.batch * conv.positions


def plain_weight_gradient(conv: Convolution) -> int:
    """Return `D^2 (C / groups) C' B H' W'`; the authors' formula where groups = 1, derived here for others.

    Eq. 16 of docs/predictions.md.
    """
    return plain_forward(conv)


def plain_input_gradient(conv: Convolution) -> int:
    """Return `D^2 (C / groups) C' B H' W'`, the same in every method. Derived here; the authors leave it out.

    Eq. 17 of docs/predictions.md.
    """
    return plain_forward(conv)


def full_svd(rows: int, columns: int) -> int:
    """Return `max^2 min`, the authors' count of one SVD: one with all singular vectors.

    Eq. 9 of docs/predictions.md.
    """
    return max(rows, columns) ** 2 * min(rows, columns)


def economy_svd(rows: int, columns: int) -> int:
    """Return `max min^2`, the order of an SVD with min(rows, columns) vectors, which the authors' code runs.

    Derived here; smaller than their count by the factor max / min.

    Eq. 10 of docs/predictions.md.
    """
    return max(rows, columns) * min(rows, columns) ** 2


def gram_basis(rows: int, columns: int) -> int:
    """Return `min^2 max + min^3`: the smaller Gram matrix of an unfolding, and the order of its eigendecomposition.

    Derived here: the route of `tuckprop.linalg.basis`. No singular vectors of the long side are ever formed.

    Eq. 11 of docs/predictions.md.
    """
    small, large = min(rows, columns), max(rows, columns)
    return small**2 * large + small**3


def svd_overhead_as_published(conv: Convolution) -> int:
    """Return what SVD adds to forward by the authors' count of one SVD, `full_svd` of [B, CHW]. Derived here.

    Eq. 12 of docs/predictions.md.
    """
    return full_svd(*conv.unfolding(0))


def svd_overhead_by_gram(conv: Convolution, rank: int) -> int:
    """Return what SVD adds to forward in this library: `gram_basis` of [B, CHW] and the projection `K BCHW`.

    Derived here, for a batch unfolding that is wider than tall.

    Eq. 13 of docs/predictions.md.

    Raises:
        ConfigError: The rank is not from 1 to the smaller side of the unfolding.
    """
    check_ranks((min(conv.unfolding(0)),), (rank,))
    return gram_basis(*conv.unfolding(0)) + rank * conv.elements


def hosvd_overhead_as_published(conv: Convolution) -> int:
    """Return `sum_j max(M_j, P_j)^2 min(M_j, P_j)`, what HOSVD adds to forward by the authors' count.

    Eq. 14 of docs/predictions.md.
    """
    return sum(full_svd(*conv.unfolding(mode)) for mode in range(4))


def hosvd_overhead_by_gram(conv: Convolution, ranks: tuple[int, ...]) -> int:
    """Return what HOSVD adds to forward in this library: `sum_j M_j^2 P_j + M_j^3`, and the projection to the core.

    The core is projected in the order that `tuckprop.linalg.tucker.contraction_order` gives; modes of size 1 cost
    nothing. Derived here, for unfoldings that are wider than tall and with a factor on every mode that shrinks; a mode
    that this library leaves whole, because its factor would not pay, changes the projection alone. That compiled
    kernels compute half of a symmetric matrix, that small trailing modes share one, and that modes of low rank are
    decomposed within their range, is not counted.

    Eq. 15 of docs/predictions.md.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size.
    """
    check_ranks(conv.shape, ranks)
    bases = sum(gram_basis(*conv.unfolding(mode)) for mode, size in enumerate(conv.shape) if size > 1)
    left, projection = conv.elements, 0
    shrinking = {mode: rank for mode, (size, rank) in enumerate(zip(conv.shape, ranks, strict=True)) if rank < size}
    for modes in contraction_order(conv.shape, shrinking):
        rank = prod(shrinking[mode] for mode in modes)
        projection += left * rank
        left = left // prod(conv.shape[mode] for mode in modes) * rank
    return bases + projection


def svd_weight_gradient(conv: Convolution, rank: int) -> int:
    """Return `K BCHW` to restore A and then the plain weight gradient: how the authors' code goes. Derived here.

    Eq. 18 of docs/predictions.md.

    Raises:
        ConfigError: The rank is not from 1 to the smaller side of the unfolding.
    """
    check_ranks((min(conv.unfolding(0)),), (rank,))
    return rank * conv.elements + plain_weight_gradient(conv)


def svd_weight_gradient_projected(conv: Convolution, rank: int) -> int:
    """Return `B K C' H' W' + D^2 (C / groups) C' K H' W'`: the batch is at its rank; A is not restored.

    Derived here: a route of this library.

    Eq. 19 of docs/predictions.md.

    Raises:
        ConfigError: The rank is not from 1 to the smaller side of the unfolding.
    """
    check_ranks((min(conv.unfolding(0)),), (rank,))
    project = conv.batch * rank * conv.outputs * conv.positions
    return project + plain_weight_gradient(conv) // conv.batch * rank


def hosvd_weight_gradient_steps(conv: Convolution, ranks: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-adds of each contraction of the weight gradient from core S and factors U_1..U_4.

        Z1[k1,c',h',w'] = sum_b G[b,c',h',w'] U1[b,k1]                  B K1 C' H' W'
        Z2[k1,k2,h,k4]  = sum_k3 S[k1,k2,k3,k4] U3[h,k3]                H K1 K2 K3 K4
        Z3[k1,k2,h,w]   = sum_k4 Z2[k1,k2,h,k4] U4[w,k4]                H W K1 K2 K4
        Z4[c',k2,i,j]   = sum_k1,h',w' Z3[k1,k2,h,w] Z1[k1,c',h',w']    D^2 C' K1 K2 H' W'
        dW[c',c,i,j]    = sum_k2 Z4[c',k2,i,j] U2[c,k2]                 D^2 C' (C / groups) K2

    The authors' formula where groups = 1; derived here for others, whose Z4 is that of a dense convolution. As in the
    authors' count, the rows of zeros that padding adds to U3 and U4 do not count.

    Eq. 20 of docs/predictions.md.

    Returns:
        Multiply-adds by the name of the result: Z1, Z2, Z3, Z4, dW.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size.
    """
    check_ranks(conv.shape, ranks)
    k1, k2, _, k4 = ranks
    return {
        "Z1": conv.batch * k1 * conv.outputs * conv.positions,
        "Z2": conv.height * prod(ranks),
        "Z3": conv.height * conv.width * k1 * k2 * k4,
        "Z4": conv.taps * conv.outputs * k1 * k2 * conv.positions,
        "dW": conv.taps * conv.outputs * (conv.channels // conv.groups) * k2,
    }


def hosvd_weight_gradient(conv: Convolution, ranks: tuple[int, ...]) -> int:
    """Return the sum of `hosvd_weight_gradient_steps`, the authors' count of HOSVD's backward.

    Eq. 21 of docs/predictions.md.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size.
    """
    return sum(hosvd_weight_gradient_steps(conv, ranks).values())
