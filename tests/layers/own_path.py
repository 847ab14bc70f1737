"""What every way of our own to a convolution has to pass: the result is the plain one, and others are left alone."""

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tuckprop import Dense
from tuckprop.codecs import Codec


def assert_same_training(
    path: ModuleType, layer: nn.Module, shape: tuple[int, ...], codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Compare a converted layer with the plain one; return which functions of `path` served."""
    served: list[str] = []
    for method in ("output", "input_gradient", "weight_gradient"):
        function = getattr(path, method)

        def counted(*arguments: Any, function: Any = function, method: str = method) -> Tensor:
            served.append(method)
            return function(*arguments)

        monkeypatch.setattr(path, method, counted)
    # In place after it: a view would be refused.
    plain = nn.Sequential(copy.deepcopy(layer), nn.Hardtanh(-1, 1, inplace=True))
    converted = tuckprop.convert(copy.deepcopy(plain), codec)
    xs = [decaying(shape, seed=1, dtype=torch.float32).requires_grad_() for _ in range(2)]
    ys = [model(x) for model, x in zip((plain, converted), xs, strict=True)]
    grad = decaying(tuple(ys[0].shape), seed=2, dtype=torch.float32)
    for y in ys:
        y.backward(grad)
    assert_close(ys[1], ys[0], rtol=1e-5, atol=1e-5)
    assert ys[1].stride() == ys[0].stride()
    assert_close(xs[1].grad, xs[0].grad, rtol=1e-5, atol=1e-5)
    for one, other in zip(converted.parameters(), plain.parameters(), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)
    return served


def assert_left_alone(path: ModuleType, layer: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that `path` does not serve the layer, whose output is the plain one's bit for bit."""
    expected = layer(x)
    monkeypatch.setattr(path, "output", None)
    y = tuckprop.convert(copy.deepcopy(layer), Dense())(x)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
