"""The weight gradient from factors, over random geometry, ranks and routes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.cases import LayerCase, RandomTucker
from tests.forcing import ROUTES, forced_packing, forced_route
from tests.layers.contract import Run, check_contract
from tests.strategies import convolutions, linears, transposed_convolutions
from tuckprop import HOSVD, convert

shares = st.sampled_from([0.01, 0.4, 0.7, 1.0])
any_axes = st.one_of(st.none(), st.sets(st.integers(0, 4)).map(lambda axes: tuple(sorted(axes))))


@settings(max_examples=3 * settings().max_examples)
@given(st.one_of(convolutions(), transposed_convolutions()), shares, st.sampled_from(ROUTES))
def test_any_convolution_by_any_route(case: LayerCase, share: float, chosen: str) -> None:
    with forced_packing(), forced_route(chosen):
        check_contract(case, RandomTucker(share))


@settings(max_examples=3 * settings().max_examples)
@given(st.one_of(convolutions(), transposed_convolutions()), shares, any_axes)
def test_any_convolution_by_the_route_that_is_chosen(case: LayerCase, share: float, axes: tuple[int, ...]) -> None:
    with forced_packing():
        check_contract(case, RandomTucker(share, axes))


@given(st.one_of(convolutions(), transposed_convolutions(), linears()), st.floats(0.1, 0.999))
def test_any_layer_under_hosvd(case: LayerCase, epsilon: float) -> None:
    with forced_packing():
        check_contract(case, HOSVD(epsilon))


@settings(max_examples=3 * settings().max_examples)
@given(linears(), shares, any_axes)
def test_any_linear(case: LayerCase, share: float, axes: tuple[int, ...]) -> None:
    with forced_packing():
        check_contract(case, RandomTucker(share, axes))


def calls(case: LayerCase, codec: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the routes that a real cost model takes."""
    from tuckprop.layers import _contraction

    taken: list[str] = []
    for name in ROUTES:
        original = getattr(_contraction, f"{name}_route")

        def watched(*args: Any, original: Any = original, name: str = name) -> Any:
            taken.append(name)
            return original(*args)

        monkeypatch.setattr(_contraction, f"{name}_route", watched)
    Run(convert(case.module(), codec), case.input())
    return taken


def test_small_ranks_take_the_factored_route(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LayerCase(nn.Conv2d, (32, 64, 32, 32), (64, 64, 3), {"padding": 1})
    assert max(HOSVD(0.8).compress(case.input()).ranks) <= 3
    assert calls(case, HOSVD(0.8), monkeypatch) == ["factored"]


def test_an_activation_that_is_kept_whole_has_all_gradients_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LayerCase(nn.Conv2d, (4, 4, 8, 8), (4, 4, 3), {"padding": 1})
    assert calls(case, HOSVD(1.0), monkeypatch) == []
    plain, converted = Run(case.module(), case.input()), Run(convert(case.module(), HOSVD(1.0)), case.input())
    assert torch.equal(converted.weight, plain.weight)
    assert torch.equal(converted.bias, plain.bias)
    assert torch.equal(converted.x.grad, plain.x.grad)


def test_one_that_is_padded_beforehand_takes_the_dense_route(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LayerCase(nn.Conv2d, (4, 4, 8, 8), (4, 4, 3), {"padding": 1, "padding_mode": "reflect"})
    assert calls(case, HOSVD(1.0), monkeypatch) == ["dense"]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_spatial_axis_without_a_factor_is_not_mistaken_for_one_with(transposed: bool, forced: None) -> None:
    """Only a pointwise layer may leave a spatial axis whole in the factored route."""
    plain = nn.ConvTranspose2d if transposed else nn.Conv2d
    for options in ({"kernel_size": 1}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "padding": 1}):
        size = options.pop("kernel_size")
        case = LayerCase(plain, (2, 3, 5, 4), (3, 4, size), options)
        for axes in ((0,), (1,), (0, 1), (0, 1, 2), (0, 1, 3)):
            check_contract(case, RandomTucker(0.5, axes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chosen", ROUTES)
def test_lower_precision_by_every_route(dtype: torch.dtype, chosen: str, forced: None) -> None:
    case = LayerCase(nn.Conv2d, (4, 6, 8, 8), (6, 5, 3), {"padding": 1, "stride": 2})
    with forced_route(chosen):
        exact = Run(convert(case.module(), RandomTucker(0.6)), case.input().to(dtype).double())
    with forced_route(chosen):
        rounded = Run(convert(case.module(dtype), RandomTucker(0.6)), case.input().to(dtype))
    assert rounded.weight.dtype == dtype
    error = (rounded.weight.double() - exact.weight).norm() / exact.weight.norm()
    assert error < 16 * torch.finfo(dtype).eps
