"""Energies that are read later are those of the tensors."""

from math import inf, isnan, nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tuckprop.linalg.energy import Energy, Rule


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_that_of_a_tensor(shape: list[int], scale: float) -> None:
    x = scale * torch.randn(shape)
    assert Energy.of(x).read() == pytest.approx(float(x.double().square().sum()), rel=1e-5)


@given(
    groups=st.integers(1, 5),
    size=st.integers(2, 50),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_that_of_a_standardised_tensor(groups: int, size: int, spread: float, eps: float) -> None:
    x = 3 + spread * torch.randn(groups, size, dtype=torch.float64)
    invstd = (x.var(1, unbiased=False) + eps).rsqrt()
    normal = F.layer_norm(x, (size,), eps=eps)
    expected = float(normal.square().sum())
    found = Energy.standardised(x.numel(), invstd, eps).read()
    # Below rounding of single precision it counts as none.
    assert found == pytest.approx(expected, rel=1e-6, abs=2e-6 * x.numel())


def test_a_constant_input_has_none() -> None:
    x = torch.full((2, 8), 7.0)
    invstd = (x.var(1, unbiased=False) + 1e-5).rsqrt()
    assert Energy.standardised(x.numel(), invstd, 1e-5).read() == 0.0


def test_shares_that_are_lost() -> None:
    assert Rule().lost(4.0, 3.0) == 0.25
    assert Rule().lost(4.0, 4.0) == 0.0
    for number in (0.0, nan, inf):
        assert isnan(Rule().lost(number, 1.0))
