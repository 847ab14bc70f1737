"""Eigendecompositions of Gram matrices."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of a matrix, or of each of a stack.

    A library may not converge in single precision, or answer NaN for a finite matrix with rows of zeros, as dead
    channels have, and say nothing: then it is done again in double precision.

    Raises:
        torch.linalg.LinAlgError: It has no decomposition, as it is not finite.
    """
    try:
        pairs = torch.linalg.eigh(gram)
        if _are_finite(*pairs):
            return pairs[0], pairs[1]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if gram.dtype == torch.float64:
            raise
    pairs = torch.linalg.eigh(gram.double())
    if not _are_finite(*pairs):
        raise torch.linalg.LinAlgError("its eigenvalues are not finite")  # type: ignore[attr-defined]
    return pairs[0].to(gram.dtype), pairs[1].to(gram.dtype)


def _are_finite(energies: Tensor, vectors: Tensor) -> bool:
    """Say whether all numbers are: a sum is not, where one is not."""
    return bool((energies.sum() + vectors.sum()).isfinite())


def eigh_batched(grams: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return `eigh` of every Gram matrix, of different sizes, by one call.

    Each is padded to the size of the largest by a block of -1 on its diagonal. No energy is below 0 but for rounding,
    to which 1 is large after the scale is taken out, so that the padding's eigenvalues come first and are cut off.
    """
    largest = max(len(gram) for gram in grams)
    scales = [gram.trace().clamp_min(torch.finfo(gram.dtype).tiny) for gram in grams]
    padded = []
    for gram, scale in zip(grams, scales, strict=True):
        missing = largest - len(gram)
        below = torch.arange(largest, device=gram.device) < missing
        padded.append(F.pad(gram / scale, (missing, 0, missing, 0)) - torch.diag(below.to(gram.dtype)))
    energies, vectors = eigh(torch.stack(padded))
    cut = [largest - len(gram) for gram in grams]
    return [
        (energies.select(0, i).narrow(0, c, largest - c) * scales[i], vectors.select(0, i)[c:, c:])
        for i, c in enumerate(cut)
    ]
