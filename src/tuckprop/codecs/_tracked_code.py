"""Few-bit codes of one site, kept from step to step, in place of bases where spectra are flat.

Levels are fitted to an activation once; what they lose is measured on each, and they are fitted anew where it has
grown. Codes serve float32 and bfloat16 on a CPU: the host waits for no device.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuckprop.codecs._base import Packed
from tuckprop.codecs._coded import CodedPacked
from tuckprop.codecs._half import HalfPacked
from tuckprop.codecs._recent import Key, Recent
from tuckprop.codecs._source import Source, tensor_of
from tuckprop.codecs._tucker import TuckerPacked, counted
from tuckprop.linalg.basis import check_energy
from tuckprop.linalg.bits import CODE_BITS, packed_bytes
from tuckprop.linalg.fitted_code import FittedCode, energy_of_dense, fit
from tuckprop.linalg.lagged import waiting_costs
from tuckprop.linalg.layout import is_dense
from tuckprop.linalg.mixed_code import MixedCode, Stretch
from tuckprop.linalg.piecewise import Levels
from tuckprop.linalg.standardised import Standardised

# Smaller activations are not worth a histogram.
_LEAST_CODED = 1 << 14

# Of the bytes of core and factors, so many are worth giving up for what factors save in the product with a gradient:
# time. A norm has no such product.
_FACTORS_SERVE = 2 / 3

# Beyond this epsilon, codes of two numbers of bits are mixed, to lose no less than may be lost. Up to it, what a code
# loses less is what makes accuracy better than with factors, for few bytes.
_EXACTING = 0.9


def least_loss(epsilon: float) -> float:
    """Return the share of the energy below which a change of what is lost is noise."""
    return 0.05 * (1 - epsilon)


@dataclass(frozen=True)
class CodeInUse:
    """A code for activations of one size.

    Attributes:
        code: The code, or the mix of two.
        lost: Share of the energy that was lost when they were fitted.
        ranks: Ranks of the bases that it stands for, of every axis, for the paper's count.
        age: Activations packed with it since it took the place of bases.
    """

    code: MixedCode
    lost: float
    ranks: tuple[int, ...]
    age: int = 1


class Encoded(NamedTuple):
    """A tensor's codes.

    Attributes:
        code: By which.
        stretches: The codes and levels.
        lost: Share of the energy that is lost.
    """

    code: MixedCode
    stretches: Sequence[Stretch]
    lost: float

    @classmethod
    def by(cls, code: MixedCode, x: Tensor, energy: float) -> "Encoded":
        """Encode a tensor of this energy."""
        return cls(code, *code.encode(x, energy))


@dataclass
class CodeTracker:
    """The codes of one site.

    Attributes:
        epsilon: No more than `1 - epsilon` of the energy may be lost when levels are fitted.
        slack: Levels are used while the lost share is at most `1 + slack` times that.
        horizon: Whether codes or bases serve is decided anew after so many uses.
        in_use: By activation size, of the last few sizes.
    """

    epsilon: float
    slack: float
    horizon: int
    in_use: dict[Key, CodeInUse] = field(default_factory=Recent)

    def encode(self, x: Source, stays: bool = False) -> tuple[Packed, bool] | None:
        """Return the codes of `x`, and whether levels were fitted anew; None where no code is in use, or serves.

        A code that does not serve any more is forgotten, unless it `stays`, whatever it loses.

        Raises:
            NotFactorableError: `x` is not finite; the code in use stays.
        """
        like = tensor_of(x)
        key = tuple(x.shape[1:])
        known = self.in_use.get(key)
        if known is None or not _codable(like):
            return None
        if known.age >= self.horizon and not stays:
            del self.in_use[key]
            return None
        energy = x.energy.read() if isinstance(x, Standardised) else energy_of_dense(x)
        check_energy(energy, like)
        if not energy > 0:
            bits, count = known.code.rest.bits, like.numel()
            zeros = torch.zeros(packed_bytes(count, bits), dtype=torch.uint8)
            return _coded(like, [Stretch(zeros, torch.zeros(1 << bits), bits, count)], known), False
        stretches: Sequence[Stretch]
        stretches, lost = known.code.encode(x, energy)
        fitted = not stays and lost > (1 + self.slack) * max(known.lost, least_loss(self.epsilon))
        if fitted:
            # The values are spread otherwise than they were.
            found = self._anew(known.code, x.dense() if isinstance(x, Standardised) else x, energy)
            if found.lost > 1 - self.epsilon:
                del self.in_use[key]
                return None
            stretches, known = found.stretches, replace(known, code=found.code, lost=found.lost)
        if not stays:
            self.in_use[key] = replace(known, age=known.age + 1)
        return _coded(like, stretches, known), fitted

    def instead_of(self, form: TuckerPacked | HalfPacked, x: Source) -> Packed:
        """Return `form`, or codes of `x` where those take far fewer bytes and lose no more than `1 - epsilon`.

        In the latter case later activations are coded too, until the horizon.
        """
        like = tensor_of(x)
        if like.numel() < _LEAST_CODED or not _codable(like):
            return form
        most = min(form.nbytes * (1.0 if isinstance(x, Standardised) else _FACTORS_SERVE), like.nbytes)
        mixes = self.epsilon > _EXACTING and not isinstance(x, Standardised)
        dense, energy = None, 0.0
        before: Encoded | None = None
        for bits in CODE_BITS:
            # A mix takes more than the fewer bits of the two.
            least = before.code.rest.bits if before is not None and mixes else bits
            if packed_bytes(like.numel(), least) + 4 * (1 << least) >= most:
                break
            if dense is None:
                dense = x.dense() if isinstance(x, Standardised) else x
                energy = energy_of_dense(dense)
            if not energy > 0:
                break
            found = Encoded.by(MixedCode(fit(dense, energy, bits)), dense, energy)
            if found.lost > 1 - self.epsilon:
                before = found
                continue
            if before is not None and mixes:
                found = self._mix(before, found, dense, energy)
            known = CodeInUse(found.code, found.lost, form.ranks)
            coded = _coded(like, found.stretches, known)
            if coded.nbytes >= most:
                break
            self.in_use[tuple(x.shape[1:])] = known
            return coded
        return form

    def _anew(self, code: MixedCode, x: Tensor, energy: float) -> "Encoded":
        """Return `x` by codes of as many bits, fitted to it, and in other shares."""
        found = Encoded.by(MixedCode(fit(x, energy, code.rest.bits)), x, energy)
        if code.first is None or found.lost <= 1 - self.epsilon:
            return found
        more = Encoded.by(MixedCode(fit(x, energy, code.first.bits)), x, energy)
        return self._mix(found, more, x, energy) if more.lost <= 1 - self.epsilon else more

    def _mix(self, fewer: "Encoded", more: "Encoded", x: Tensor, energy: float) -> "Encoded":
        """Return `x` by a mix of a code that loses too much and one that does not, or by the latter."""
        mixed = MixedCode.between(fewer.code.rest, more.code.rest, (fewer.lost, more.lost), 1 - self.epsilon)
        found = more if mixed.first is None else Encoded.by(mixed, x, energy)
        return found if found.lost <= 1 - self.epsilon else more

    def state(self) -> list[dict[str, Any]]:
        """Return the codes, for a checkpoint."""
        return [
            {"size": list(key), "lost": known.lost, "ranks": list(known.ranks), "age": known.age}
            | {"codes": [_data(code) for code in (known.code.rest, known.code.first) if code is not None]}
            | {"share": known.code.share}
            for key, known in self.in_use.items()
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take over what `state` returned."""
        self.in_use = Recent()
        for entry in state:
            parts = [FittedCode.of(part["bits"], Levels(**part["levels"])) for part in entry.get("codes", [entry])]
            code = MixedCode(parts[0], parts[1] if parts[1:] else None, entry.get("share", 0.0))
            self.in_use[tuple(entry["size"])] = CodeInUse(code, entry["lost"], tuple(entry["ranks"]), entry["age"])


def _codable(x: Tensor) -> bool:
    return x.dtype in {torch.float32, torch.bfloat16} and not waiting_costs(x.device) and is_dense(x)


def _data(code: FittedCode) -> dict[str, Any]:
    return {"bits": code.bits, "levels": asdict(code.levels)}


def _coded(x: Tensor, stretches: Sequence[Stretch], known: CodeInUse) -> CodedPacked:
    ranks = tuple(min(rank, size) for rank, size in zip(known.ranks, x.shape, strict=True))
    return CodedPacked(stretches, tuple(x.shape), x.stride(), x.dtype, counted(x.shape, ranks))


__all__ = ["CodeInUse", "CodeTracker", "least_loss"]
