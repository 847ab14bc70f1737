"""Max pooling: output and gradient are PyTorch's in every bit, ties and all; at most a byte an output is held."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.layers.pointwise import FLOATS, Step, assert_equal, assert_same_step, held_bytes, twin
from tuckprop.errors import UnsupportedError
from tuckprop.layers import pool

PLAIN = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def small_integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input full of ties."""
    return torch.randint(-2, 3, shape).to(dtype)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a layer and an input for it; every window meets the input at least once."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * axes))

    kernel, stride, dilation = each(1, 4), each(1, 4), each(1, 3)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    module = PLAIN[axes](kernel, stride, padding, dilation, ceil_mode=draw(st.booleans()))
    shape = (*draw(st.sampled_from([(2, 3), (1, 1), (3,), (2, 1)])), *each(1, 9))
    dtype = draw(st.sampled_from(FLOATS))
    ones = torch.ones(shape)
    try:
        assume(module(ones).eq(1).all())
    except RuntimeError:
        assume(False)
    x = small_integers(*shape, dtype=dtype) if draw(st.booleans()) else torch.randn(shape).to(dtype)
    if draw(st.booleans()):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = torch.nan
    if len(shape) == axes + 2 and axes > 1 and draw(st.booleans()):
        x = x.contiguous(memory_format=LAST[axes])
    return module, x


@given(poolings())
def test_exact_in_every_geometry(case: tuple[nn.Module, Tensor]) -> None:
    module, x = case
    plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)


@given(poolings(), st.integers(1, 20))
def test_exact_in_several_chunks(case: tuple[nn.Module, Tensor], outputs: int) -> None:
    module, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_CPU_OUTPUTS", outputs)
        plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)


TYPICAL = [
    (nn.MaxPool2d(2), (2, 3, 8, 8), 2),
    (nn.MaxPool2d(3, 2, 1), (2, 3, 9, 9), 4),
    (nn.MaxPool2d(5, 1, 2), (2, 3, 9, 9), 8),
    (nn.MaxPool2d((1, 2)), (2, 3, 9, 8), 1),
    (nn.MaxPool1d(2), (2, 3, 8), 1),
    (nn.MaxPool1d(3, 2, 1), (2, 3, 9), 2),
    (nn.MaxPool3d(2), (2, 3, 4, 8, 8), 4),
    (nn.MaxPool3d(3, 2, 1), (2, 3, 5, 9, 9), 8),
]
each_typical = pytest.mark.parametrize(("module", "shape", "width"), TYPICAL, ids=repr)


@each_typical
def test_bits_held(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    x = torch.randn(shape)
    outputs = module(x).numel()
    assert held_bytes(twin(module), x) == -(-outputs * width // 8)
    assert held_bytes(module, x) == x.nbytes + 8 * outputs


@each_typical
def test_ties(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    plain, ours = Step(module, torch.zeros(shape)), Step(twin(module), torch.zeros(shape))
    assert_equal(ours.grad, plain.grad)


@each_typical
def test_memory_format_is_the_plain_layers(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    x = torch.randn(shape)
    assert Step(twin(module), x).y.stride() == Step(module, x).y.stride()
    if len(shape) > 3:
        x = x.contiguous(memory_format=LAST[len(shape) - 2])
        plain, ours = Step(module, x), Step(twin(module), x)
        assert ours.y.stride() == plain.y.stride()
        assert ours.grad.stride() == plain.grad.stride()


@each_typical
def test_inputs_that_are_views(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    assert_equal(Step(twin(module), x).grad, Step(module, x).grad)
    x = torch.randn(shape)[:1].expand(shape)
    assert_equal(Step(twin(module), x).grad, Step(module, x).grad)


def test_a_gradient_of_any_layout() -> None:
    x = torch.randn(2, 3, 8, 8)
    for grad in (torch.randn(()).expand(2, 3, 4, 4), torch.randn(4, 4, 3, 2).permute(3, 2, 1, 0)):
        for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
            assert_same_step(nn.MaxPool2d(2), given_x, grad=grad)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_windows_of_nothing_but_minus_infinity(axes: int, last: bool) -> None:
    x = torch.full((2, 3, *[6] * axes), -torch.inf)
    if last and axes > 1:
        x = x.contiguous(memory_format=LAST[axes])
    module = PLAIN[axes](3, 2, 1)
    plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    if not (last and axes == 3):  # There PyTorch sends the gradient to element 0 of the plane, outside the window.
        assert_equal(ours.grad, plain.grad)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.MaxPool2d(2, return_indices=True), (2, 3, 8, 8)),
        (nn.MaxPool1d(2, return_indices=True), (2, 3, 8)),
        (nn.MaxPool3d(2, return_indices=True), (2, 3, 4, 4, 4)),
    ],
    ids=repr,
)
def test_with_indices_the_plain_op_runs(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    for one, other in zip(twin(module)(x), module(x), strict=True):
        assert torch.equal(one, other)
        assert type(one.grad_fn) is type(other.grad_fn)


def test_windows_of_more_than_256_taps_are_plain() -> None:
    x = torch.randn(1, 2, 40, 40, requires_grad=True)
    assert "MaxPool2DWithIndices" in repr(twin(nn.MaxPool2d(17))(x).grad_fn)
    assert "Position" in repr(twin(nn.MaxPool2d(16))(x).grad_fn)
    assert_same_step(nn.MaxPool2d(16, 3), x)


@pytest.mark.parametrize("arguments", [(9,), (2, 1, 2), ((2, 2, 2),), (2, 1, 0, 0)], ids=repr)
def test_errors_are_pytorchs(arguments: tuple[Any, ...]) -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    with pytest.raises((RuntimeError, TypeError)) as expected:
        F.max_pool2d(x, *arguments)
    with pytest.raises(type(expected.value)) as found:
        pool.max_pool2d(x, *arguments)
    assert str(found.value) == str(expected.value)


@each_typical
def test_plain_without_gradients(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    x = torch.randn(shape)
    assert twin(module)(x).grad_fn is None
    with torch.no_grad():
        assert twin(module)(x.requires_grad_()).grad_fn is None
    assert held_bytes(twin(module).eval(), x) <= x.nbytes / 4


@each_typical
def test_copies_and_pickles(module: nn.Module, shape: tuple[int, ...], width: int) -> None:
    converted, x = twin(module), torch.randn(shape)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert_equal(Step(other, x).grad, Step(module, x).grad)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(twin(nn.MaxPool2d(2))(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()


def test_finite_differences_agree() -> None:
    x = torch.randperm(2 * 3 * 36).double().view(2, 3, 6, 6).requires_grad_()
    for module in (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1, 1, 2, ceil_mode=True)):
        assert torch.autograd.gradcheck(twin(module), x)
