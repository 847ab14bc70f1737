"""Captured training is training: same outputs, same gradients, and bases that are replaced where they do not serve."""

import copy
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tests.codecs.test_subspace import similar
from tuckprop import Dense, Subspace
from tuckprop.capture import _Captured, _Captures
from tuckprop.codecs._ledger import Entry, Ledger, open_ledger, opened
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.linalg.energy import Energy, Rule

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPE = (16, 8, 12, 12)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def batches(count: int, seed: int = 0, turn: float = 0.01) -> Iterator[Tensor]:
    base = decaying(SHAPE, seed=seed).float()
    for number in range(count):
        yield (similar(base, number, turn) if turn else base).cuda()


def captured_in(model: nn.Module) -> list[_Captured | None]:
    captures = model.__dict__["forward"]
    assert isinstance(captures, _Captures)
    return list(captures._known.values())


def train(model: nn.Module, given: Iterator[Tensor], rate: float = 0.0) -> list[list[Tensor]]:
    """Return outputs and gradients of every step."""
    found = []
    for x in given:
        y = model(x)
        y.square().mean().backward()
        found.append([y.detach().clone(), *(p.grad.clone() for p in model.parameters())])
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(rate * p.grad)
        model.zero_grad()
    return found


def test_a_model_on_a_cpu_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="expected a model on one CUDA device, got cpu"):
        tuckprop.capture(network())
    with pytest.raises(UnsupportedError, match="got no parameters"):
        tuckprop.capture(nn.ReLU())


@pytest.mark.parametrize("patience", [-1, 1.5, True])
def test_a_patience_out_of_range_is_refused(patience: Any) -> None:
    with pytest.raises(ConfigError, match="patience"):
        tuckprop.capture(network(), patience=patience)


def test_a_model_that_is_not_captured_is_not_released() -> None:
    with pytest.raises(ConfigError, match="not captured"):
        tuckprop.release(network())


class Site:
    """A tracker that notes what it is told."""

    def limits(self, key: tuple[int, ...]) -> tuple[float, float]:
        return 0.0, 0.5

    def replayed(self, key: tuple[int, ...], lost: float) -> None:
        self.told = (key, lost)


def test_a_ledger_gives_each_activation_the_share_that_it_lost() -> None:
    ledger, sites = Ledger(), [Site(), Site(), Site()]
    assert open_ledger() is None
    with opened(ledger):
        assert open_ledger() is ledger
        ledger.note(sites[0], (1,), Energy(torch.tensor(4.0)), torch.tensor(3.0))
        # 100 elements of a norm whose variance is half of what it was divided by.
        norm = torch.tensor(0.5, dtype=torch.float64)
        ledger.note(sites[1], (2,), Energy(norm, Rule(100, 2.0)), torch.tensor(40.0))
        ledger.note(sites[2], (3,), Energy(torch.tensor(0.0)), torch.tensor(0.0))
    assert open_ledger() is None
    first, second, third = ledger.lost(ledger.numbers().tolist())
    assert first == 0.25
    assert second == pytest.approx(0.2)
    assert third != third
    assert isinstance(ledger.entries[0], Entry)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize(
    ("codec", "turn", "rate"), [(None, 0.01, 0.01), (Dense(), 0.01, 0.01), (Subspace(0.8), 0.0, 0.0)], ids=str
)
def test_captured_steps_are_the_steps(codec: Any, turn: float, rate: float) -> None:
    """Of a tracker where nothing turns, as bases that do not serve are replaced some steps later than otherwise."""
    runs = []
    for captures in (False, True):
        model = network()
        if codec is not None:
            tuckprop.convert(model, codec)
        model.cuda()
        if captures:
            tuckprop.capture(model)
        runs.append(train(model, batches(20, turn=turn), rate=rate))
        if captures:
            assert all(captured is not None for captured in captured_in(model))
            assert len(captured_in(model)) == 1
    for plain, replayed in zip(*runs, strict=True):
        for one, other in zip(plain, replayed, strict=True):
            assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_accumulate(set_to_none: bool) -> None:
    model = tuckprop.capture(network().cuda())
    twin = network().cuda()
    train(model, batches(8))
    for _ in range(2):
        for m in (model, twin):
            m.zero_grad(set_to_none=set_to_none)
            for x in batches(3, seed=1):
                m(x).square().mean().backward()
        for one, other in zip(twin.parameters(), model.parameters(), strict=True):
            assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@on_a_gpu
def test_two_forwards_before_a_backward() -> None:
    model, twin = tuckprop.capture(network().cuda()), network().cuda()
    train(model, batches(8))
    model.zero_grad()
    for m in (model, twin):
        first, second = (m(x).square().mean() for x in batches(2, seed=1))
        (first + second).backward()
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@on_a_gpu
def test_a_second_backward_is_refused() -> None:
    model = tuckprop.capture(network().cuda())
    train(model, batches(8))
    loss = model(next(batches(1))).square().mean()
    loss.backward(retain_graph=True)
    with pytest.raises(UnsupportedError, match="release"):
        loss.backward()


@pytest.mark.gpu
@on_a_gpu
def test_evaluation_and_other_sizes_run_as_usual() -> None:
    model, twin = tuckprop.capture(network().cuda()), network().cuda()
    train(model, batches(8))
    twin.load_state_dict(model.state_dict())
    x = next(batches(1))
    with torch.no_grad():
        assert_close(model.eval()(x), twin.eval()(x))
    model.train()
    twin.train()
    assert_close(model(x[:5]), twin(x[:5]), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@on_a_gpu
def test_bases_that_do_not_serve_are_replaced_and_the_step_captured_again() -> None:
    model = tuckprop.capture(tuckprop.convert(network(), Subspace(0.8)).cuda(), patience=2)
    train(model, batches(20))
    before = captured_in(model)
    refreshes = sum(m._site.tracker.refreshes for m in model if getattr(m, "_site", None) and m._site.tracker)
    train(model, batches(30, seed=5))
    after = captured_in(model)
    assert before[0] is not None
    assert after[0] is not None
    assert after[0] is not before[0]
    now = sum(m._site.tracker.refreshes for m in model if getattr(m, "_site", None) and m._site.tracker)
    assert now > refreshes


@pytest.mark.gpu
@on_a_gpu
def test_what_reads_numbers_off_the_device_runs_as_it_did(caplog: pytest.LogCaptureFixture) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y * 2 if float(y.sum()) > 0 else y

    model = tuckprop.capture(Reads().cuda())
    with caplog.at_level(logging.WARNING, logger="tuckprop"):
        train(model, batches(6))
    assert captured_in(model) == [None]
    assert "cannot be captured" in caplog.text
    x = torch.randn(3, 12, device="cuda")
    assert model(x).shape == (3, 3)


@pytest.mark.gpu
@on_a_gpu
def test_copies_and_pickles_start_without_graphs() -> None:
    model = tuckprop.capture(network().cuda())
    train(model, batches(8))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert captured_in(other) == []
        assert other.__dict__["forward"].model is other
        train(other, batches(8))
        assert len(captured_in(other)) == 1
    with pytest.raises(ConfigError, match="captured already"):
        tuckprop.capture(model)
    assert "forward" not in tuckprop.release(model).__dict__


@pytest.mark.gpu
@on_a_gpu
def test_autocast_and_dropout() -> None:
    torch.manual_seed(0)
    model = tuckprop.convert(
        nn.Sequential(*network()[:9], nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4)), Subspace(0.8)
    )
    tuckprop.capture(model.cuda())
    outputs = []
    for x in batches(24):
        with torch.autocast("cuda", torch.bfloat16):
            y = model(x)
        y.float().square().mean().backward()
        outputs.append(y.detach().float())
        model.zero_grad()
    assert captured_in(model) != []
    assert all(captured is not None for captured in captured_in(model))
    assert not torch.equal(outputs[-1], outputs[-2])  # New numbers are drawn in every replay.
