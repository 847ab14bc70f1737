"""The Gradient Filter twin against the slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import decaying
from tests.layers import gradient_filter_reference as reference
from tuckprop import Dense, GradientFilter, convert, plan
from tuckprop.layers.gradient_filter import FilteredConv2d, patch_averages

TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the output gradient that was fed, and the input's gradient."""
    x = x.clone().requires_grad_()
    y = layer(x)
    grad = decaying(tuple(y.shape), seed=9, decay=0.9)
    y.backward(grad)
    return y, grad, x.grad


def check(layer: nn.Conv2d, x: Tensor, patch: int) -> None:
    """Compare all that the twin computes with the reference."""
    expected = layer(x)
    convert(layer, GradientFilter(patch))
    assert type(layer) is FilteredConv2d
    y, grad, grad_x = gradients(layer, x)
    depthwise = layer.groups > 1
    weight = layer.weight.detach()
    averages = reference.filtered_output_gradient(grad, patch)
    sums = reference.filtered_input(x, y.shape, patch, layer.stride)
    assert torch.equal(y, expected)
    assert_close(layer.weight.grad, reference.weight_gradient(sums, averages, weight, depthwise), **TIGHT)
    if layer.dilation[0] > 1 and layer.dilation[0] >= patch:
        due = reference.dilated_input_gradient(averages, weight, x.shape, patch, layer.dilation[0], depthwise)
    else:
        due = reference.input_gradient(averages, weight, x.shape, patch, layer.stride, depthwise)
    assert_close(grad_x, due, **TIGHT)
    if layer.bias is not None:
        assert_close(layer.bias.grad, grad.sum((0, 2, 3)), **TIGHT)


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 1, "bias": False, "stride": (1, 2)},
        {"padding": 1, "groups": 2},
        {"padding": 1, "groups": 2, "stride": 2},
        {"padding": 0, "stride": 3},
    ],
    ids=str,
)
def test_like_the_equations(patch: int, size: tuple[int, int], options: dict[str, int]) -> None:
    layer = nn.Conv2d(2, 2, 3, **options, dtype=torch.float64)
    check(layer, decaying((2, 2, *size), seed=1), patch)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dilation", "patch"), [(2, 2), (4, 2), (3, 2), (2, 3), (4, 4)])
def test_dilation(dilation: int, patch: int, groups: int) -> None:
    layer = nn.Conv2d(2, 2, 3, padding=dilation, dilation=dilation, groups=groups, dtype=torch.float64)
    check(layer, decaying((2, 2, 9, 8), seed=1), patch)


@settings(max_examples=settings().max_examples // 2)
@given(
    patch=st.integers(1, 5),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=st.sampled_from([(1, 1, 1), (1, 3, 1), (3, 2, 1), (2, 2, 2), (3, 3, 3)]),
    batch=st.integers(1, 2),
)
def test_any_geometry(
    patch: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    channels: tuple[int, int, int],
    batch: int,
) -> None:
    into, out, groups = channels
    layer = nn.Conv2d(into, out, kernel, stride, padding, groups=groups, dtype=torch.float64)
    check(layer, decaying((batch, into, *size), seed=1), patch)


@pytest.mark.parametrize("patch", [2, 4])
def test_patches_that_divide_the_output_are_plain_means(patch: int) -> None:
    grad = decaying((2, 3, 8, 8), seed=1)
    expected = grad.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).mean((3, 5))
    assert_close(patch_averages(grad, patch), expected, **TIGHT)


def test_it_is_exact_where_its_assumptions_hold() -> None:
    """A pointwise layer, and output gradients that are constant within a patch: nothing is lost."""
    layer = nn.Conv2d(3, 4, 1, dtype=torch.float64)
    x = decaying((2, 3, 8, 8), seed=1)
    grad = decaying((2, 4, 4, 4), seed=2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.autograd.grad(layer(x), layer.weight, grad)[0]
    convert(layer, GradientFilter(2))
    x.requires_grad_()
    got = torch.autograd.grad(layer(x), [layer.weight, x], grad)
    assert_close(got[0], expected, **TIGHT)
    assert_close(got[1], torch.einsum("bohw,oc->bchw", grad, layer.weight.detach()[..., 0, 0]), **TIGHT)


def test_an_unbatched_input_is_a_batch_of_one() -> None:
    layer = convert(nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64), GradientFilter(2))
    x = decaying((1, 2, 6, 6), seed=1).requires_grad_()
    grad = decaying((1, 3, 6, 6), seed=2)
    batched = torch.autograd.grad(layer(x), [x, layer.weight], grad)
    single = x.detach()[0].requires_grad_()
    unbatched = torch.autograd.grad(layer(single), [single, layer.weight], grad[0])
    assert_close(unbatched, (batched[0][0], batched[1]), **TIGHT)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), "depthwise"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "zero padding"),
        (nn.Linear(4, 4), "Conv2d only"),
        (nn.Conv1d(4, 4, 3), "Conv2d only"),
        (nn.ConvTranspose2d(4, 4, 3), "Conv2d only"),
    ],
    ids=str,
)
def test_what_the_publication_does_not_define_is_left_alone_with_the_reason(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), layer)
    convert(model, GradientFilter(2))
    assert type(model[0]) is FilteredConv2d
    assert type(model[1]) is type(layer)
    assert reason in GradientFilter(2).refusal(layer)


def test_it_keeps_a_patch_squared_less() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 16, 16)
    decided = plan(nn.Sequential(nn.Conv2d(4, 4, 1), layer), x, {"1": GradientFilter(4)})
    assert [(s.plain_bytes, s.predicted_bytes) for s in decided.sites] == [(2 * 4 * 16 * 16 * 4, 2 * 4 * 4 * 4 * 4)]


def test_a_frozen_weight_keeps_nothing_and_the_input_gradient_is_the_same() -> None:
    layer = convert(nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64), GradientFilter(2))
    x = decaying((2, 2, 6, 6), seed=1)
    _, _, expected = gradients(layer, x)
    layer.weight.requires_grad_(False)
    layer.weight.grad = None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x.clone().requires_grad_())
    assert [t.shape for t in saved if t.data_ptr() != layer.weight.data_ptr()] == []
    _, _, got = gradients(layer, x)
    assert torch.equal(got, expected)
    assert layer.weight.grad is None
    assert y.requires_grad


def test_only_the_conv_sites_of_a_mapping_are_filtered() -> None:
    model = convert(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)), {"0": GradientFilter(2), "1": Dense()})
    assert [type(m) is FilteredConv2d for m in model] == [True, False]


@pytest.mark.parametrize("patch", [0, -1, 2.0, "2", None, True])
def test_what_is_no_patch_is_refused(patch: object) -> None:
    from tuckprop.errors import ConfigError

    with pytest.raises(ConfigError, match=r"GradientFilter\(patch=\.\.\.\): expected an integer of at least 1.*got"):
        GradientFilter(patch)
