"""Dropout: the plain layer's mask for the same seed, output and gradient in every bit; one bit an element is held."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.layers.pointwise import FLOATS, Step, assert_equal, assert_same_step, held_bytes, layouts, twin
from tuckprop.errors import UnsupportedError
from tuckprop.layers.dropout import alpha_dropout
from tuckprop.linalg import bits

OUT_OF_PLACE: list[nn.Module] = [nn.Dropout(0.5), nn.Dropout(0.1), nn.Dropout(0.9), nn.AlphaDropout(0.3)]
IN_PLACE: list[nn.Module] = [nn.Dropout(0.3, inplace=True)]
each_module = pytest.mark.parametrize("module", OUT_OF_PLACE + IN_PLACE, ids=repr)


@each_module
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "channels last", "strided", "expanded"])
def test_same_seed_same_mask_same_gradient(module: nn.Module, dtype: torch.dtype, layout: str) -> None:
    in_place = getattr(module, "inplace", False)
    step = assert_same_step(module, layouts((3, 5, 7, 2), dtype)[layout], leaf=not in_place)
    if in_place:
        assert step.y is step.given


@each_module
def test_the_generator_is_left_where_the_plain_layer_leaves_it(module: nn.Module) -> None:
    states = []
    for m in (module, twin(module)):
        Step(m, torch.randn(3, 7), leaf=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@each_module
@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 200])
def test_sizes_around_a_byte_and_a_slab(module: nn.Module, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_CPU_SLAB", 64)
    leaf = not getattr(module, "inplace", False)
    assert_same_step(module, torch.randn(count), leaf=leaf)
    assert held_bytes(twin(module), torch.randn(count), leaf=leaf) == -(-count // 8)


@each_module
def test_gradients_that_are_not_finite(module: nn.Module) -> None:
    grad = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]).repeat(10)
    assert_same_step(module, torch.randn(40), leaf=not getattr(module, "inplace", False), grad=grad)


@each_module
def test_eval_mode_is_the_identity(module: nn.Module) -> None:
    x = torch.randn(5, requires_grad=True)
    assert twin(module).eval()(x) is x


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout])
def test_all_or_nothing_is_left_to_pytorch(kind: type[nn.Module], p: float) -> None:
    x = torch.randn(9)
    plain, ours = Step(kind(p), x), Step(twin(kind(p)), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)
    assert held_bytes(twin(kind(p)), x) <= held_bytes(kind(p), x)


def test_alpha_dropout_in_place() -> None:
    outputs = []
    for function in (torch.nn.functional.alpha_dropout, alpha_dropout):
        x = torch.linspace(-2, 2, 30, requires_grad=True)
        torch.manual_seed(1)
        y = function(x * 1, 0.3, True, True)
        y.sum().backward()
        outputs.append((y.detach(), x.grad))
    assert_equal(outputs[1][0], outputs[0][0])
    assert_equal(outputs[1][1], outputs[0][1])


def test_without_gradients_the_plain_op_draws_the_same() -> None:
    x = torch.randn(50)
    torch.manual_seed(0)
    expected = nn.Dropout(0.4)(x)
    torch.manual_seed(0)
    assert torch.equal(twin(nn.Dropout(0.4))(x), expected)


def test_in_place_on_a_leaf_is_refused_as_pytorch_does() -> None:
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        twin(nn.Dropout(0.3, inplace=True))(torch.randn(5, requires_grad=True))


@each_module
def test_copies_and_pickles(module: nn.Module) -> None:
    converted, x = twin(module), torch.randn(40)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert_equal(Step(other, x, leaf=False).grad, Step(module, x, leaf=False).grad)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(twin(nn.Dropout())(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()
