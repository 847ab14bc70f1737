"""ASI: one step of warm-started subspace iteration a training step, at fixed ranks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tuckprop.codecs._base import Codec, Packed, Tracker, codecs
from tuckprop.codecs._recent import Recent
from tuckprop.codecs._recomputation import Recomputation
from tuckprop.codecs._tucker import in_memory_order
from tuckprop.errors import ConfigError
from tuckprop.linalg.basis import check_energy, working_dtype
from tuckprop.linalg.energy import sum_of_squares
from tuckprop.linalg.iteration import iterate
from tuckprop.linalg.lagged import capturing, waiting_costs
from tuckprop.linalg.standardised import Standardised
from tuckprop.linalg.tucker import project

# The seed of the published code, here of a generator of our own.
_SEED = 233


@dataclass
class IterationTracker(Tracker):
    """The bases of one site.

    Attributes:
        ranks: One a mode; the last serves all further modes.
        bases: By shape of the activation, of the last few shapes, then by axis: orthonormal, [n, k].
        recomputation: Tells when an activation is packed again: with the bases that it was packed with.
    """

    ranks: tuple[int, ...]
    bases: dict[tuple[int, ...], dict[int, Tensor]] = field(default_factory=Recent)
    recomputation: Recomputation = field(default_factory=Recomputation)

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x`; NotFactorableError, where `x` is not finite, leaves the bases alone."""
        return in_memory_order(x, working_dtype(x.dtype, 0.5), self._factor)

    def compress_standardised(self, source: Standardised) -> Packed:
        """Return core and factors of `source.dense()`: every basis takes its step from that."""
        return self.compress(source.dense())

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast every basis, as `Module._apply` does with parameters."""
        for shape, known in list(self.bases.items()):
            self.bases[shape] = {axis: function(basis) for axis, basis in known.items()}

    def state(self) -> dict[str, Any]:
        """Return the bases, for a checkpoint."""
        return {"bases": [{"shape": list(shape), "factors": dict(known)} for shape, known in self.bases.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.bases = Recent()
        for entry in state["bases"]:
            self.bases[tuple(entry["shape"])] = dict(entry["factors"])

    def _factor(self, y: Tensor, order: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor], tuple[int, ...]]:
        energy = sum_of_squares(y)
        if not waiting_costs(y.device):
            check_energy(float(energy), y)
        shape = tuple(y.shape[order.index(axis)] for axis in range(y.dim()))
        known, repeats = self.bases.get(shape, {}), self.recomputation.repeats(shape)
        if not (known and repeats):
            moved = self._moved(y, order, known, energy)
            if known and capturing(y.device):
                # A graph starts from the same memory each time it is replayed.
                for axis, basis in known.items():
                    basis.copy_(moved[axis])
            else:
                self.bases[shape] = moved
            known = moved
        factors = {order.index(axis): basis.to(y) for axis, basis in known.items()}
        return project(y, factors), factors, tuple(known[axis].shape[1] for axis in order)

    def _moved(self, y: Tensor, order: tuple[int, ...], known: dict[int, Tensor], energy: Tensor) -> dict[int, Tensor]:
        """Return the bases by axis after one step from the known ones, or from random ones."""
        moved: dict[int, Tensor] = {}
        for mode, axis in enumerate(order):
            size = y.shape[mode]
            rank = min(self.ranks[min(axis, len(self.ranks) - 1)], size, y.numel() // size)
            basis = known.get(axis)
            start = _random(size, rank, y) if basis is None else basis.to(y)
            # An activation that is not finite, where that was not checked, leaves the bases alone.
            moved[axis] = torch.where(energy.isfinite(), iterate(y, start, mode), start)
        return moved


def _random(size: int, rank: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(size, rank, generator=generator, dtype=torch.float32).to(like)


@codecs.register("asi")
@dataclass(frozen=True)
class ASI(Codec):
    """Tucker form at fixed ranks; every mode's basis takes one step of subspace iteration from that of the last step.

    Fixed ranks make the memory constant. `tuckprop.plan(..., codec=ASI(), budget=...)` chooses each layer's ranks by
    the published measure, the Frobenius error that HOSVD of those ranks makes in the weight gradient of a calibration
    batch, at the published shares of variance; by a Lagrange multiplier, where the published code tries every choice.

    Attributes:
        ranks: One a mode (batch, channels, height, width), at least 1; the last serves all further modes, and each is
            cut to what the activation's size allows.

    Raises:
        ConfigError: `ranks` is empty or has a value below 1.

    Source: Nguyen et al., "Beyond Low-rank Decomposition: A Shortcut Approach for Efficient On-Device Learning", ICML
    2025. A batch size that changes starts a basis of its own.
    """

    ranks: tuple[int, ...] = (4, 16, 4, 4)
    label = "ASI"

    def __post_init__(self) -> None:
        ranks = tuple(self.ranks) if isinstance(self.ranks, (tuple, list)) else ()
        if not ranks or any(isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 for rank in ranks):
            raise ConfigError(f"ASI(ranks=...): expected integers of at least 1, one a mode, got {self.ranks!r}")
        object.__setattr__(self, "ranks", ranks)

    def tracker(self) -> IterationTracker:
        """Return the state of one site, without bases yet."""
        return IterationTracker(self.ranks)

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x` after one step from random bases, as for a site's first activation."""
        return self.tracker().compress(x)
