"""Average pools hold nothing, adaptive max pools their indices alone; output and gradient are PyTorch's."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.layers.pointwise import Step, assert_equal, held_bytes, twin
from tuckprop.errors import UnsupportedError

AVERAGE = [
    (nn.AvgPool1d(2), (2, 3, 9)),
    (nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 9)),
    (nn.AvgPool1d(2), (3, 9)),
    (nn.AvgPool2d(2), (2, 3, 8, 9)),
    (nn.AvgPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), (2, 3, 8, 9)),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=5), (2, 3, 8, 9)),
    (nn.AvgPool2d(2), (3, 8, 9)),
    (nn.AvgPool3d(2), (2, 3, 4, 5, 6)),
    (nn.AvgPool3d(3, 2, 1, ceil_mode=True, divisor_override=5), (2, 3, 4, 5, 6)),
    (nn.AvgPool3d(2), (3, 4, 5, 6)),
    (nn.AdaptiveAvgPool1d(4), (2, 3, 9)),
    (nn.AdaptiveAvgPool2d(4), (2, 3, 8, 9)),
    (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 8, 9)),
    (nn.AdaptiveAvgPool2d(4), (3, 8, 9)),
    (nn.AdaptiveAvgPool3d((2, 3, 1)), (2, 3, 4, 5, 6)),
]
ADAPTIVE_MAX = [
    (nn.AdaptiveMaxPool1d(4), (2, 3, 9)),
    (nn.AdaptiveMaxPool1d(4), (3, 9)),
    (nn.AdaptiveMaxPool2d(4), (2, 3, 8, 9)),
    (nn.AdaptiveMaxPool2d((None, 2)), (2, 3, 8, 9)),
    (nn.AdaptiveMaxPool2d(1), (3, 8, 9)),
    (nn.AdaptiveMaxPool3d((2, 3, 1)), (2, 3, 4, 5, 6)),
]
each_average = pytest.mark.parametrize(("module", "shape"), AVERAGE, ids=repr)
each_adaptive_max = pytest.mark.parametrize(("module", "shape"), ADAPTIVE_MAX, ids=repr)
each_module = pytest.mark.parametrize(("module", "shape"), AVERAGE + ADAPTIVE_MAX, ids=repr)


@each_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "permuted", "strided", "expanded"])
def test_exact(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    if dtype == torch.bfloat16 and isinstance(module, nn.AvgPool3d):
        pytest.skip("PyTorch has no such kernel on a CPU")
    x = torch.randn(shape, dtype=dtype)
    if layout == "channels last":
        if len(shape) < 4:
            return
        x = x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)])
    elif layout == "permuted":
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "strided":
        x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
    elif layout == "expanded":
        x = x[:1].expand(shape)
    plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)
    assert ours.y.stride() == plain.y.stride()


@each_average
def test_an_average_holds_nothing(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert held_bytes(module, x) == x.nbytes
    assert held_bytes(twin(module), x) == 0
    assert held_bytes(twin(module).eval(), x) == 0


@each_adaptive_max
def test_an_adaptive_maximum_holds_four_bytes_an_output(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    outputs = module(x).numel()
    assert held_bytes(module, x) == x.nbytes + 8 * outputs
    assert held_bytes(twin(module), x) == 4 * outputs


@each_adaptive_max
@pytest.mark.parametrize("values", [1, 3], ids="{} values".format)
def test_ties(module: nn.Module, shape: tuple[int, ...], values: int) -> None:
    x = torch.randint(values, shape).float()
    plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.AdaptiveAvgPool1d(1), (2, 3, 9)),
        (nn.AdaptiveAvgPool2d(1), (2, 3, 8, 9)),
        (nn.AdaptiveAvgPool3d(1), (2, 3, 4, 5, 6)),
    ],
    ids=repr,
)
def test_a_mean_is_left_to_pytorch_which_holds_nothing(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert held_bytes(module, torch.randn(shape)) == held_bytes(twin(module), torch.randn(shape)) == 0
    x = torch.randn(shape)
    assert_equal(Step(twin(module), x).grad, Step(module, x).grad)


@pytest.mark.parametrize("module", [nn.AdaptiveMaxPool2d(2, return_indices=True)], ids=repr)
def test_with_indices_the_plain_op_runs(module: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for one, other in zip(twin(module)(x), module(x), strict=True):
        assert torch.equal(one, other)


@each_module
def test_plain_without_gradients(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert twin(module)(torch.randn(shape)).grad_fn is None


@each_module
def test_copies_and_pickles(module: nn.Module, shape: tuple[int, ...]) -> None:
    converted, x = twin(module), torch.randn(shape)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert_equal(Step(other, x).grad, Step(module, x).grad)


@each_average
def test_second_derivatives_are_refused(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    (grad,) = torch.autograd.grad(twin(module)(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()


@each_average
def test_finite_differences_agree(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(twin(module), x, fast_mode=True)
