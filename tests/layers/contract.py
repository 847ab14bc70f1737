"""Run a layer plain and converted on one input, and compare what must be equal."""

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import LayerCase
from tuckprop import convert
from tuckprop.codecs import Codec, Packed
from tuckprop.layers import PackEvent, observe

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Run:
    """One forward and backward of a layer: its output, its gradients and what it kept."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.x = x.clone().requires_grad_()
        events: list[PackEvent] = []
        with observe(events.append):
            self.y = module(self.x)
        generator = torch.Generator().manual_seed(3)
        self.grad = torch.randn(self.y.shape, generator=generator, dtype=torch.float64).to(self.y)
        self.y.backward(self.grad)
        self.weight, self.bias = module.weight.grad, None if module.bias is None else module.bias.grad
        self.kept: Packed | None = events[0].kept if events else None


def plain_and_converted(case: LayerCase, codec: Codec) -> tuple[Run, Run]:
    """Return a run of the plain layer and one of its twin."""
    x = case.input()
    return Run(case.module(), x), Run(convert(case.module(), codec), x)


def weight_gradient_at(case: LayerCase, x: Tensor, grad: Tensor) -> Tensor:
    """Return PyTorch's weight gradient of the plain layer at another input."""
    module = case.module()
    module(x.reshape(case.shape)).backward(grad)
    return module.weight.grad


def check_contract(case: LayerCase, codec: Codec) -> tuple[Run, Run]:
    """Check the output, the input and bias gradients, and the weight gradient at the activation as it was kept."""
    plain, converted = plain_and_converted(case, codec)
    assert torch.equal(converted.y, plain.y)
    assert_close(converted.x.grad, plain.x.grad, **TIGHT)
    assert (converted.bias is None) == (plain.bias is None)
    if plain.bias is not None:
        assert_close(converted.bias, plain.bias, **TIGHT)
    assert converted.kept is not None
    assert converted.weight.shape == plain.weight.shape
    assert_close(converted.weight, weight_gradient_at(case, converted.kept.dense(), plain.grad), **TIGHT)
    return plain, converted
