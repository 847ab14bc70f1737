"""Trackers where reading a number stalls the device: nothing is read in a step, and a miss is seen one step later."""

import copy
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tuckprop
from tests.cases import decaying
from tests.codecs.test_subspace import SHAPE, lost_share, pack, similar
from tuckprop import ASI, Subspace
from tuckprop.codecs import Codec, _bases, _half, _new_bases, asi, subspace
from tuckprop.codecs._half import HalfPacked
from tuckprop.codecs._ledger import Ledger, opened
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.linalg import orthonormal
from tuckprop.linalg.lagged import Lagged


@pytest.fixture(autouse=True)
def _every_device_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as if reading a number off it were dear, as on a GPU."""
    for module in (asi, subspace, orthonormal, _half, _new_bases):
        monkeypatch.setattr(module, "waiting_costs", lambda device: True)


class Reads(TorchDispatchMode):
    """Notes every operation that hands a number to Python, or that would wait for the device to check its result."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_linalg_eigh", "linalg_qr", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().removeprefix("aten::") in self.WAITING:
            lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "tuckprop" in f.filename]
            self.found.append(f"{func.name()} at {lines[-1:]}")
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.GroupNorm(3, 12),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 1),
        nn.LayerNorm(6),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def batches() -> Iterator[Tensor]:
    base = decaying((16, 3, 12, 12), seed=0).float()
    for seed in range(40):
        yield similar(base, seed, 0.01)


@pytest.mark.parametrize("codec", [Subspace(0.8), ASI((4, 4, 4, 4))], ids=str)
def test_a_settled_step_reads_nothing_off_the_device(codec: Codec) -> None:
    model = tuckprop.convert(network(), codec)
    reads = Reads()
    for step, x in enumerate(batches()):
        if step < 30:
            model(x).square().mean().backward()
            continue
        with reads:
            model(x).square().mean().backward()
    assert reads.found == []


def test_the_first_step_does_read() -> None:
    """The check above can fail: bases are computed by decompositions that wait."""
    model = tuckprop.convert(network(), Subspace(0.8))
    with (reads := Reads()):
        model(next(batches())).square().mean().backward()
    assert any("_linalg_eigh" in found for found in reads.found)


@pytest.mark.parametrize("codec", [Subspace(0.9), ASI((3, 4, 3, 3))], ids=str)
def test_a_settled_activation_on_a_gpu_mixes_no_devices_and_reads_nothing(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that have a shape and a device but no numbers, reading one is an error."""
    tracker = codec.tracker()
    assert tracker is not None
    for seed in range(3):
        tracker.compress(similar(decaying(SHAPE, seed=0), seed, 0.0).float())

    class Arrived(Lagged):
        def __init__(self, values: Tensor) -> None:
            assert values.is_cuda
            super().__init__(torch.zeros(2))

    monkeypatch.setattr(_bases, "Lagged", Arrived)
    for module in (asi, subspace):
        monkeypatch.setattr(module, "capturing", lambda device: False)
    with FakeTensorMode():
        tracker.apply(lambda basis: torch.empty(basis.shape, device="cuda"))
        packed = tracker.compress(torch.empty(SHAPE, device="cuda"))
        assert isinstance(packed, (TuckerPacked, HalfPacked))
        assert all(tensor.is_cuda for tensor in packed.tensors())
        assert packed.dense().shape == SHAPE


def test_bases_that_are_computed_anew_take_one_batch_of_eigenproblems() -> None:
    tracker = Subspace(0.9).tracker()
    with Reads() as reads:
        tracker.compress(decaying(SHAPE, seed=0))
    eigenproblems = [found for found in reads.found if "_linalg_eigh" in found]
    assert len(eigenproblems) == 1


def test_a_miss_is_seen_one_activation_later() -> None:
    tracker = Subspace(0.9).tracker()
    here, elsewhere = decaying(SHAPE, seed=0), decaying(SHAPE, seed=1)
    refreshes = []
    for x in (here, here, elsewhere, elsewhere, elsewhere):
        packed = pack(tracker, x)
        refreshes.append(tracker.refreshes)
    assert refreshes == [1, 1, 1, 2, 2]
    assert lost_share(elsewhere, packed) < 0.3


def test_an_activation_like_the_one_before_obeys_the_bound() -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying(SHAPE, seed=0)
    for seed in range(8):
        turned = similar(x, seed, 0.02)
        lost = lost_share(turned, pack(tracker, turned))
        (bases,) = tracker.bases.values()
        assert lost <= (1 + tracker.slack) * max(bases.lost, 0.05 * (1 - tracker.epsilon)) + 1e-5
    assert tracker.refreshes < 8


def test_the_batch_is_left_whole_and_bases_keep_single_precision() -> None:
    tracker = Subspace(0.8).tracker()
    same = decaying((1, *SHAPE[1:]), seed=0).expand(12, -1, -1, -1).float().clone()
    for _ in range(3):
        packed = tracker.compress(same)
        assert isinstance(packed, HalfPacked)
        assert 0 not in packed.form.factors
        assert {factor.dtype for factor in packed.form.factors.values()} == {torch.float32}
        assert packed.form.core.dtype == torch.bfloat16


def test_a_captured_step_leaves_what_its_bases_lose_in_a_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuckprop.convert(network(), Subspace(0.8))
    served = batches()
    for _ in range(4):
        model(next(served)).square().mean().backward()
    trackers = [m._site.tracker for m in model.modules() if hasattr(m, "_site") and m._site.tracker is not None]
    before = [dict(tracker.bases) for tracker in trackers]
    for module in (asi, subspace):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    ledger, x = Ledger(), next(served)
    with opened(ledger), Reads() as reads:
        model(x)
    assert reads.found == []
    assert [dict(tracker.bases) for tracker in trackers] == before
    assert (
        len(ledger.entries) == sum(any(bases.factors for bases in tracker.bases.values()) for tracker in trackers) > 3
    )
    for entry, lost in zip(ledger.entries, ledger.lost(ledger.numbers().tolist()), strict=True):
        least, most = entry.tracker.limits(entry.key)
        assert 0 <= least < most
        assert 0 < lost <= 1.5 * most
        entry.tracker.replayed(entry.key, entry.bases, 2 * most)
        entry.tracker.replayed(entry.key, dict(entry.bases), 0.0)  # Of others, which is not so.
    for module in (asi, subspace):
        monkeypatch.setattr(module, "capturing", lambda device: False)
    refreshes = sum(tracker.refreshes for tracker in trackers)
    model(next(served)).square().mean().backward()
    # Each site whose bases were said to lose too much has new ones.
    assert sum(tracker.refreshes for tracker in trackers) == refreshes + len(ledger.entries)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("codec", [Subspace(0.9), ASI((3, 4, 3, 3))], ids=str)
def test_a_non_finite_activation_does_not_spoil_the_bases(codec: Codec, bad: float) -> None:
    tracker = codec.tracker()
    assert tracker is not None
    x = decaying(SHAPE, seed=0)
    tracker.compress(x)
    spoiled = x.clone()
    spoiled[0, 0, 0, 0] = bad
    tracker.compress(spoiled)
    after = tracker.compress(x).dense()
    assert float((x - after).norm() / x.norm()) < 0.5


def test_an_activation_of_zeros_is_no_miss() -> None:
    tracker = Subspace(0.9).tracker()
    for x in (decaying(SHAPE, seed=0), torch.zeros(SHAPE, dtype=torch.float64), decaying(SHAPE, seed=0)):
        pack(tracker, x)
    assert tracker.refreshes == 1


def test_what_is_on_its_way_survives_copies_and_checkpoints() -> None:
    tracker = Subspace(0.9).tracker()
    for x in (decaying(SHAPE, seed=0), decaying(SHAPE, seed=0), decaying(SHAPE, seed=1)):
        pack(tracker, x)
    restored = Subspace(0.9).tracker()
    restored.restore(copy.deepcopy(tracker.state()))
    for other in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker)), restored):
        x = decaying(SHAPE, seed=1)
        assert torch.equal(pack(other, x).dense(), pack(copy.deepcopy(tracker), x).dense())
        assert other.refreshes == 2


def test_lagged_numbers_are_those_that_were_sent() -> None:
    values = torch.tensor([0.25, float("nan"), 3.0], dtype=torch.float64)
    sent = Lagged(values)
    for _ in range(2):
        first, second, third = sent.read()
        assert (first, third) == (0.25, 3.0)
        assert second != second
    assert copy.deepcopy(sent).read()[2] == 3.0
