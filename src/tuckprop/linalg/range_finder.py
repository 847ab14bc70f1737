"""A basis of one mode at a rank that is known beforehand, by products of matrices alone."""

import torch
from torch import Tensor

from tuckprop.linalg.modes import mode_gram
from tuckprop.linalg.orthonormal import directions, orthonormal

# Rounds of iteration, each with the square of the Gram matrix: the share that a round of two loses over the best basis
# of that rank falls with the eighth power of the ratio of the first singular value left out to the last one kept.
_ROUNDS = 2


def find_range(x: Tensor, mode: int, rank: int) -> Tensor:
    """Return an orthonormal basis near the leading `rank` left singular vectors of a mode-n unfolding.

    Args:
        x: Shape [n_1, ..., n_d], contiguous; n_mode is small.
        mode: The axis.
        rank: At most n_mode.

    Returns:
        Shape [n_mode, rank].

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, algorithm 4.4.
    """
    gram = mode_gram(x, mode)
    # Of a trace near one, so that its square neither overflows nor vanishes.
    gram = gram / gram.trace().clamp_min(torch.finfo(gram.dtype).tiny)
    basis = directions(len(gram), rank, device=gram.device).to(gram.dtype)
    for _ in range(_ROUNDS):
        basis = orthonormal(gram @ (gram @ basis))
    return basis
