"""Corner cases of autograd in every twin: graphs used twice, changes in place, checkpoints, hooks on saved tensors."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.cases import LayerCase, decaying
from tests.layers.contract import TIGHT, Run
from tests.layers.kinds import KINDS, each_exact, each_kind
from tuckprop import HOSVD, Dense, convert
from tuckprop.codecs import Codec
from tuckprop.errors import TuckpropError, UnsupportedError


@each_exact
def test_gradients_accumulate_as_the_plain_ones(case: LayerCase, codec: Codec) -> None:
    modules = case.module(), convert(case.module(), type(codec)(epsilon=1.0))
    for module in modules:
        for seed in range(3):
            module(decaying(case.shape, seed=seed)).square().sum().backward()
    for expected, got in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert_close(got.grad, expected.grad, **TIGHT)


def loss_and_inputs(case: LayerCase, codec: Codec) -> tuple[Tensor, list[Tensor]]:
    """Return a converted layer's loss, and the tensors that it has gradients for."""
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    return module(x).square().sum(), [x, *module.parameters()]


@each_kind
def test_backward_twice_with_a_retained_graph(case: LayerCase, codec: Codec) -> None:
    loss, inputs = loss_and_inputs(case, codec)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


@each_kind
@pytest.mark.parametrize("linear_loss", [False, True])
def test_double_backward_says_that_it_cannot(case: LayerCase, codec: Codec, linear_loss: bool) -> None:
    """Also where the loss is linear, so that the first gradient depends on the weight alone."""
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y.sum() if linear_loss else y.square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward") as raised:
        gradient.square().sum().backward()
    assert isinstance(raised.value, TuckpropError)


@each_kind
def test_create_graph_alone_does_no_harm(case: LayerCase, codec: Codec) -> None:
    loss, inputs = loss_and_inputs(case, codec)
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    got = torch.autograd.grad(loss, inputs, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@each_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(case: LayerCase, codec: Codec, use_reentrant: bool) -> None:
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    inputs = [x, *module.parameters()]
    module(x).square().sum().backward()
    expected = [t.grad.clone() for t in inputs]
    module.zero_grad()
    x.grad = None
    checkpoint(module, x, use_reentrant=use_reentrant).square().sum().backward()
    assert all(torch.equal(t.grad, e) for t, e in zip(inputs, expected, strict=True))


@pytest.mark.parametrize("case", [case for case, _ in KINDS[:3]], ids=str)
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1.0), HOSVD(0.9999999)], ids=repr)
def test_a_change_in_place_of_what_is_kept_is_noticed(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), torch.randn(case.shape, dtype=torch.float64)
    y = module(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("case", "codec"), KINDS, ids=str)
def test_a_change_in_place_of_what_was_packed_does_no_harm(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input()
    (expected,) = torch.autograd.grad(module(x).sum(), module.weight)
    y = module(x)
    x.mul_(2)
    (got,) = torch.autograd.grad(y.sum(), module.weight)
    assert torch.equal(got, expected)


@each_kind
def test_a_changed_weight_is_noticed(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    y = module(x)
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_kind
def test_saved_tensors_may_be_put_elsewhere(case: LayerCase, codec: Codec) -> None:
    """As offloading does: what is kept goes through hooks, and comes back as another tensor."""
    expected = Run(convert(case.module(), codec), case.input())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        got = Run(convert(case.module(), codec), case.input())
    assert torch.equal(got.weight, expected.weight)
    assert torch.equal(got.x.grad, expected.x.grad)


@each_kind
def test_it_runs_where_only_deterministic_algorithms_may(case: LayerCase, codec: Codec) -> None:
    first = Run(convert(case.module(), codec), case.input())
    torch.use_deterministic_algorithms(True)
    try:
        second = Run(convert(case.module(), codec), case.input())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.x.grad, second.x.grad)
