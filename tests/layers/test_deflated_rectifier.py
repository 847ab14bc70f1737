"""ReLU, ReLU6 and Hardtanh with deflated bits: everything is PyTorch's in every bit, and less is held."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tuckprop
from tests.cases import decaying
from tests.layers.pointwise import FLOATS, Step, assert_equal, assert_same_step, held_bytes, layouts, twin
from tests.layers.test_rectifier import EDGES
from tuckprop import HOSVD8, DeflatedHOSVD
from tuckprop.errors import UnsupportedError

DEFLATED = DeflatedHOSVD()
MODULES: list[nn.Module] = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-0.3, 0.7), nn.ReLU(inplace=True), nn.ReLU6(inplace=True),
    nn.Hardtanh(-0.3, 0.7, inplace=True),
]  # fmt: skip
each_module = pytest.mark.parametrize("module", MODULES, ids=repr)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def is_leaf(module: nn.Module) -> bool:
    return not getattr(module, "inplace", False)


@each_module
@each_float
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "channels last", "strided", "expanded"])
def test_forward_and_gradient_are_exact(module: nn.Module, dtype: torch.dtype, layout: str) -> None:
    x = layouts((3, 5, 7, 2), dtype)[layout]
    step = assert_same_step(module, x, leaf=is_leaf(module), codec=DEFLATED)
    if not is_leaf(module):
        assert step.y is step.given


@each_module
@each_float
def test_edges_fall_on_the_side_where_pytorch_has_them(module: nn.Module, dtype: torch.dtype) -> None:
    x = torch.tensor(EDGES, dtype=torch.float64).to(dtype).repeat(3)
    grad = torch.tensor([1.0, torch.inf, torch.nan], dtype=dtype).repeat_interleave(len(EDGES))
    assert_same_step(module, x, leaf=is_leaf(module), grad=grad, codec=DEFLATED)


@given(shape=st.lists(st.integers(1, 5), max_size=5), data=st.data())
def test_any_shape(shape: list[int], data: st.DataObject) -> None:
    module = data.draw(st.sampled_from(MODULES))
    assert_same_step(module, torch.randn(shape, dtype=torch.float64), leaf=is_leaf(module), codec=DEFLATED)


@each_module
def test_never_more_than_a_bit_an_element_is_held(module: nn.Module) -> None:
    noise = torch.randn(4, 3, 10, 11)
    assert held_bytes(twin(module, DEFLATED), noise, leaf=is_leaf(module)) <= -(-noise.numel() // 8)
    # Whole channels that are on or off, as networks have them.
    alike = torch.randn(1, 64, 1, 1).expand(16, 64, 8, 8) * 9 + 0.3 * torch.randn(16, 64, 8, 8)
    assert held_bytes(twin(module, DEFLATED), alike, leaf=is_leaf(module)) < alike.numel() / 8 / 3


def test_bounds_the_wrong_way_round_are_pytorchs_business() -> None:
    converted = twin(nn.Hardtanh(-1.0, 1.0), DEFLATED)
    converted.min_val = 2.0
    with pytest.raises(ValueError, match="min_val cannot be greater"):
        converted(torch.ones(3, requires_grad=True))


@each_module
def test_copies_and_pickles(module: nn.Module) -> None:
    converted = twin(module, DEFLATED)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        x = torch.randn(9)
        assert_equal(Step(other, x, leaf=is_leaf(module)).grad, Step(module, x, leaf=is_leaf(module)).grad)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(twin(nn.ReLU(), DEFLATED)(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()


def test_a_network_trains_as_with_hosvd8_in_less() -> None:
    """Deflating loses nothing: the gradients are those of the same form without it, to the bit."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU6(inplace=True), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)
    )
    x = decaying((8, 3, 20, 20), seed=1, dtype=torch.float32)
    held, gradients = [], []
    for codec in (HOSVD8(0.9), DeflatedHOSVD(0.9)):
        model = tuckprop.convert(copy.deepcopy(plain), codec)
        held.append(tuckprop.measure(model, lambda m: m(x).square().sum()).held_bytes)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert held[1] < held[0]
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert_equal(one, other)
