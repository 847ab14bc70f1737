"""The range of a mode of low rank, and HOSVD within it, against the whole decomposition."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tuckprop.linalg.basis import spectrum
from tuckprop.linalg.low_rank import low_rank_range
from tuckprop.linalg.modes import expand
from tuckprop.linalg.tucker import hosvd


def of_rank(rank: int, shape: tuple[int, ...], mode: int, seed: int = 0) -> Tensor:
    """Return a tensor of this shape whose unfolding has this rank, up to what its sizes allow."""
    generator = torch.Generator().manual_seed(seed)
    size, rest = shape[mode], prod(shape) // shape[mode]
    unfolding = torch.randn(size, rank, generator=generator) @ torch.randn(rank, rest, generator=generator)
    unfolding = unfolding * torch.linspace(2, 0.5, size)[:, None]
    return unfolding.view(size, *shape[:mode], *shape[mode + 1 :]).movedim(0, mode).contiguous()


def rebuilt(core: Tensor, factors: dict[int, Tensor]) -> Tensor:
    for mode, factor in factors.items():
        core = expand(core, factor, mode)
    return core


@given(st.integers(96, 300), st.integers(1, 20), st.integers(4, 6), st.integers(1000, 1200), st.integers(0, 9))
def test_the_range_has_all_of_the_tensor(size: int, rank: int, before: int, after: int, seed: int) -> None:
    x = of_rank(rank, (before, size, after), 1, seed)
    found = low_rank_range(x, 1)
    assert found is not None
    basis, core, gram = found
    assert basis.shape[1] < size // 2
    assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
    assert_close(core, torch.einsum("bna,nm->bma", x, basis), rtol=0, atol=1e-4 * float(x.abs().amax()))
    assert_close(gram, torch.einsum("bna,bma->nm", core, core), rtol=0, atol=1e-5 * float(gram.trace()))
    lost = (x.double() - expand(core, basis, 1).double()).square().sum() / x.double().square().sum()
    assert float(lost) < 2e-6


@pytest.mark.parametrize(("shape", "mode"), [((400, 300), 0), ((300, 400), 1), ((20, 60, 200), 2), ((500, 4, 40), 0)])
def test_it_is_found_in_the_first_and_the_last_mode_and_in_tall_unfoldings(shape: tuple[int, ...], mode: int) -> None:
    x = of_rank(30, shape, mode)
    found = low_rank_range(x, mode)
    assert found is not None
    lost = x - expand(found.core, found.basis, mode)
    assert float(lost.square().sum()) < 1e-6 * float(x.square().sum())


wide = (4, 300, 10, 20)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(of_rank(300, wide, 1), id="of full rank"),
        pytest.param(of_rank(90, wide, 1), id="of a third of the rank"),
        pytest.param(of_rank(40, (1, 700, 100), 1), id="of a high rank for its few columns"),
        pytest.param(of_rank(10, (4, 90, 40, 40), 1), id="of a small size"),
        pytest.param(of_rank(10, (4, 100, 20, 20), 1), id="of few products"),
        pytest.param(of_rank(10, wide, 1).double(), id="in double precision"),
        pytest.param(of_rank(10, (1, 1500, 16), 1), id="of fewer columns than tell"),
        pytest.param(torch.zeros(wide), id="zero"),
        pytest.param(of_rank(10, wide, 1) * torch.tensor(float("nan")), id="not a number"),
        pytest.param(of_rank(10, wide, 1) * 1e30, id="too large to square"),
    ],
)
def test_others_are_left_to_the_whole_decomposition(x: Tensor) -> None:
    assert low_rank_range(x, 1) is None


def test_what_a_few_columns_do_not_show_is_noticed() -> None:
    """One sample has all the energy that the columns looked at lack."""
    x = of_rank(10, (8, 200, 30, 30), 1)
    x[3, :, 7, 11] += 100 * torch.linspace(-1, 1, 200).square()
    assert low_rank_range(x, 1) is None


def test_equal_columns_do_not_pass_for_a_low_rank() -> None:
    x = of_rank(300, (8, 300, 20, 20), 1)
    x[:, :, :, 4:] = x[:, :, :1, 3:4]
    assert low_rank_range(x, 1) is None


def test_equal_columns_do_not_hide_a_low_rank() -> None:
    x = of_rank(40, (8, 300, 20, 20), 1)
    x[:, :, :, 10:] = x[:, :, :1, 3:4]
    assert low_rank_range(x, 1) is not None


@pytest.mark.parametrize("epsilon", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [96, 300, 576])
def test_hosvd_within_the_range_of_a_mode_is_hosvd(epsilon: float, size: int) -> None:
    x = of_rank(size // 6, (8, size, 20, 30), 1)
    assert low_rank_range(x, 1) is not None
    core, factors, ranks = hosvd(x, [epsilon] * 4)
    exact_core, exact_factors, exact_ranks = hosvd(x.double(), [epsilon] * 4)
    assert ranks == exact_ranks
    assert factors.keys() == exact_factors.keys()
    assert 1 in factors
    assert core.shape == exact_core.shape
    for mode, factor in factors.items():
        exact = exact_factors[mode]
        assert_close((factor @ factor.T).double(), exact @ exact.T, rtol=0, atol=2e-3)
    assert_close(rebuilt(core, factors).double(), rebuilt(exact_core, exact_factors), rtol=0, atol=0.02)


def test_hosvd_of_a_mode_of_low_rank_that_is_left_whole() -> None:
    """Once another mode has a factor, its own would take more elements than it saves."""
    x = torch.randn(200, 1, 1) * torch.randn(400, 4)
    assert low_rank_range(x, 1) is not None
    core, factors, ranks = hosvd(x, [0.99] * 3)
    assert ranks[1] > 1
    assert factors.keys() == {0}
    assert_close(rebuilt(core, factors), x, rtol=0, atol=1e-4 * float(x.abs().amax()))


def test_a_zero_matrix_is_decomposed() -> None:
    x = torch.zeros(300, 4, 100)
    assert int(spectrum(x, 0, 0.8).rank) == 1
    assert hosvd(x, [0.8] * 3)[2] == (1, 1, 1)
