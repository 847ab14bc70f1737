"""A backward overwrites the gradient that it gets only where nobody else can see it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layers.pointwise import twin
from tuckprop.codecs import HOSVD
from tuckprop.convert import convert

SHAPE = (4, 6, 12, 12)

LAYERS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.Hardsigmoid(inplace=True),
    lambda: nn.LeakyReLU(0.1),
    nn.GELU,
    lambda: nn.Dropout(0.4),
    lambda: nn.BatchNorm2d(6),
    lambda: nn.BatchNorm2d(6).eval(),
    lambda: nn.GroupNorm(2, 6),
    lambda: nn.InstanceNorm2d(6, affine=True),
]


class Seen(torch.autograd.Function):
    """Hands its gradient on, and keeps it and what it was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, store: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        ctx.store = store
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0] * 1.0
        if ctx.store is not None:
            ctx.store.append((grad, grad.clone()))
        return grad, None


def converted(make: Callable[[], nn.Module]) -> nn.Module:
    module = make()
    training = module.training
    if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)):
        module = convert(nn.Sequential(module, nn.Conv2d(6, 6, 1)), HOSVD(0.9))[0]  # type: ignore[index]
        return module.train(training)
    return twin(module).train(training)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(3)
    low_rank = torch.randn(4, 6, 1, 1) * torch.randn(1, 1, 12, 1) * torch.randn(1, 1, 1, 12)
    return (low_rank + 0.01 * torch.randn(SHAPE)).requires_grad_()


@pytest.mark.parametrize("make", LAYERS)
class TestHolders:
    def test_a_lone_gradient_is_overwritten(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        places: list[int] = []
        y = x * 1.0
        y.register_hook(lambda grad: places.append(grad.data_ptr()))
        z = converted(make)(y)
        z.register_hook(lambda grad: places.append(grad.data_ptr()))
        Seen.apply(z, None).backward(torch.randn(SHAPE))
        assert places[0] == places[1]

    def test_a_gradient_that_somebody_keeps_is_not(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        store: list[tuple[Tensor, Tensor]] = []
        Seen.apply(converted(make)(x * 1.0), store).backward(torch.randn(SHAPE))
        assert torch.equal(*store[0])

    def test_the_caller_keeps_its_own(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        grad = torch.randn(SHAPE)
        before = grad.clone()
        z = converted(make)(x * 1.0)
        z.backward(grad)
        assert torch.equal(grad, before)
        torch.autograd.grad(converted(make)(x * 1.0), x, grad)
        assert torch.equal(grad, before)

    def test_a_residual_connection_gets_it_whole(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        weight, seen = torch.randn(SHAPE), []
        for early in (True, False):
            y = x.detach().clone().requires_grad_()
            other = torch.zeros(SHAPE, requires_grad=True)
            shortcut = other * 1.0 if early else other
            total = converted(make)(y * 1.0) + shortcut
            if not early:
                total = total + 0.0
            (total * weight).sum().backward()
            seen.append(other.grad)
        assert all(grad is not None and torch.equal(grad, weight) for grad in seen)

    def test_hooks_see_it_whole(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        weight, held = torch.randn(SHAPE), []
        y = converted(make)(x * 1.0)
        y.retain_grad()
        y.register_hook(held.append)
        view = y.view(-1)
        (captured,) = torch.autograd.grad((view * weight.view(-1)).sum(), y, retain_graph=True)
        (view * weight.view(-1)).sum().backward()
        assert torch.equal(y.grad, 2 * weight)  # Of both.
        assert torch.equal(captured, weight)
        assert all(torch.equal(grad, weight) for grad in held)

    def test_a_module_hook_sees_it_whole(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        weight, held = torch.randn(SHAPE), []
        module = converted(make)
        if getattr(module, "inplace", False):
            pytest.skip("PyTorch allows no backward hook on a module that works in place")
        module.register_full_backward_hook(lambda _module, _inputs, outputs: held.append(outputs[0]))
        (module(x * 1.0) * weight).sum().backward()
        assert torch.equal(held[0], weight)

    def test_a_second_backward_gives_the_same(self, make: Callable[[], nn.Module], x: Tensor) -> None:
        loss = (converted(make)(x * 1.0) * torch.randn(SHAPE)).sum()
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        (second,) = torch.autograd.grad(loss, x)
        assert torch.equal(first, second)
