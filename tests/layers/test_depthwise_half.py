"""The input's gradient of a depthwise convolution with a stride, in half precision."""

import pytest
import torch
from torch import nn

import tuckprop
from tests.cases import decaying
from tests.native.compiler import needs_compiler
from tuckprop import Dense, Subspace
from tuckprop.codecs import Codec
from tuckprop.layers import _depthwise_half


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("codec", [Dense(), Subspace(0.8)], ids=repr)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_it_is_that_of_single_precision_rounded(
    kernel: int, codec: Codec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = nn.Conv2d(12, 12, kernel, stride=2, padding=kernel // 2, groups=12).to(dtype)
    calls = []
    own = _depthwise_half.input_gradient
    monkeypatch.setattr(_depthwise_half, "input_gradient", lambda *a: calls.append(1) or own(*a))
    x = decaying((4, 12, 40, 36), seed=1).to(dtype).requires_grad_()
    single = nn.Conv2d(12, 12, kernel, stride=2, padding=kernel // 2, groups=12)
    single.load_state_dict({name: value.float() for name, value in plain.state_dict().items()})
    upper = x.detach().float().requires_grad_()
    y = single(upper)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(grad.float())
    converted = tuckprop.convert(plain, codec)
    converted(x).backward(grad)
    assert calls == [1]
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert upper.grad is not None
    scale = float(upper.grad.abs().max())
    torch.testing.assert_close(x.grad.float(), upper.grad, rtol=torch.finfo(dtype).eps, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        (nn.Conv2d(12, 12, 3, padding=1, groups=12), torch.bfloat16),
        (nn.Conv2d(12, 12, 3, padding=1, stride=2, groups=6), torch.bfloat16),
        (nn.Conv2d(12, 12, 3, padding=1, stride=2, groups=12), torch.float64),
    ],
    ids=str,
)
def test_others_are_left_alone(layer: nn.Conv2d, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(_depthwise_half, "input_gradient", fails)
    x = decaying((4, 12, 40, 36), seed=1).to(dtype).requires_grad_()
    tuckprop.convert(layer.to(dtype), Dense())(x).sum().backward()
