"""Elements that each method keeps of an activation for backward, and the compression rate.

Symbols: A [B, C, H, W] is the activation, M_j its sizes, K_j the ranks, K the rank of the batch unfolding.
"""

from itertools import product
from math import ceil, prod

from tuckprop.theory.convolution import Convolution, check_ranks


def plain_elements(conv: Convolution) -> int:
    """Return BCHW, what plain training keeps (Nguyen et al., NeurIPS 2024).

    Eq. 1 of docs/predictions.md.
    """
    return conv.elements


def svd_elements(conv: Convolution, rank: int) -> int:
    """Return `K (B + CHW)`: U S [B, K] and V^T [K, CHW] of the batch unfolding (Nguyen et al., NeurIPS 2024).

    Eq. 2 of docs/predictions.md.

    Raises:
        ConfigError: The rank is not from 1 to the smaller side of the unfolding.
    """
    size, rest = conv.unfolding(0)
    check_ranks((min(size, rest),), (rank,))
    return rank * (size + rest)


def hosvd_elements(conv: Convolution, ranks: tuple[int, ...]) -> int:
    """Return `K_1 K_2 K_3 K_4 + B K_1 + C K_2 + H K_3 + W K_4`: core and factors (Nguyen et al., NeurIPS 2024).

    Eq. 3 of docs/predictions.md.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size.
    """
    check_ranks(conv.shape, ranks)
    return prod(ranks) + sum(n * k for n, k in zip(conv.shape, ranks, strict=True))


def hosvd_kept_elements(conv: Convolution, ranks: tuple[int, ...]) -> int:
    """Return what this library keeps at these ranks: the smallest core and factors over all choices of whole modes.

    A mode whose factor would cost more than it saves stays whole in the core, so this is never more than
    `hosvd_elements` and never more than BCHW. Derived here.

    Eq. 4 of docs/predictions.md.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size.
    """
    check_ranks(conv.shape, ranks)
    pairs = list(zip(conv.shape, ranks, strict=True))
    return min(
        prod(k if factored else n for (n, k), factored in zip(pairs, choice, strict=True))
        + sum(n * k for (n, k), factored in zip(pairs, choice, strict=True) if factored)
        for choice in product((False, True), repeat=len(pairs))
    )


def gradient_filter_elements(conv: Convolution, patch: int) -> int:
    """Return `B C ceil(H'/r) ceil(W'/r)`: a sum of A for each patch of the output (Yang et al., CVPR 2023, Sec. 3.3).

    The weight's sum over its taps, `C C'` elements, is kept besides and not counted by the authors.

    Eq. 5 of docs/predictions.md.
    """
    return conv.batch * conv.channels * ceil(conv.out_height / patch) * ceil(conv.out_width / patch)


def compression_rate(conv: Convolution, kept: int) -> float:
    """Return R_C: elements of A over elements `kept` (Nguyen et al., NeurIPS 2024, Fig. 3a).

    With all sizes n and all ranks k, HOSVD's is `n^4 / (k^4 + 4 n k)` (derived here).

    Eq. 6 of docs/predictions.md.
    """
    return plain_elements(conv) / kept
