"""How many components a mode keeps."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tuckprop.linalg.lagged import waiting_costs


def explained_variance_rank(energies: Tensor, epsilon: float) -> Tensor:
    """Return the fewest leading components whose share of the energy reaches `epsilon`.

    Args:
        energies: Squared singular values, descending, shape [n].
        epsilon: Share of the total to keep, in (0, 1].

    Returns:
        A scalar int64 tensor in 1..n, on the device of `energies`: the caller decides when to wait for it.

    Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346), the explained-variance threshold of HOSVD and SVD.
    """
    if not waiting_costs(energies.device):
        # A few operations of PyTorch take longer than a loop over as many numbers as a mode has.
        kept = list(accumulate(max(0.0, energy) for energy in energies.tolist()))
        rank = min(bisect_left(kept, epsilon * kept[-1]) + 1, len(kept))
        return torch.tensor(rank, device=energies.device)
    energies = energies.clamp_min(0)
    share = energies.cumsum(0)
    short = (share < epsilon * share[-1]).sum()
    return (short + 1).clamp_max(energies.numel()).to(torch.int64)


def read_ranks(ranks: Sequence[Tensor | int]) -> list[int]:
    """Return ranks as the host has them, or reads them off a device, which it waits for once.

    Args:
        ranks: Numbers, or scalar int64 tensors.
    """
    there = [rank for rank in ranks if isinstance(rank, Tensor)]
    read = iter(torch.stack(there).tolist() if there else [])
    return [next(read) if isinstance(rank, Tensor) else rank for rank in ranks]
