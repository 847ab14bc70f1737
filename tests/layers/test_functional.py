"""Functional calls inside the context go to the savers, everything else goes on as before."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.layers.pointwise import assert_equal, held_bytes, twin
from tests.networks import ConvNet
from tuckprop import Dense, convert
from tuckprop.layers.functional import exact_functional_savers, functional_savers
from tuckprop.layers.smooth import level_code

MAPS, LINES, VOLUMES = (2, 3, 8, 8), (2, 3, 8), (2, 3, 4, 4, 4)

# Call, shape of its input, bytes it then holds on 384 (maps), 48 (lines) or 384 (volumes) float32 elements.
EXACT: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "F.relu": (F.relu, MAPS, 48),
    "F.relu in place": (lambda x: F.relu(x * 1, inplace=True), MAPS, 48),
    "torch.relu": (torch.relu, MAPS, 48),
    "torch.relu_": (lambda x: torch.relu_(x * 1), MAPS, 48),
    "Tensor.relu": (lambda x: x.relu(), MAPS, 48),
    "Tensor.relu_": (lambda x: (x * 1).relu_(), MAPS, 48),
    "F.relu6": (F.relu6, MAPS, 48),
    "F.hardtanh": (lambda x: F.hardtanh(x, max_val=0.5), MAPS, 48),
    "F.hardtanh_": (lambda x: F.hardtanh_(x * 1), MAPS, 48),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, negative_slope=0.2), MAPS, 48),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x * 1, 0.2), MAPS, 48),
    "F.threshold": (lambda x: F.threshold(x, 0.1, 2.0), MAPS, 48),
    "F.threshold_": (lambda x: F.threshold_(x * 1, 0.1, 2.0), MAPS, 48),
    "F.hardsigmoid": (F.hardsigmoid, MAPS, 48),
    "F.hardshrink": (F.hardshrink, MAPS, 48),
    "Tensor.hardshrink": (lambda x: x.hardshrink(0.3), MAPS, 48),
    "F.softshrink": (F.softshrink, MAPS, 48),
    "F.dropout": (lambda x: F.dropout(x, 0.3), MAPS, 48),
    "torch.dropout": (lambda x: torch.dropout(x, 0.3, train=True), MAPS, 48),
    "F.alpha_dropout": (lambda x: F.alpha_dropout(x, 0.3, training=True), MAPS, 48),
    "torch.alpha_dropout": (lambda x: torch.alpha_dropout(x, 0.3, True), MAPS, 48),
    "F.max_pool1d": (lambda x: F.max_pool1d(x, 2), LINES, 3),
    "torch.max_pool1d": (lambda x: torch.max_pool1d(x, 2), LINES, 3),
    "F.max_pool2d": (lambda x: F.max_pool2d(x, kernel_size=2), MAPS, 24),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, 2), MAPS, 24),
    "F.max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUMES, 24),
    "torch.max_pool3d": (lambda x: torch.max_pool3d(x, 2), VOLUMES, 24),
    "F.avg_pool1d": (lambda x: F.avg_pool1d(x, 2), LINES, 0),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, 2), MAPS, 0),
    "F.avg_pool3d": (lambda x: F.avg_pool3d(x, 2), VOLUMES, 0),
    "F.adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 2), LINES, 0),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), MAPS, 0),
    "F.adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), VOLUMES, 0),
    "F.adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 2), LINES, 48),
    "F.adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), MAPS, 96),
    "F.adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), VOLUMES, 192),
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "F.gelu": F.gelu,
    "F.gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": F.silu,
    "F.silu in place": lambda x: F.silu(x * 1, inplace=True),
    "F.mish": F.mish,
    "F.hardswish": F.hardswish,
    "torch.sigmoid": torch.sigmoid,
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "torch.tanh": torch.tanh,
    "Tensor.tanh": lambda x: x.tanh(),
    "F.softplus": lambda x: F.softplus(x, beta=2),
    "F.logsigmoid": F.logsigmoid,
    "F.elu": lambda x: F.elu(x, alpha=0.5),
    "F.elu_": lambda x: F.elu_(x * 1),
    "F.selu": F.selu,
    "torch.selu": torch.selu,
    "torch.selu_": lambda x: torch.selu_(x * 1),
    "F.celu": F.celu,
    "torch.celu_": lambda x: torch.celu_(x * 1),
    "F.softsign": F.softsign,
    "F.tanhshrink": F.tanhshrink,
}


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call it."""
        return self.function(x)


def step(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    torch.manual_seed(4)
    y = function(x)
    (grad,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), x)
    return y.detach(), grad


@pytest.mark.parametrize("name", EXACT)
def test_exact_calls(name: str) -> None:
    function, shape, held = EXACT[name]
    expected = step(function, shape)
    for context in (functional_savers(), exact_functional_savers()):
        with context:
            found = step(function, shape)
            assert held_bytes(Calls(function), torch.randn(shape)) == held
        assert_equal(found[0], expected[0])
        assert_equal(found[1], expected[1])


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("width", [2, 4])
def test_smooth_calls(name: str, width: int) -> None:
    expected = step(SMOOTH[name], MAPS)
    with functional_savers(bits=width):
        found = step(SMOOTH[name], MAPS)
        assert held_bytes(Calls(SMOOTH[name]), torch.randn(MAPS)) == 384 * width // 8
    assert_equal(found[0], expected[0])
    assert 0 < (found[1] - expected[1]).norm() < 0.3 * expected[1].norm()
    with exact_functional_savers():
        assert_equal(step(SMOOTH[name], MAPS)[1], expected[1])


def test_calls_the_savers_do_not_know_are_untouched() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    out = torch.empty(3, 4)
    with functional_savers():
        assert torch.equal((x @ x.T).softmax(-1), torch.softmax(x @ x.T, -1))
        assert torch.equal(torch.sigmoid(x.detach(), out=out), torch.sigmoid(x.detach()))
        assert F.max_pool1d(x, 2, return_indices=True)[1].shape == (3, 2)


def test_outside_the_context_nothing_changes() -> None:
    x = torch.randn(3, requires_grad=True)
    context = functional_savers()
    with context:
        assert "OneBit" in repr(F.relu(x).grad_fn)
    assert "ReluBackward" in repr(F.relu(x).grad_fn)
    with context:
        assert "OneBit" in repr(F.relu(x).grad_fn)


def test_without_gradients_the_plain_op_runs() -> None:
    with functional_savers(), torch.no_grad():
        assert F.relu(torch.randn(3, requires_grad=True)).grad_fn is None


@pytest.mark.parametrize("converted", [False, True])
def test_a_network_with_functional_calls(converted: bool) -> None:
    """Its residual blocks call `torch.relu`; forward and all gradients stay as they were."""
    torch.manual_seed(0)
    network, x = ConvNet().eval(), torch.randn(2, 3, 16, 16)
    y = network(x)
    y.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    if converted:
        convert(network, Dense())
    with exact_functional_savers():
        assert torch.equal(network(x), y)
        network(x).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5)


def test_a_twin_inside_the_context_fits_its_code_from_the_plain_function() -> None:
    x, module = torch.linspace(-4, 4, 50, requires_grad=True), twin(nn.GELU())
    level_code.cache_clear()
    with functional_savers():
        inside = torch.autograd.grad(module(x).sum(), x)[0]
    level_code.cache_clear()
    outside = torch.autograd.grad(module(x).sum(), x)[0]
    assert_equal(inside, outside)
