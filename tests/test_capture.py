"""Captured training is training: same outputs, same gradients, and bases that are replaced where they do not serve."""

import copy
import inspect
import itertools
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.capturing import Place, Simulated, capturing
from tests.cases import decaying
from tests.codecs.test_subspace import similar
from tuckprop import ASI, Dense, Subspace
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.graphs import Graphs
from tuckprop.layers import trackers

SHAPE = (16, 8, 12, 12)


@pytest.fixture(
    params=[
        "simulated",
        pytest.param(
            "gpu",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ]
)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Simulated(monkeypatch) if request.param == "simulated" else Place()


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
        yield similar(base, number, turn) if turn else base


def trackers_of(model: nn.Module) -> list[Any]:
    return list(trackers(model))


def captured_in(model: nn.Module) -> list[Graphs | None]:
    return list(model.__dict__["forward"].known.values())


def train(model: nn.Module, given: Iterator[Tensor], rate: float = 0.0) -> list[list[Tensor]]:
    """Return outputs and gradients of every step."""
    found = []
    device = next(model.parameters()).device
    for x in given:
        y = model(x.to(device))
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


@pytest.mark.parametrize("function", [tuckprop.capture, tuckprop.release])
def test_what_is_no_module_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"model=\.\.\.\): expected a torch.nn.Module, got str"):
        function("model")


def test_a_model_that_is_not_captured_is_not_released() -> None:
    with pytest.raises(ConfigError, match="not captured"):
        tuckprop.release(network())


@pytest.mark.parametrize(
    ("codec", "turn", "rate"),
    [(None, 0.01, 0.01), (Dense(), 0.01, 0.01), (Subspace(0.8), 0.0, 0.0), (ASI((4, 4, 4, 4)), 0.01, 0.01)],
    ids=str,
)
def test_captured_steps_are_the_steps(codec: Any, turn: float, rate: float, place: Place) -> None:
    """Of `Subspace` where nothing turns, as bases that do not serve are replaced some steps later than otherwise."""
    if isinstance(codec, ASI) and isinstance(place, Simulated):
        pytest.skip("what is captured is run as well there, which moves bases once more")
    runs = []
    for captures in (False, True):
        model = network()
        if codec is not None:
            tuckprop.convert(model, codec)
        model.to(place.device)
        if captures:
            place.capture(model)
        runs.append(train(model, batches(20, turn=turn), rate=rate))
        if captures:
            assert len(captured_in(model)) == 1
            assert all(captured is not None for captured in captured_in(model))
    for plain, replayed in zip(*runs, strict=True):
        for one, other in zip(plain, replayed, strict=True):
            assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_accumulate(set_to_none: bool, place: Place) -> None:
    model, twin = place.capture(network()), network().to(place.device)
    train(model, batches(8))
    for _ in range(2):
        for m in (model, twin):
            m.zero_grad(set_to_none=set_to_none)
            for x in batches(3, seed=1):
                m(x.to(place.device)).square().mean().backward()
        for one, other in zip(twin.parameters(), model.parameters(), strict=True):
            assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)


def test_gradients_that_were_handed_out_stay(place: Place) -> None:
    model = place.capture(network())
    train(model, batches(8))
    parameters = list(model.parameters())
    first, second = (x.to(place.device) for x in batches(2, seed=1))
    found = torch.autograd.grad(model(first).sum(), parameters)
    before = [gradient.clone() for gradient in found]
    torch.autograd.grad(model(second).sum(), parameters)
    for one, other in zip(before, found, strict=True):
        assert torch.equal(one, other)


def test_two_forwards_before_a_backward(place: Place) -> None:
    model, twin = place.capture(network()), network().to(place.device)
    train(model, batches(8))
    model.zero_grad()
    for m in (model, twin):
        first, second = (m(x.to(place.device)).square().mean() for x in batches(2, seed=1))
        (first + second).backward()
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)


def test_a_second_backward_is_refused(place: Place) -> None:
    model = place.capture(network())
    train(model, batches(8))
    loss = model(next(batches(1)).to(place.device)).square().mean()
    loss.backward(retain_graph=True)
    with pytest.raises(UnsupportedError, match="release"):
        loss.backward()


def test_evaluation_and_other_sizes_run_as_usual(place: Place) -> None:
    model, twin = place.capture(network()), network().to(place.device)
    train(model, batches(8))
    twin.load_state_dict(model.state_dict())
    x = next(batches(1)).to(place.device)
    with torch.no_grad():
        assert_close(model.eval()(x), twin.eval()(x))
    model.train()
    twin.train()
    assert_close(model(x[:5]), twin(x[:5]), rtol=1e-3, atol=1e-5)


def test_kinds_that_come_no_more_make_room_for_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "_MOST_KINDS", 2)
    monkeypatch.setattr(capturing, "_STALE", 12)
    model = place.capture(nn.Sequential(nn.Linear(6, 3)))

    def step(size: int, times: int) -> list[Graphs | None]:
        for _ in range(times):
            model(torch.ones(size, 6, device=place.device)).sum().backward()
        return captured_in(model)

    one, two = [*step(1, 6), *step(2, 6)[1:]]
    assert one is not None
    assert two is not None
    # Of those that still come none is given up.
    for _ in range(6):
        assert step(3, 1) == step(1, 1) == step(2, 1) == [one, two]
    assert step(1, 13) == [one, two]
    assert step(3, 3)[0] is one
    assert len(captured_in(model)) == 2
    assert two not in captured_in(model)
    model(torch.ones(2, 6, device=place.device)).sum().backward()
    assert model[0].weight.grad is not None


def test_inputs_have_their_gradients(place: Place) -> None:
    model, twin = place.capture(network()), network().to(place.device)
    for x in batches(8):
        found = []
        for m in (model, twin):
            given = x.to(place.device).requires_grad_()
            m(given * 1.0).square().mean().backward()
            found.append(given.grad)
        assert_close(*found, rtol=1e-3, atol=1e-6)
    assert captured_in(model) != []
    assert None not in captured_in(model)


def test_bases_that_do_not_serve_are_replaced_and_the_step_captured_again(place: Place) -> None:
    model = place.capture(tuckprop.convert(network(), Subspace(0.8)), patience=2)
    train(model, batches(20))
    (before,) = captured_in(model)
    refreshes = sum(tracker.refreshes for tracker in trackers_of(model))
    train(model, batches(30, seed=5))
    (after,) = captured_in(model)
    assert None not in {before, after}
    assert after is not before
    assert sum(tracker.refreshes for tracker in trackers_of(model)) > refreshes


def test_graphs_keep_the_bases_that_they_read(place: Place) -> None:
    """A smaller last batch may replace the bases of all sizes; those of a graph are still there."""
    model = place.capture(tuckprop.convert(network(), Subspace(0.8)))
    train(model, batches(10))
    (graphs,) = captured_in(model)
    assert graphs is not None
    held = {factor.data_ptr() for entry in graphs._ledger.entries for factor in entry.bases.values()}
    assert held
    assert held <= {tensor.data_ptr() for tensor in graphs._held}
    for tracker in trackers_of(model):
        tracker.bases.clear()
    assert held == {factor.data_ptr() for entry in graphs._ledger.entries for factor in entry.bases.values()}
    train(model, batches(2))
    assert captured_in(model) == [graphs]


def test_what_a_graph_cannot_know_runs_as_usual(place: Place) -> None:
    """Tensors elsewhere, objects and dataclasses are read anew in every call."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, x: Tensor, scale: Any) -> Tensor:
            return self.linear(x) * float(scale["by"] if isinstance(scale, dict) else scale.by)

    class By:
        def __init__(self, by: float) -> None:
            self.by = by

    model = place.capture(Scales())
    x = torch.randn(3, 12, device=place.device)
    ratios = [
        float((model(x, By(by)).sum() / model(x, {"by": 1.0}).sum()).detach()) for by in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    ]
    assert ratios == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], rel=1e-4)
    # Plain values are part of what is captured.
    ratios = [float((model(x, {"by": by}).sum() / model(x, {"by": 1.0}).sum()).detach()) for by in (2.0, 3.0)]
    assert ratios == pytest.approx([2.0, 3.0])


def test_results_that_a_replay_cannot_renew_are_not_captured(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(12, 3), 0

        def forward(self, x: Tensor) -> tuple[Tensor, Any]:
            self.calls += 1
            return self.linear(x), {self.calls}

    model = place.capture(Counts())
    x = torch.randn(3, 12, device=place.device)
    with caplog.at_level(logging.WARNING, logger="tuckprop"):
        seen = [model(x)[1] for _ in range(6)]
    assert captured_in(model) == [None]
    assert "it returns set" in caplog.text
    assert all(len(one - other) == 1 for one, other in itertools.pairwise(seen))


def test_hooks_on_saved_tensors_see_the_parts(place: Place) -> None:
    model = place.capture(network())
    train(model, batches(8))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(next(batches(1)).to(place.device))
    assert len(saved) > 8


def test_a_converted_model_is_captured_anew(place: Place) -> None:
    model = place.capture(network())
    train(model, batches(8))
    assert len(captured_in(model)) == 1
    tuckprop.convert(model, Dense())
    train(model, batches(8))
    assert len(captured_in(model)) == 2


def test_the_model_keeps_the_arguments_of_its_forward(place: Place) -> None:
    class Named(nn.Linear):
        def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(input)

    model = place.capture(Named(3, 2))
    assert list(inspect.signature(model.forward).parameters) == ["input", "labels"]


def test_copies_and_pickles_start_without_graphs(place: Place) -> None:
    model = place.capture(network())
    train(model, batches(8))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert captured_in(other) == []
        assert other.__dict__["forward"].model is other
        train(other, batches(8))
        assert len(captured_in(other)) == 1
    with pytest.raises(ConfigError, match="captured already"):
        tuckprop.capture(model)
    assert "forward" not in tuckprop.release(model).__dict__


@pytest.mark.parametrize("wrapper", ["DataParallel"])
def test_what_wraps_a_model_is_refused(wrapper: str) -> None:
    with pytest.raises(UnsupportedError, match="capture the module inside"):
        tuckprop.capture(getattr(nn, wrapper)(network()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_and_dropout() -> None:
    torch.manual_seed(0)
    model = tuckprop.convert(
        nn.Sequential(*network()[:9], nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4)), Subspace(0.8)
    )
    tuckprop.capture(model.cuda())
    outputs = []
    for x in batches(24):
        with torch.autocast("cuda", torch.bfloat16):
            y = model(x.cuda())
        y.float().square().mean().backward()
        outputs.append(y.detach().float())
        model.zero_grad()
    assert captured_in(model) != []
    assert all(captured is not None for captured in captured_in(model))
    assert not torch.equal(outputs[-1], outputs[-2])  # New numbers are drawn in every replay.
