"""Tracked subspaces: project on the bases of earlier steps, decompose again only when they miss too much energy.

Where spectra are so flat that a core and factors take far more bytes than a few bits an element, the activation is kept
as few-bit numbers of levels (`_tracked_code.py`), and no basis is tracked.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

from torch import Tensor

from tuckprop.codecs._base import Codec, Packed, Tracker, codecs
from tuckprop.codecs._bases import Bases, Measured
from tuckprop.codecs._half import HalfPacked, halves, rounded
from tuckprop.codecs._ledger import open_ledger
from tuckprop.codecs._new_bases import each_basis
from tuckprop.codecs._recent import Key, Recent
from tuckprop.codecs._recomputation import Recomputation
from tuckprop.codecs._source import Source, energy_of, formed, reads, tensor_of
from tuckprop.codecs._tracked_code import CodeTracker, least_loss
from tuckprop.codecs._tucker import Parts, TuckerPacked, in_order
from tuckprop.codecs.dense import DensePacked
from tuckprop.codecs.hosvd import check_epsilon
from tuckprop.errors import ConfigError
from tuckprop.linalg.basis import check_energy, spectrum, working_dtype
from tuckprop.linalg.energy import Energy, sum_of_squares
from tuckprop.linalg.lagged import capturing, waiting_costs
from tuckprop.linalg.layout import inverse, is_dense, memory_order
from tuckprop.linalg.modes import mode_product
from tuckprop.linalg.remembered import Remembered
from tuckprop.linalg.standardised import Standardised
from tuckprop.linalg.tucker import measured_project, modes_worth_factoring, project

# A core this many times smaller than the activation is not worth a decomposition of its batch mode.
_SMALL = 256

# A factor of the batch that leaves more than this share of the core's bytes is not worth its decomposition.
_WORTH = 0.85

# With each miss, bases get room: columns for this share more of what they lose.
_ROOM = 0.5

# Bases that lose less than this share of what they lost when they were new are larger than they need be.
_NEEDLESS = 1 / 3


@dataclass
class SubspaceTracker:
    """The bases of one site, and how to move them.

    Attributes:
        epsilon: Share of the energy that each mode keeps when bases are computed.
        slack: Bases are used while the lost share of energy is at most `1 + slack` times that at their computation.
        horizon: Bases are computed anew after this many uses, so that ranks can fall again.
        bases: By activation size, of the last few sizes.
        refreshes: How often bases were computed, or levels fitted anew.
        uses: How often an activation was packed.
        codes: What keeps activations instead of bases, where that takes fewer bytes.
        recomputation: Tells when an activation is packed again: with the state that it was packed with.
    """

    epsilon: float
    slack: float
    horizon: int
    bases: dict[Key, Bases] = field(default_factory=Recent)
    refreshes: int = 0
    uses: int = 0
    codes: CodeTracker = field(init=False)
    recomputation: Recomputation = field(default_factory=Recomputation)

    def __post_init__(self) -> None:
        self.codes = CodeTracker(self.epsilon, self.slack, self.horizon)

    def compress(self, x: Tensor) -> Packed:
        """Return the form of `x`; NotFactorableError, where `x` is not finite, leaves the bases alone."""
        stays = self._stays(x)
        if self._leaves_whole(x, stays):
            return DensePacked(x)
        if (coded := self._encode(x, stays)) is not None:
            return coded
        form = self._form(x, stays)
        return form if stays else self._smaller(form, x)

    def compress_standardised(self, source: Standardised) -> Packed:
        """Return the form of `source.dense()`, which is formed only where bases or levels are computed anew.

        What is left whole is kept as `source.x`.
        """
        stays = self._stays(source.x)
        if self._leaves_whole(source.x, stays):
            return DensePacked(source.x)
        if (coded := self._encode(source, stays)) is not None:
            return coded
        direct = source.scale.dtype == working_dtype(source.x.dtype, self.epsilon) and is_dense(source.x)
        form = self._form(source if direct else source.dense().to(source.x.dtype), stays)
        return form if stays else self._smaller(form, source)

    def _form(self, x: Source, stays: bool) -> TuckerPacked | HalfPacked:
        like = tensor_of(x)
        order, half = memory_order(like), halves(like.dtype, self.epsilon)
        y: Source
        if isinstance(x, Standardised):
            y = x.permute(order)
        else:
            y, work = x.permute(order).contiguous(), working_dtype(x.dtype, self.epsilon)
            y = y if reads(y, work) else y.to(work)
        parts = self._factor(stays, half, y, order)
        return HalfPacked.of(parts, order, like.dtype) if half else in_order(parts, order, like.dtype)

    def _stays(self, x: Tensor) -> bool:
        """Say whether bases and codes, where there are some, serve `x` as they are: nothing is looked at or moved."""
        return self.recomputation.repeats(tuple(x.shape[1:])) or capturing(x.device)

    def _encode(self, x: Source, stays: bool) -> Packed | None:
        if (coded := self.codes.encode(x, stays)) is None:
            return None
        packed, fitted = coded
        self.uses += not stays
        self.refreshes += fitted
        return packed

    def _smaller(self, form: TuckerPacked | HalfPacked, x: Source) -> Packed:
        """Return `form`, or, where its bases are new, codes in its place if those are smaller."""
        key = tuple(x.shape[1:])
        chosen = self.codes.instead_of(form, x) if self.bases[key].age == 1 else form
        if chosen is not form:
            del self.bases[key]
        return chosen

    def _leaves_whole(self, x: Tensor, stays: bool) -> bool:
        """Say whether nothing is known to save bytes here until the horizon; if so, this is one more use."""
        key = tuple(x.shape[1:])
        known = self.bases.get(key)
        if known is None or known.factors or known.batch_pays or known.due:
            return False
        if known.age >= self.horizon and not stays:
            return False
        if not stays:
            self.uses += 1
            self._use(key, known)
        return True

    def _use(self, key: Key, known: Bases) -> None:
        """Note one more activation with these bases, which are the last ones in use."""
        known.age += 1
        self.bases[key] = known

    def heir(self, codec: Codec) -> Tracker | None:
        """Return the tracker of other settings: it knows which axes to leave whole, and how much room bases need."""
        tracker = codec.tracker()
        if isinstance(tracker, SubspaceTracker):
            for key, known in self.bases.items():
                tracker.bases[key] = replace(known, due=True)
        return tracker

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast every basis, as `Module._apply` does with parameters."""
        for key, known in list(self.bases.items()):
            factors, shares = (
                {axis: function(part) for axis, part in parts.items()} for parts in (known.factors, known.shares)
            )
            self.bases[key] = replace(known, factors=factors, shares=shares)

    def state(self) -> dict[str, Any]:
        """Return the bases and the counts, for a checkpoint."""
        bases = [
            {"size": list(key), **asdict(replace(known, factors={}, shares={}, measured=None))}
            | {"factors": dict(known.factors), "shares": dict(known.shares)}
            | {"measured": None if known.measured is None else known.measured.lost()}
            for key, known in self.bases.items()
        ]
        bases = [entry | {"whole": sorted(entry["whole"])} for entry in bases]
        return {"bases": bases, "codes": self.codes.state(), "refreshes": self.refreshes, "uses": self.uses}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.bases = Recent()
        for entry in state["bases"]:
            rest = {name: value for name, value in entry.items() if name != "size"}
            measured = entry.get("measured")
            self.bases[tuple(entry["size"])] = Bases(
                **rest
                | {"whole": frozenset(entry["whole"])}
                | {"measured": None if measured is None else Measured.known(measured)}
            )
        self.codes.restore(state.get("codes", []))
        self.refreshes, self.uses = state["refreshes"], state["uses"]

    def _factor(self, stays: bool, half: bool, y: Source, order: tuple[int, ...]) -> Parts:
        like = tensor_of(y)
        work = working_dtype(like.dtype, self.epsilon)
        places = inverse(order)
        key = tuple(like.shape[place] for place in places[1:])
        known = self.bases.get(key)
        usable = known is not None and not known.due and (stays or known.age < self.horizon)
        # Where waiting for it costs, what is lost is read at the next activation.
        lagged = energy_of(y) if waiting_costs(like.device) else None
        core, missed, energy, kept = None, False, 0.0, 0.0
        if lagged is not None and known is not None and usable and not stays:
            usable, missed = self._served(known)
        if known is not None and usable:
            factors = {places[axis]: basis.to(like.device) for axis, basis in known.factors.items()}
            if lagged is None:
                core, energy, kept = measured_project(y, factors, work)
            else:
                core = project(y, {mode: basis.to(work) for mode, basis in factors.items()})
        elif lagged is None:
            y = y if isinstance(y, Standardised) else y.to(work)
            energy = energy_of(y).read()
        if lagged is None:
            check_energy(energy, like)
        self.uses += not stays
        if known is not None and core is not None and energy and not stays:
            lost = 1 - kept / energy
            missed = self._misses(lost, known)
            core = core if self._fits(lost, known) else None
        if known is None or core is None:
            if lagged is not None:
                energy = lagged.read()
                check_energy(energy, like)
            known, core = self._refresh(formed(y, work), order, energy, known, missed, half)
        # As they are kept: a copy would be held beside them.
        factors = {places[axis]: basis if half else basis.to(core) for axis, basis in known.factors.items()}
        batch = dict[int, Tensor]()
        if lagged is not None:
            known = self._measure(known, key, lagged, core, stays)
        elif known.batch_pays:
            core, batch = self._factor_batch(core, places[0], like.numel())
            factors |= batch
        if not known.age:
            known = replace(known, batch_pays=bool(batch))
        if not stays or not known.age:
            self._use(key, known)
        rank = core.shape[places[0]] if batch else 0  # 0: no factor to count
        return core, factors, tuple(known.ranks.get(axis, rank) for axis in order)

    def _measure(self, known: Bases, key: Key, energy: Energy, core: Tensor, stays: bool) -> Bases:
        """Send off what the bases lose, for the site's next activation, or for whoever replays a CUDA graph."""
        if (ledger := open_ledger()) is not None:
            ledger.note(self, key, known.factors, energy, sum_of_squares(core))
        if stays or not known.age:
            return known
        return replace(known, measured=Measured.sent(energy, sum_of_squares(core)))

    def limits(self, key: Key) -> tuple[float, float]:
        """Return the least and the most of the energy that bases of activations of this size should lose."""
        return self._least(self.bases[key]), self._most(self.bases[key])

    def replayed(self, key: Key, bases: Mapping[int, Tensor], lost: float) -> None:
        """Note that activations of this size were packed with these bases, the last of which lost this share.

        Bases that have been replaced meanwhile are told nothing of it.
        """
        if (known := self.bases.get(key)) is not None and known.factors is bases:
            self.bases[key] = replace(known, measured=Measured.known(lost))

    def _served(self, known: Bases) -> tuple[bool, bool]:
        """Say whether these bases served the activation before this one, and whether they lost more than they may."""
        if known.measured is None:
            return True, False
        lost = known.measured.lost()
        if isnan(lost):  # Of an activation that was 0, or not finite: nothing that other bases would have kept.
            return True, False
        return self._fits(lost, known), self._misses(lost, known)

    def _fits(self, lost: float, known: Bases) -> bool:
        """Say whether bases still do what they did when they were computed, neither worse nor needlessly better."""
        return not self._misses(lost, known) and max(lost, 0.0) >= self._least(known)

    def _misses(self, lost: float, known: Bases) -> bool:
        """Say whether bases lose more than they may."""
        return lost > self._most(known)

    def _least(self, known: Bases) -> float:
        least = _NEEDLESS * known.expected
        return least if least > least_loss(self.epsilon) else 0.0

    def _most(self, known: Bases) -> float:
        return (1 + self.slack) * max(known.lost, least_loss(self.epsilon))

    def _factor_batch(self, core: Tensor, mode: int, elements: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Factor the batch mode of the core, if that pays: what is lost to it is little beside what is lost anyway."""
        size, rest = core.shape[mode], core.numel() // core.shape[mode]
        if size == 1 or rest == 1 or core.numel() * _SMALL < elements:
            return core, {}
        found = spectrum(core, mode, 1 - (1 - self.epsilon) / 3)
        rank = int(found.rank)
        if rank * (size + rest) > _WORTH * core.numel():
            return core, {}
        basis = found.leading(rank)
        return mode_product(core, basis, mode), {mode: basis}

    def _refresh(
        self, y: Tensor, order: tuple[int, ...], energy: float, known: Bases | None, missed: bool, half: bool
    ) -> tuple[Bases, Tensor]:
        self.refreshes += 1
        misses, whole = 0, frozenset[int]()
        if known is not None:
            misses, whole = known.lessons(missed, self.horizon, waiting_costs(y.device))
        room = 1 - (1 - _ROOM) ** misses
        modes = [mode for mode, axis in enumerate(order) if axis not in {0, *whole} and y.shape[mode] > 1]
        before = {mode: _before(known, order[mode]) for mode in modes}
        bases = each_basis(y, self.epsilon, energy, before, room)
        if half:
            bases = {mode: replace(known, basis=rounded(known.basis)) for mode, known in bases.items()}
        ranks = [bases[m].basis.shape[1] if m in bases else y.shape[m] for m in range(y.dim())]
        factors = {mode: bases[mode].basis for mode in modes_worth_factoring(y.shape, ranks)}
        core = project(y, {mode: factor.to(y) for mode, factor in factors.items()})
        needed = core
        for mode in factors:
            needed = needed.narrow(mode, 0, bases[mode].needed)
        lost, expected = (max(0.0, 1 - float(sum_of_squares(t)) / energy) if energy else 0.0 for t in (needed, core))
        by_axis = {order[mode]: basis for mode, basis in factors.items()}
        shares = {order[mode]: bases[mode].shares for mode in factors}
        by_paper = {axis: 0 if axis in whole else ranks[mode] for mode, axis in enumerate(order) if axis != 0}
        return Bases(by_axis, shares, by_paper, lost, expected, misses=misses, whole=whole), core


def _before(known: Bases | None, axis: int) -> Remembered | None:
    if known is None or axis not in known.factors:
        return None
    return Remembered(known.factors[axis], known.shares[axis], known.factors[axis].shape[1])


@codecs.register("subspace")
@dataclass(frozen=True)
class Subspace(Codec):
    """Tracked subspaces: every mode but the batch is projected on a basis that is kept from step to step.

    Bases are computed as HOSVD computes them, and used for later activations as long as the share of energy that they
    lose is within a factor `1 + slack` of what they lost on the activation they were computed from. The loss is read
    off the core (`|A - A'|^2 = |A|^2 - |S|^2`) before anything is stored, so every stored tensor obeys the bound. Bases
    that take the place of some that lost too much are given room, more columns than `epsilon` asks for.
    The batch mode is not tracked, as a basis of other samples says nothing about these: where it saves bytes, it is
    factored in the small core of each step, at a share `1 - (1 - epsilon) / 3` of the core's energy.

    Of activations in single precision or bfloat16, bases are kept as float16 and cores as bfloat16 where epsilon is at
    most 0.99: half the bytes, and rounding loses a millionth of the energy.

    Such activations, on a CPU and of 16,384 elements and more, are kept as numbers of 1, 2, 4 or 8 bits
    where those take under two thirds of the bytes of core and factors (in norms, which multiply nothing with the
    factors: fewer bytes) and lose no more than `1 - epsilon` of the energy: the number of the nearest of a few levels,
    fitted to the activation's own values. What they lose is measured at every step, and the levels are fitted anew
    where it is more than `1 + slack` times what it was. So it is in networks with flat spectra, such as untrained ones.
    Where epsilon is above 0.9, the first elements are numbers of twice as many bits as the rest, as many as it takes
    when levels are fitted.

    On a GPU the loss is read at the site's next activation, so that the host never waits: an activation that loses too
    much is stored all the same, and the next one is decomposed anew. The batch is left whole there, and bases are kept
    in single precision: a factor of each step's core, and a cast of each basis, are chains of small kernels. While a
    CUDA graph is captured or replayed the bases stay; `tuckprop.capture` reads what they lose.

    Attributes:
        epsilon: Share of the energy that each mode keeps when bases are computed, in (0, 1].
        slack: How much more may be lost before bases are computed anew, at least 0.
        horizon: Compute bases anew after this many uses, at least 1.

    Raises:
        ConfigError: A value is out of range.
    """

    epsilon: float = 0.8
    slack: float = 0.25
    horizon: int = 100
    label = "Subspace"

    @property
    def lossless(self) -> bool:
        """At epsilon 1."""
        return self.epsilon >= 1

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, "Subspace")
        if not self.slack >= 0:
            raise ConfigError(f"Subspace(slack=...): expected a number of at least 0, got {self.slack!r}")
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            raise ConfigError(f"Subspace(horizon=...): expected an integer of at least 1, got {self.horizon!r}")

    def tracker(self) -> SubspaceTracker:
        """Return the state of one site, without bases yet."""
        return SubspaceTracker(self.epsilon, self.slack, self.horizon)

    def compress(self, x: Tensor) -> Packed:
        """Return core and factors of `x` with bases of its own, as for a site's first activation."""
        return self.tracker().compress(x)
