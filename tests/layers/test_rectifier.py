"""Activations with two slopes: forward and gradient are PyTorch's in every bit, and one bit an element is held."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.layers.pointwise import FLOATS, Step, assert_equal, assert_same_step, computed, held_bytes, layouts, twin
from tuckprop.errors import UnsupportedError
from tuckprop.linalg import bits

OUT_OF_PLACE: list[nn.Module] = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(), nn.LeakyReLU(0.0),
    nn.LeakyReLU(-0.5), nn.Threshold(0.3, 7.0), nn.Threshold(-1.0, 0.0), nn.Hardsigmoid(), nn.Hardshrink(0.4),
    nn.Softshrink(0.4), nn.Hardshrink(0.0),
]  # fmt: skip
IN_PLACE: list[nn.Module] = [
    nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardtanh(-0.3, 0.7, inplace=True),
    nn.LeakyReLU(0.1, inplace=True), nn.Threshold(0.3, 7.0, inplace=True), nn.Hardsigmoid(inplace=True),
]  # fmt: skip
each_module = pytest.mark.parametrize("module", OUT_OF_PLACE + IN_PLACE, ids=repr)
each_in_place = pytest.mark.parametrize("module", IN_PLACE, ids=repr)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

EDGES = [
    torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6.0, 3.0, -3.0, 1.0, -1.0, 0.3, -0.3, 0.7, 0.4, -0.4,
    1e-40, -1e-40, 6e-8, 65504.0,
]  # fmt: skip


@each_module
@each_float
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "channels last", "strided", "expanded"])
def test_forward_and_gradient_are_exact(module: nn.Module, dtype: torch.dtype, layout: str) -> None:
    in_place = getattr(module, "inplace", False)
    step = assert_same_step(module, layouts((3, 5, 7, 2), dtype)[layout], leaf=not in_place)
    if in_place:
        assert step.y is step.given


@each_module
@each_float
def test_edges_fall_on_the_side_where_pytorch_has_them(module: nn.Module, dtype: torch.dtype) -> None:
    # Filled up to whole vectors of any size: of NaN, PyTorch's loops over what is left of one say otherwise.
    edges = [*EDGES, *[1.0] * (32 - len(EDGES))]
    x = torch.tensor(edges, dtype=torch.float64).to(dtype).repeat(3)
    grad = torch.tensor([1.0, torch.inf, torch.nan], dtype=dtype).repeat_interleave(len(edges))
    assert_same_step(module, x, leaf=not getattr(module, "inplace", False), grad=grad)


@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_any_shape(shape: list[int], data: st.DataObject) -> None:
    module = data.draw(st.sampled_from(OUT_OF_PLACE + IN_PLACE))
    x = torch.randn(shape, dtype=torch.float64)
    assert_same_step(module, x, leaf=not getattr(module, "inplace", False))


@pytest.mark.parametrize("count", [63, 64, 65, 128, 200])
def test_several_slabs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_CPU_SLAB", 64)
    assert_same_step(nn.ReLU(), torch.randn(count))
    assert_same_step(nn.Hardtanh(inplace=True), torch.randn(count), leaf=False)


@each_module
def test_one_bit_an_element_is_held(module: nn.Module) -> None:
    x = torch.randn(4, 3, 10, 11)
    leaf = not getattr(module, "inplace", False)
    assert held_bytes(twin(module), x, leaf=leaf) == -(-x.numel() // 8)
    assert held_bytes(module, x, leaf=leaf) >= x.nbytes


@each_in_place
def test_in_place_on_a_part_of_a_tensor(module: nn.Module) -> None:
    gradients = []
    for m in (module, twin(module)):
        x = torch.linspace(-4, 4, 60, dtype=torch.float64).view(3, 4, 5).requires_grad_()
        whole = x * 1
        m(whole[:, 1:3])
        (whole**2).sum().backward()
        gradients.append((whole.detach(), x.grad))
    assert_equal(gradients[1][0], gradients[0][0])
    assert_equal(gradients[1][1], gradients[0][1])


@each_in_place
def test_in_place_on_a_leaf_is_refused_as_pytorch_does(module: nn.Module) -> None:
    for m in (module, twin(module)):
        leaf = torch.randn(5, requires_grad=True)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            m(leaf)


def test_a_tensor_overwritten_after_it_was_saved_elsewhere_is_noticed() -> None:
    x = torch.randn(5, requires_grad=True)
    middle = x.exp()
    y = twin(nn.ReLU(inplace=True))(middle)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_lets_the_input_go() -> None:
    """Nothing but the bits and the one tensor is alive after the forward."""
    x = torch.randn(1000, requires_grad=True)
    middle = x * 2
    before = middle.untyped_storage().data_ptr()
    y = twin(nn.ReLU6(inplace=True))(middle)
    assert y.untyped_storage().data_ptr() == before
    assert y.grad_fn.saved_tensors[0].nbytes == 125


@each_module
@pytest.mark.parametrize("how", ["no_grad", "no gradient wanted", "inference_mode", "empty"])
def test_the_plain_op_where_there_is_nothing_to_keep(module: nn.Module, how: str) -> None:
    converted, x = twin(module), torch.randn(2, 3)
    if how == "no_grad":
        with torch.no_grad():
            y = converted(x.requires_grad_())
    elif how == "inference_mode":
        with torch.inference_mode():
            y = converted(x)
    elif how == "empty":
        y = converted(torch.randn(0, 3, requires_grad=True) * 1)
        y.sum().backward()
        return
    else:
        y = converted(x)
    assert y.grad_fn is None


def test_integers_go_to_the_plain_op() -> None:
    assert twin(nn.ReLU())(torch.tensor([-1, 2])).tolist() == [0, 2]


@each_module
def test_eval_mode_saves_as_much(module: nn.Module) -> None:
    x, leaf = torch.randn(4, 40), not getattr(module, "inplace", False)
    assert held_bytes(twin(module).eval(), x, leaf=leaf) == 20


def test_used_twice_in_one_graph() -> None:
    gradients = []
    for m in (nn.ReLU(), twin(nn.ReLU())):
        x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (m(x) * m(0.5 - x)).sum().backward()
        gradients.append(x.grad)
    assert_equal(gradients[1], gradients[0])


def test_backward_twice_over_one_graph() -> None:
    x = torch.randn(50, requires_grad=True)
    y = twin(nn.ReLU())(x)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_gradient_that_comes_in_is_left_as_it_was() -> None:
    x, grad = torch.randn(50, requires_grad=True), torch.randn(50)
    before = grad.clone()
    torch.autograd.grad(twin(nn.ReLU())(x), x, grad)
    assert torch.equal(grad, before)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(twin(nn.ReLU())(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()


def test_finite_differences_agree() -> None:
    x = torch.randn(40, dtype=torch.float64).mul_(3).requires_grad_()
    for module in OUT_OF_PLACE:
        assert torch.autograd.gradcheck(twin(module), x)


@each_module
def test_copies_and_pickles(module: nn.Module) -> None:
    converted = twin(module)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(other) is type(converted)
        x, leaf = torch.randn(9), not getattr(module, "inplace", False)
        assert_equal(Step(other, x, leaf=leaf).grad, Step(module, x, leaf=leaf).grad)


def test_function_transforms_run_the_plain_op() -> None:
    def loss(x: Tensor) -> Tensor:
        return twin(nn.ReLU())(x).sum()

    x = torch.randn(4, 3)
    assert torch.equal(torch.func.grad(loss)(x), (x > 0).float())
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(x), (x > 0).float())


def test_a_gradient_in_another_layout_is_brought_into_the_inputs() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    permuted = torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0)
    for grad in (torch.randn(2, 3, 4, 5), torch.randn(()).expand(2, 3, 4, 5), permuted):
        assert_same_step(nn.ReLU(), x, grad=grad)


def test_computed_keeps_strides() -> None:
    """The tests above are about layouts only if the input really has them."""
    for x in layouts((3, 5, 7, 2), torch.float32).values():
        y = computed(x.requires_grad_())
        assert torch.equal(x, y)
        assert not y.is_leaf
