"""Every twin on inputs and gradients of any layout, size and dtype."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.cases import LayerCase
from tests.layers.contract import TIGHT, Run
from tests.layers.kinds import KINDS, each_kind
from tuckprop import HOSVD, GradientFilter, convert
from tuckprop.codecs import Codec
from tuckprop.layers import PackEvent, observe

# Layouts

GRADIENTS = {
    "expanded": lambda y: torch.ones((), dtype=y.dtype).expand_as(y),
    "transposed": lambda y: torch.randn(y.shape[::-1], dtype=y.dtype).permute(*reversed(range(y.dim()))),
    "strided": lambda y: torch.randn(*y.shape, 2, dtype=y.dtype)[..., 0],
    "zero": lambda y: torch.zeros_like(y),
}


@each_kind
@pytest.mark.parametrize("form", GRADIENTS)
def test_output_gradients_of_any_layout(case: LayerCase, codec: Codec, form: str) -> None:
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    y = module(x)
    grad = GRADIENTS[form](y)
    inputs = [x, *module.parameters()]
    got = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    assert_close(got, torch.autograd.grad(y, inputs, grad.contiguous().clone()), **TIGHT)


INPUTS = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "offset": lambda x: torch.cat([x, x])[x.shape[0] :],
    "expanded": lambda x: x[:1].expand_as(x),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.clone().mT,
}


@each_kind
@pytest.mark.parametrize("form", INPUTS)
def test_inputs_of_any_layout(case: LayerCase, codec: Codec, form: str) -> None:
    x = INPUTS[form](case.input())
    plain, module = case.module(), convert(case.module(), codec)
    assert torch.equal(module(x), plain(x))
    straight = x.clone(memory_format=torch.contiguous_format)
    gradients = [torch.autograd.grad(module(v).square().sum(), [*module.parameters()]) for v in (x, straight)]
    if form == "expanded":
        # The form of one sample is kept whole: see test_the_bytes_of_an_expanded_activation_are_those_it_has.
        plain_gradients = torch.autograd.grad(plain(x).square().sum(), [*plain.parameters()])
        assert_close(gradients[0][1], plain_gradients[1], **TIGHT)
        return
    assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("codec", [HOSVD(0.7), GradientFilter(2)], ids=repr)
def test_a_model_in_channels_last(codec: Codec) -> None:
    case = KINDS[0][0]
    plain = case.module().to(memory_format=torch.channels_last)
    converted = convert(copy.deepcopy(plain), codec)
    x = case.input().contiguous(memory_format=torch.channels_last)
    ran = Run(plain, x), Run(converted, x)
    assert torch.equal(ran[0].y, ran[1].y)
    assert ran[1].y.stride() == ran[0].y.stride()
    assert ran[1].weight.shape == ran[0].weight.shape
    if isinstance(codec, HOSVD):
        assert_close(ran[1].x.grad, ran[0].x.grad, **TIGHT)


# Sizes


@each_kind
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(case: LayerCase, codec: Codec, batch: int) -> None:
    x = case.input()[:batch]
    plain, converted = Run(case.module(), x), Run(convert(case.module(), codec), x)
    assert torch.equal(converted.y, plain.y)
    assert converted.weight.shape == plain.weight.shape
    assert_close(converted.bias, plain.bias, **TIGHT)
    if not isinstance(codec, GradientFilter):
        assert_close(converted.x.grad, plain.x.grad, **TIGHT)
    if batch == 0:
        assert torch.equal(converted.weight, torch.zeros_like(plain.weight))


# Dtypes


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(case: LayerCase, codec: Codec, dtype: torch.dtype) -> None:
    x = case.input().to(dtype)
    plain, converted = Run(case.module(dtype), x), Run(convert(case.module(dtype), codec), x)
    exact = Run(convert(case.module(dtype).double(), codec), x.double())
    assert torch.equal(converted.y, plain.y)
    assert {t.dtype for t in (converted.weight, converted.bias, converted.x.grad)} == {dtype}
    assert {t.dtype for t in converted.kept.tensors()} == {dtype}
    for name in ("weight", "bias"):
        got, expected = getattr(converted, name).double(), getattr(exact, name)
        assert (got - expected).norm() < 32 * torch.finfo(dtype).eps * expected.norm(), name


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(case: LayerCase, codec: Codec, dtype: torch.dtype) -> None:
    x = case.input().float()
    runs = []
    for module in (case.module(torch.float32), convert(case.module(torch.float32), codec)):
        leaf = x.clone().requires_grad_()
        events: list[PackEvent] = []
        with torch.autocast("cpu", dtype), observe(events.append):
            y = module(leaf)
        y.float().square().sum().backward()
        runs.append((y, leaf.grad, module.weight.grad, module.bias.grad))
    plain, converted = runs
    assert torch.equal(converted[0], plain[0])
    assert converted[0].dtype == dtype
    assert [t.dtype for t in converted[1:]] == [torch.float32] * 3
    # What is kept is of the low precision, and was decomposed in a higher one.
    (event,) = events
    assert {t.dtype for t in event.kept.tensors()} == {dtype}
    if not isinstance(codec, GradientFilter):
        expected = codec.compress(x.to(dtype))
        assert all(torch.equal(a, b) for a, b in zip(event.kept.tensors(), expected.tensors(), strict=True))
        assert_close(converted[1], plain[1], rtol=0.05, atol=0.05 * float(plain[1].abs().max()))


def test_autocast_leaves_float64_alone() -> None:
    case, codec = KINDS[0]
    module, x = convert(case.module(), codec), case.input()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.sum().backward()
    assert y.dtype == module.weight.grad.dtype == torch.float64


def test_complex_inputs_run_the_plain_op() -> None:
    layer = convert(nn.Linear(3, 2, dtype=torch.complex64), HOSVD(0.5))
    y = layer(torch.randn(4, 3, dtype=torch.complex64))
    y.abs().sum().backward()
    assert layer.weight.grad.dtype == torch.complex64


def test_a_meta_tensor_runs_the_plain_op() -> None:
    layer = convert(nn.Conv2d(3, 4, 3, device="meta"), HOSVD(0.5))
    assert layer(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(("case", "codec"), KINDS, ids=str)
@pytest.mark.parametrize("wrong", ["channels", "dtype", "dims"])
def test_a_wrong_input_gives_pytorchs_own_error(case: LayerCase, codec: Codec, wrong: str) -> None:
    x = {
        "channels": torch.randn(2, *[3] * (len(case.shape) - 1), dtype=torch.float64),
        "dtype": case.input().float(),
        "dims": torch.randn(1, 1, 1, 1, 1, 2, dtype=torch.float64),
    }[wrong]
    messages = []
    for module in (case.module(), convert(case.module(), codec)):
        with pytest.raises(RuntimeError) as raised:
            module(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
