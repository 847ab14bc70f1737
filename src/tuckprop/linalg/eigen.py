"""Eigendecompositions of Gram matrices."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors; again in double precision where single does not converge."""
    try:
        energies, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if gram.dtype == torch.float64:
            raise
        energies, vectors = (part.to(gram.dtype) for part in torch.linalg.eigh(gram.double()))
    return energies, vectors


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
