"""A block's second run computes what its first one did; what cannot is refused."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tuckprop
from tests.recomputing import Scaled, assert_same, network, pair, step
from tuckprop.errors import UnsupportedError


def running_scale(self: Scaled, x: Tensor) -> Tensor:
    self.scale.mul_(0.9).add_(0.1 * x.detach().abs().max())
    return self.hidden(x / self.scale)


class TestWhatChangesBetweenTheTwoRuns:
    def test_a_buffer_that_the_block_writes_before_it_reads_it(self) -> None:
        model, ours, x = pair(running_scale)
        for _ in range(2):
            assert_same(step(ours, x), step(model, x))

    def test_parameters_are_those_of_the_first_run(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        grads = []
        for net in (model, ours):
            doubled = {name: (2 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
            torch.func.functional_call(net, doubled, (x,)).square().sum().backward()
            grads.append([p.grad for p in doubled.values()])
        torch.testing.assert_close(grads[1], grads[0])

    def test_a_parameter_that_was_overwritten_is_an_error_as_in_pytorch(self) -> None:
        for net in pair(Scaled.hidden)[:2]:
            loss = net(torch.ones(1, 4, dtype=torch.float64)).sum()
            with torch.no_grad():
                net[1].a.weight.mul_(2)
                net[1].b.weight.mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_modes_and_what_needs_a_gradient_are_those_of_the_first_run(self) -> None:
        model, x = network(1), torch.randn(4, 3, 6, 6, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        grads = []
        for net in (model, ours):
            torch.manual_seed(0)
            loss = net(x).square().sum()
            net.eval()
            net.requires_grad_(False)
            loss.backward()
            grads.append([p.grad for p in net.parameters()])
            assert not any(module.training for module in net.modules())
        torch.testing.assert_close(grads[1], grads[0])

    def test_revert_before_backward(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        loss = ours(x).square().sum()
        tuckprop.revert(ours)
        loss.backward()
        model(x).square().sum().backward()
        torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in model.parameters()])

    def test_parametrizations_under_a_cache(self) -> None:
        grads = []
        for net in pair(Scaled.hidden)[:2]:
            parametrizations.weight_norm(net[1].a)
            with parametrize.cached():
                net(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
            grads.append([p.grad for p in net.parameters()])
        torch.testing.assert_close(grads[1], grads[0])

    def test_threads_that_go_back_through_one_model(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        losses = [ours(x * i).square().sum() for i in range(12)]
        # Taken before: while a block is computed again, stand-ins are in the place of its parameters.
        parameters = list(ours.parameters())
        with ThreadPoolExecutor(6) as pool:
            grads = list(pool.map(lambda loss: torch.autograd.grad(loss, parameters), losses))
        for i, found in enumerate(grads):
            expected = torch.autograd.grad(model(x * i).square().sum(), list(model.parameters()))
            torch.testing.assert_close(found, expected)
        assert all(isinstance(parameter, nn.Parameter) for parameter in ours.parameters())


@dataclass
class Boxed:
    y: Tensor


class TestBlocksThatCannotBeComputedAgain:
    def test_an_argument_that_is_overwritten(self) -> None:
        _, ours, x = pair(lambda self, x, total: self.hidden(x) + total.add_(1))
        with pytest.raises(UnsupportedError, match="1: expected a block that leaves its arguments as they are"):
            ours[1](x, torch.zeros(4, dtype=torch.float64))

    def test_a_tensor_out_of_sight(self) -> None:
        _, ours, x = pair(lambda self, x: Boxed(self.hidden(x)))
        with pytest.raises(UnsupportedError, match="as result, got a Boxed with a tensor in it"):
            ours[1](x)
        _, ours, x = pair(lambda self, x, box: self.hidden(x) * box.y)
        with pytest.raises(UnsupportedError, match="as argument, got a Boxed with a tensor in it"):
            ours[1](x, Boxed(x))

    def test_a_parameter_from_elsewhere(self) -> None:
        other = nn.Parameter(torch.ones(4, dtype=torch.float64))
        _, ours, x = pair(lambda self, x: self.hidden(x) * other)
        with pytest.raises(UnsupportedError, match=r"uses another tensor of shape \(4,\) that needs a gradient"):
            ours(x).sum().backward()

    def test_a_block_that_overwrites_its_input(self) -> None:
        class Overwriting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.Linear(3, 3))

            def forward(self, x: Tensor) -> Tensor:
                return self.layers(x)

        ours = tuckprop.recompute(nn.Sequential(nn.Linear(3, 3), Overwriting()), tuckprop.HOSVD(0.9))
        with pytest.raises(UnsupportedError, match="1: expected a block that leaves its arguments as they are"):
            ours(torch.randn(4, 3))

    def test_a_block_that_goes_on_from_what_it_wrote(self) -> None:
        class Remembering(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
                self.cache: list[Tensor] = []

            def forward(self, x: Tensor) -> Tensor:
                self.cache.append(self.layers(x))
                return torch.cat(self.cache)

        ours = tuckprop.recompute(nn.Sequential(nn.Linear(3, 3), Remembering()), tuckprop.HOSVD(0.9))
        result = ours(torch.randn(4, 3)).sum()
        with pytest.raises(UnsupportedError, match=r"1: expected a block that computes the same again, .*\(8, 3\)"):
            result.backward()
