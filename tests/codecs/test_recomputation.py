"""State under torch.utils.checkpoint: it moves once a step, and what is packed again is what was packed before."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tuckprop
from tests.cases import decaying
from tests.codecs.test_subspace import SHAPE
from tuckprop import ASI, Subspace
from tuckprop.codecs import Codec, asi, subspace
from tuckprop.codecs._recent import MOST_SIZES, Recent
from tuckprop.codecs._recomputation import Recomputation


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6(), nn.Conv2d(12, 8, 3, padding=1), nn.GELU()
    ).double()


def images(seed: int) -> Tensor:
    """Return images of another spectrum for each seed, so that bases are computed anew again and again."""
    return decaying((8, 3, 24, 24), seed=seed, decay=0.4 + 0.5 * (seed % 3) / 2)


@pytest.mark.parametrize("lagging", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("codec", [Subspace(0.9, horizon=3), Subspace(0.7, slack=0.0), ASI((4, 4, 4, 4))], ids=repr)
def test_training_is_the_same_as_without(
    codec: Codec, use_reentrant: bool, lagging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lagging:
        for module in (asi, subspace):
            monkeypatch.setattr(module, "waiting_costs", lambda device: True)
    plain = tuckprop.convert(network(), codec)
    checkpointed = copy.deepcopy(plain)
    for step in range(12):
        x = images(step)
        # The batch has a gradient of its own, as the reentrant kind needs one.
        plain(x.requires_grad_()).square().mean().backward()
        again = checkpoint(checkpointed, x, use_reentrant=use_reentrant)
        again.square().mean().backward()
    for module, other in zip(plain, checkpointed, strict=True):
        tracker = module._site.tracker
        if tracker is None:
            continue
        assert tracker.state().keys() == other._site.tracker.state().keys()
        if isinstance(codec, Subspace):
            assert (tracker.refreshes, tracker.uses) == (other._site.tracker.refreshes, other._site.tracker.uses)
    for got, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert got.grad is not None
        assert expected.grad is not None
        if isinstance(codec, ASI) or not lagging:
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-6, atol=1e-9)
        assert bool(got.grad.isfinite().all())


def test_a_captured_step_never_computes_bases_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "waiting_costs", lambda device: True)
    tracker = Subspace(0.9, horizon=4).tracker()
    for _ in range(4):
        tracker.compress(decaying(SHAPE, seed=0))
    (known,) = tracker.bases.values()
    assert known.age == tracker.horizon
    monkeypatch.setattr(subspace, "capturing", lambda device: True)
    for seed in range(6):
        tracker.compress(decaying(SHAPE, seed=seed))
    assert tracker.refreshes == 1
    assert next(iter(tracker.bases.values())) is known
    monkeypatch.setattr(subspace, "capturing", lambda device: False)
    tracker.compress(decaying(SHAPE, seed=0))
    assert tracker.refreshes == 2


def test_an_activation_in_backward_alone_is_no_repetition() -> None:
    recomputation, found = Recomputation(), []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            found.append((recomputation.repeats("seen"), recomputation.repeats("unseen")))
            return grad

    assert not recomputation.repeats("seen")
    assert not recomputation.repeats("seen")
    Probe.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert found == [(True, False)]


@pytest.mark.parametrize("codec", [Subspace(0.9), ASI((4, 4, 4, 4))], ids=str)
def test_sizes_that_come_and_go_leave_nothing_behind(codec: Codec) -> None:
    tracker = codec.tracker()
    for width in range(4, 40):
        tracker.compress(decaying((4, 6, 5, width), seed=width))
    assert len(tracker.bases) == MOST_SIZES
    assert {key[-1] for key in tracker.bases} == set(range(40 - MOST_SIZES, 40))
    restored = codec.tracker()
    restored.restore(tracker.state())
    assert isinstance(restored.bases, Recent)
    assert list(restored.bases) == list(tracker.bases)


def test_a_size_in_use_is_not_forgotten() -> None:
    recent = Recent[str, int]()
    for number in range(3 * MOST_SIZES):
        recent["used"] = number
        recent[str(number)] = number
    assert "used" in recent
    assert len(recent) == MOST_SIZES
