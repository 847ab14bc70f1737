"""What a tracker packs: a tensor, or a standardised one that is not formed, in the bases' precision or a lower one."""

import torch
from torch import Tensor

from tuckprop import native
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.standardised import Standardised

Source = Tensor | Standardised


def tensor_of(source: Source) -> Tensor:
    """Return the tensor whose memory is read."""
    return source.x if isinstance(source, Standardised) else source


def reads(x: Tensor, work: torch.dtype) -> bool:
    """Say whether a tensor is multiplied by bases of this dtype as it lies, without a copy in that dtype."""
    return x.dtype == work or (work == torch.float32 and native.reads(x))


def energy_of(source: Source) -> Energy:
    """Return the energy of a source in the dtype of the bases, or of a standardised one."""
    return source.energy if isinstance(source, Standardised) else Energy.of(source)


def formed(source: Source, work: torch.dtype) -> Tensor:
    """Return the source as a tensor of this dtype."""
    return (source.dense() if isinstance(source, Standardised) else source).to(work)
