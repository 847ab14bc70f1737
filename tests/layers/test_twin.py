"""What every twin does besides its arithmetic: modes, dtypes, layouts, autograd's corner cases, failures."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.cases import LayerCase, RandomTucker, decaying
from tests.layers.contract import TIGHT, Run, plain_and_converted
from tuckprop import HOSVD, SVD, Dense, GradientFilter, convert, revert
from tuckprop.codecs import Codec, DensePacked
from tuckprop.errors import ConfigError, TuckpropError, UnsupportedError
from tuckprop.layers import PackEvent, find_twin, observe, twin_of
from tuckprop.layers._twin import Twin, not_convertible

# One of each code path: convolution, transposed, Linear, Gradient Filter.
KINDS: list[tuple[LayerCase, Codec]] = [
    (LayerCase(nn.Conv2d, (8, 6, 12, 12), (6, 5, 3), {"padding": 1}), HOSVD(0.9)),
    (LayerCase(nn.ConvTranspose2d, (8, 6, 12, 12), (6, 5, 3), {"stride": 2}), HOSVD(0.9)),
    (LayerCase(nn.Linear, (8, 20, 12), (12, 5)), HOSVD(0.9)),
    (LayerCase(nn.Linear, (40, 12), (12, 5)), SVD(0.9)),
    (LayerCase(nn.Conv2d, (8, 6, 12, 12), (6, 5, 3), {"padding": 1}), GradientFilter(2)),
]
EXACT_INPUT = KINDS[:-1]
each_kind = pytest.mark.parametrize(("case", "codec"), KINDS, ids=str)
each_exact = pytest.mark.parametrize(("case", "codec"), EXACT_INPUT, ids=str)


def saved_bytes(module: nn.Module, x: Tensor, *besides: Tensor) -> int:
    """Return the bytes that a forward saves for backward, without parameters and `besides`, each storage once."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *besides)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    assert y.requires_grad
    return sum(saved.values())


# Modes


@each_kind
@pytest.mark.parametrize("how", ["eval", "no_grad", "nothing needs a gradient", "inference_mode"])
def test_outside_training_the_plain_op_runs_and_nothing_is_packed(case: LayerCase, codec: Codec, how: str) -> None:
    module, x = case.module(), case.input()
    expected = module(x)
    convert(module, codec)
    events: list[PackEvent] = []
    with observe(events.append):
        if how == "eval":
            y = module.eval()(x)
            assert y.requires_grad
        elif how == "no_grad":
            with torch.no_grad():
                y = module(x)
        elif how == "inference_mode":
            with torch.inference_mode():
                y = module(x)
        else:
            module.requires_grad_(False)
            y = module(x)
    assert torch.equal(y, expected)
    assert events == []
    assert "Factored" not in type(y.grad_fn).__name__
    assert "Filtered" not in type(y.grad_fn).__name__


@each_exact
def test_eval_mode_gradients_are_the_plain_ones(case: LayerCase, codec: Codec) -> None:
    plain, x = Run(case.module().eval(), case.input()), case.input()
    converted = Run(convert(case.module(), codec).eval(), x)
    assert torch.equal(converted.weight, plain.weight)
    assert torch.equal(converted.x.grad, plain.x.grad)


# What is kept


@each_kind
def test_it_keeps_the_packed_form_and_nothing_else(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input()
    events: list[PackEvent] = []
    with observe(events.append):
        held = saved_bytes(module, x)
    (event,) = events
    assert held == event.kept.nbytes < x.numel() * 8
    assert event.site.name == ""
    assert event.shape == x.shape
    assert event.element_size == 8


@each_kind
def test_a_frozen_weight_keeps_nothing(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input()
    module.weight.requires_grad_(False)
    assert saved_bytes(module, x) == 0  # The bias needs a gradient.
    x.requires_grad_()
    assert saved_bytes(module, x) == 0
    module.bias.requires_grad_(False)
    assert saved_bytes(module, x) == 0


@each_exact
def test_where_the_form_is_not_smaller_the_activation_itself_is_kept(case: LayerCase, codec: Codec) -> None:
    module = convert(case.module(), type(codec)(epsilon=0.9999999))
    x = torch.randn(case.shape, dtype=torch.float64)
    events: list[PackEvent] = []
    with observe(events.append):
        assert saved_bytes(module, x, x) == 0  # It is x's own storage.
    assert isinstance(events[0].kept, DensePacked)
    assert events[0].paper_count == type(codec)(epsilon=0.9999999).compress(x).paper_count()


def test_the_bytes_of_an_expanded_activation_are_those_it_has() -> None:
    """A form smaller than the elements, yet larger than the storage, saves nothing."""
    x = torch.randn(1, 6, 12, 12, dtype=torch.float64).expand(64, 6, 12, 12)
    layer = convert(nn.Conv2d(6, 6, 3, dtype=torch.float64), HOSVD(0.99))
    form = HOSVD(0.99).compress(x)
    assert 6 * 144 * 8 <= form.nbytes < 64 * 6 * 144 * 8
    assert saved_bytes(layer, x, x) == 0


# Autograd


@each_exact
def test_gradients_accumulate_as_the_plain_ones(case: LayerCase, codec: Codec) -> None:
    modules = case.module(), convert(case.module(), type(codec)(epsilon=1.0))
    for module in modules:
        for seed in range(3):
            module(decaying(case.shape, seed=seed)).square().sum().backward()
    for expected, got in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert_close(got.grad, expected.grad, **TIGHT)


@each_kind
def test_backward_twice_with_a_retained_graph(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    loss = module(x).square().sum()
    inputs = [x, *module.parameters()]
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
    module, x = convert(case.module(), codec), case.input().requires_grad_()
    loss = module(x).square().sum()
    inputs = [x, *module.parameters()]
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


# Failures


@each_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_gradients_as_in_plain_training(
    case: LayerCase, codec: Codec, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    x = case.input()
    x[(0,) * x.dim()] = value
    module = convert(nn.Sequential(case.module()), codec)
    with caplog.at_level(logging.WARNING, "tuckprop"):
        for _ in range(3):
            converted = Run(module[0], x.clone())
    plain = Run(case.module(), x)
    assert not converted.weight.isfinite().all()
    if isinstance(codec, GradientFilter):
        return
    assert_close(converted.weight, 3 * plain.weight, equal_nan=True, **TIGHT)
    assert isinstance(converted.kept, DensePacked)
    assert module[0]._site.fallbacks == 3
    (record,) = caplog.records
    assert record.getMessage().startswith("0: the activation is kept as it is, this time: ")


@each_exact
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_that_cannot_be_squared_fall_back(case: LayerCase, codec: Codec, scale: float) -> None:
    x = (case.input() * scale).float()
    module = convert(case.module(torch.float32), codec)
    got, expected = Run(module, x), Run(case.module(torch.float32), x)
    assert module._site.fallbacks == 1
    assert_close(got.weight, expected.weight, rtol=1e-5, atol=1e-5 * scale)


def test_a_decomposition_that_does_not_converge_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    case, codec = KINDS[0]
    module = convert(case.module(), codec)
    plain, converted = Run(case.module(), case.input()), Run(module, case.input())
    assert_close(converted.weight, plain.weight, **TIGHT)
    assert module._site.fallbacks == 1


def test_other_errors_of_a_codec_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(codec: Codec, x: Tensor) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(HOSVD, "compress", fails)
    case, codec = KINDS[0]
    with pytest.raises(ZeroDivisionError):
        convert(case.module(), codec)(case.input())


def test_an_overflow_in_half_precision_falls_back() -> None:
    """Each element is in range, the norm of the activation is not."""
    layer = nn.Conv2d(10, 2, 1, dtype=torch.float16)
    x = torch.full((10, 10, 20, 20), 1000.0, dtype=torch.float16)
    grad = torch.full((10, 2, 20, 20), 1e-4, dtype=torch.float16)
    (expected,) = torch.autograd.grad(layer(x), layer.weight, grad)
    convert(layer, HOSVD(0.8))
    (got,) = torch.autograd.grad(layer(x), layer.weight, grad)
    assert expected.isfinite().all()
    assert_close(got, expected, rtol=2e-2, atol=0)


# Registration


def test_a_class_has_one_twin_a_codec() -> None:
    with pytest.raises(ConfigError, match="Conv2d has a twin already: FactoredConv2d"):
        twin_of(nn.Conv2d)(type("Another", (Twin, nn.Conv2d), {}))


def test_a_codecs_own_twin_goes_before_the_general_one() -> None:
    layer = nn.Conv2d(2, 2, 3)
    assert find_twin(layer, GradientFilter(2)) is not find_twin(layer, HOSVD(0.8))
    assert find_twin(layer, HOSVD(0.8)) is find_twin(layer, Dense())


def test_only_the_exact_class_has_a_twin() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    layer = Own(2, 2, 3)
    assert find_twin(layer, HOSVD(0.8)) is None
    assert not_convertible(layer) == (
        f"{Own.__qualname__} is a subclass of Conv2d and may compute otherwise; only exact classes are converted"
    )


@each_kind
def test_hooks_see_what_they_saw(case: LayerCase, codec: Codec) -> None:
    seen: list[list[str]] = []
    for convert_it in (False, True):
        module, calls = case.module(), []
        module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append("before"))
        module.register_forward_hook(lambda m, args, out, calls=calls: calls.append("after"))
        module.register_full_backward_pre_hook(lambda m, grads, calls=calls: calls.append("backward"))
        module.register_full_backward_hook(
            lambda m, into, out, calls=calls: calls.append(f"gradients {[g is not None for g in into]}")
        )
        module.weight.register_hook(lambda grad, calls=calls: calls.append("weight"))
        if convert_it:
            convert(module, codec)
        module(case.input().requires_grad_()).sum().backward()
        seen.append(sorted(calls))
        if convert_it:
            revert(module)
            module(case.input().requires_grad_()).sum().backward()
            assert sorted(calls) == sorted(seen[0] * 2)
    assert seen[0] == seen[1]


def test_lossy_training_still_differs_from_plain(forced: None) -> None:
    """A guard for the tests above: had conversion done nothing, most of them would pass."""
    for case, codec in [*KINDS, (KINDS[0][0], RandomTucker(0.5))]:
        plain, converted = plain_and_converted(case, codec)
        assert not torch.allclose(plain.weight, converted.weight, rtol=1e-2)
