"""Activations without a decomposition: the plain tensor is kept, and nothing else is hidden."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import LayerCase
from tests.layers.contract import TIGHT, Run
from tests.layers.kinds import KINDS, each_exact, each_kind
from tuckprop import HOSVD, GradientFilter, convert
from tuckprop.codecs import Codec, DensePacked


@each_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_gradients_as_in_plain_training(
    case: LayerCase, codec: Codec, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    x = case.input()
    x[(0,) * x.dim()] = value
    module = convert(nn.Sequential(case.module()), codec)
    with caplog.at_level(logging.WARNING, "tuckprop"):
        for _ in range(3):
            converted = Run(module[0], x.clone())
    plain = Run(case.module(), x)
    assert not converted.weight.isfinite().all()
    if isinstance(codec, GradientFilter):
        return
    assert_close(converted.weight, 3 * plain.weight, equal_nan=True, **TIGHT)
    assert isinstance(converted.kept, DensePacked)
    assert module[0]._site.fallbacks == 3
    (record,) = caplog.records
    assert record.getMessage().startswith("0: the activation is kept as it is, this time: ")


@each_exact
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_that_cannot_be_squared_fall_back(case: LayerCase, codec: Codec, scale: float) -> None:
    x = (case.input() * scale).float()
    module = convert(case.module(torch.float32), codec)
    got, expected = Run(module, x), Run(case.module(torch.float32), x)
    assert module._site.fallbacks == 1
    assert_close(got.weight, expected.weight, rtol=1e-5, atol=1e-5 * scale)


def test_a_decomposition_that_does_not_converge_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    case, codec = KINDS[0]
    module = convert(case.module(), codec)
    plain, converted = Run(case.module(), case.input()), Run(module, case.input())
    assert_close(converted.weight, plain.weight, **TIGHT)
    assert module._site.fallbacks == 1


def test_other_errors_of_a_codec_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(codec: Codec, x: Tensor) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(HOSVD, "compress", fails)
    case, codec = KINDS[0]
    with pytest.raises(ZeroDivisionError):
        convert(case.module(), codec)(case.input())


def test_an_overflow_in_half_precision_falls_back() -> None:
    """Each element is in range, the norm of the activation is not."""
    layer = nn.Conv2d(10, 2, 1, dtype=torch.float16)
    x = torch.full((10, 10, 20, 20), 1000.0, dtype=torch.float16)
    grad = torch.full((10, 2, 20, 20), 1e-4, dtype=torch.float16)
    (expected,) = torch.autograd.grad(layer(x), layer.weight, grad)
    convert(layer, HOSVD(0.8))
    (got,) = torch.autograd.grad(layer(x), layer.weight, grad)
    assert expected.isfinite().all()
    assert_close(got, expected, rtol=2e-2, atol=0)
