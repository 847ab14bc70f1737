"""timm's AvgPool2dSame, MaxPool2dSame and BlurPool2d: output and gradient are the plain layer's; hardly a byte held."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.layers.pointwise import Step, assert_equal, held_bytes, twin
from tuckprop import HOSVD, convert
from tuckprop.layers import load_twins_for
from tuckprop.layers._twin import not_convertible
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()
layers = pytest.importorskip("timm.layers")
pool2d_same = pytest.importorskip("timm.layers.pool2d_same")
adaptive = pytest.importorskip("timm.layers.adaptive_avgmax_pool")
ops = pytest.importorskip("torchvision.ops")

SHAPE = (2, 4, 9, 8)
AVERAGES = [
    pool2d_same.AvgPool2dSame(2, 2),
    pool2d_same.AvgPool2dSame(3, 2, count_include_pad=False),
    layers.BlurPool2d(4),
    layers.BlurPool2d(None, filt_size=5, stride=1),
    layers.BlurPool2d(4, pad_mode="constant"),
]
MAXIMA = [
    pool2d_same.MaxPool2dSame(2, 2),
    pool2d_same.MaxPool2dSame(3, 2),
    pool2d_same.MaxPool2dSame((3, 2), (2, 1), dilation=2),
]
each_module = pytest.mark.parametrize("module", AVERAGES + MAXIMA, ids=repr)


@each_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_exact(module: nn.Module, dtype: torch.dtype, last: bool) -> None:
    module = copy.deepcopy(module).to(dtype)
    x = torch.randint(-2, 3, SHAPE).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    plain, ours = Step(module, x), Step(twin(module), x)
    assert_equal(ours.output, plain.output)
    assert_equal(ours.grad, plain.grad)


@pytest.mark.parametrize("module", AVERAGES, ids=repr)
def test_an_average_holds_nothing(module: nn.Module) -> None:
    x = torch.randn(SHAPE)
    assert held_bytes(module, x) >= x.nbytes
    assert held_bytes(twin(module), x) == 0


@pytest.mark.parametrize("module", MAXIMA, ids=repr)
def test_a_maximum_holds_at_most_a_byte_an_output(module: nn.Module) -> None:
    x = torch.randn(SHAPE)
    assert held_bytes(module, x) >= x.nbytes
    assert held_bytes(twin(module), x) <= module(x).numel()


@each_module
def test_copies_and_eval_mode(module: nn.Module) -> None:
    converted, x = twin(module), torch.randn(SHAPE)
    assert isinstance(converted, type(module))
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert_equal(Step(other, x).grad, Step(module, x).grad)
    with torch.no_grad():
        assert torch.equal(converted.eval()(x), module.eval()(x))


@pytest.mark.parametrize("module", AVERAGES, ids=repr)
def test_finite_differences_agree(module: nn.Module) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(twin(copy.deepcopy(module).double()), x, fast_mode=True)


@pytest.mark.parametrize(
    "module",
    [layers.DropPath(0.4), adaptive.FastAdaptiveAvgPool(), ops.StochasticDepth(0.4, "row"), ops.FrozenBatchNorm2d(4)],
    ids=repr,
)
def test_what_holds_nothing_of_the_inputs_size_has_no_twin_and_no_line_in_a_plan(module: nn.Module) -> None:
    x = torch.randn(SHAPE)
    assert held_bytes(module.train(), x, leaf=False) <= 4 * max(SHAPE[0], SHAPE[1])
    load_twins_for(module)
    assert not_convertible(module) is None
    assert type(convert(nn.Sequential(nn.Conv2d(4, 4, 1), module), HOSVD(0.5))[1]) is type(module)
