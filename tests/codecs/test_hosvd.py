"""HOSVD against its definition: full SVDs of the unfoldings, and the bound of the paper."""

import itertools
import math

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.cases import decaying
from tuckprop import HOSVD
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.errors import ConfigError, TuckpropError

# How far a share of energy may be off in the dtype that is worked in, by its Gram matrix.
SLACK = {torch.float64: 1e-12, torch.float32: 1e-5}

shapes = st.lists(st.integers(1, 8), min_size=1, max_size=5).map(tuple)
epsilons = st.floats(0.05, 1.0)
seeds = st.integers(0, 2**32 - 1)
# From equal energies (noise) to one that dwarfs the others.
decays = st.sampled_from([1.0, 0.8, 0.5, 0.1])
scales = st.integers(-8, 8).map(lambda exponent: 10.0**exponent)


def draw_tensor(shape: tuple[int, ...], seed: int, decay: float, scale: float, dtype: torch.dtype) -> Tensor:
    return (decaying(shape, seed=seed, decay=decay) * scale).to(dtype)


def unfolding(x: Tensor, mode: int) -> Tensor:
    with tensorly.backend_context("pytorch"):
        return tensorly.unfold(x, mode)


def singular_energies(x: Tensor, mode: int) -> Tensor:
    return torch.linalg.svdvals(unfolding(x.double(), mode)).square()


@given(shapes, epsilons, seeds, decays, scales, st.sampled_from([torch.float64, torch.float32]))
def test_the_error_is_within_the_bound(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float, dtype: torch.dtype
) -> None:
    x = draw_tensor(shape, seed, decay, scale, dtype)
    error = (HOSVD(epsilon).compress(x).dense() - x).double().norm() / x.double().norm()
    assert error <= math.sqrt(len(shape) * (1 - epsilon + SLACK[dtype]))


@given(shapes, epsilons, seeds, decays, scales)
def test_every_mode_has_the_fewest_vectors_that_reach_epsilon(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float
) -> None:
    x = draw_tensor(shape, seed, decay, scale, torch.float64)
    packed = HOSVD(epsilon).compress(x)
    assert isinstance(packed, TuckerPacked)
    for mode, rank in enumerate(packed.ranks):
        energies = singular_energies(x, mode)
        share = energies.cumsum(0) / energies.sum()
        assert share[rank - 1] >= epsilon - 1e-12
        if epsilon == 1:
            assert rank == min(shape[mode], math.prod(shape) // shape[mode])
        elif rank > 1:
            assert share[rank - 2] < epsilon + 1e-12


@given(shapes, epsilons, seeds, decays)
def test_factors_are_the_leading_singular_vectors(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float
) -> None:
    x = draw_tensor(shape, seed, decay, 1.0, torch.float64)
    packed = HOSVD(epsilon).compress(x)
    assert isinstance(packed, TuckerPacked)
    expected = x
    for mode, factor in packed.factors.items():
        rank = packed.ranks[mode]
        assert factor.shape == (shape[mode], rank)
        assert_close(factor.T @ factor, torch.eye(rank, dtype=x.dtype), rtol=0, atol=1e-12)
        # What the factor keeps of the energy is the most that so many vectors can.
        kept = (factor.T @ unfolding(x, mode)).square().sum()
        assert_close(kept, singular_energies(x, mode)[:rank].sum(), rtol=1e-10, atol=0)
        with tensorly.backend_context("pytorch"):
            expected = tensorly.tenalg.mode_dot(expected, factor @ factor.T, mode)
    assert_close(packed.dense(), expected, rtol=1e-10, atol=1e-10)


@given(shapes, seeds, decays, st.lists(epsilons, min_size=2, max_size=4))
def test_ranks_grow_with_epsilon(shape: tuple[int, ...], seed: int, decay: float, several: list[float]) -> None:
    x = draw_tensor(shape, seed, decay, 1.0, torch.float64)
    ranks = [HOSVD(epsilon).compress(x).ranks for epsilon in sorted(several)]
    for smaller, larger in itertools.pairwise(ranks):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@given(shapes, epsilons, seeds, decays)
def test_the_paper_counts_core_and_every_factor(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float
) -> None:
    packed = HOSVD(epsilon).compress(draw_tensor(shape, seed, decay, 1.0, torch.float64))
    ranks = packed.ranks
    assert packed.paper_count() == math.prod(ranks) + sum(n * k for n, k in zip(shape, ranks, strict=True))


@given(shapes, epsilons, seeds, decays)
def test_it_takes_no_more_elements_than_the_paper_counts_nor_than_the_tensor(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float
) -> None:
    packed = HOSVD(epsilon).compress(draw_tensor(shape, seed, decay, 1.0, torch.float64))
    assert packed.nbytes // 8 <= min(packed.paper_count(), math.prod(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("epsilon", [0.1, 0.8, 0.999, 0.99999, 1.0])
@pytest.mark.parametrize("shape", [(7,), (6, 5), (8, 3, 5, 5), (2, 3, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_constant_tensors_are_exact(shape: tuple[int, ...], value: float, epsilon: float, dtype: torch.dtype) -> None:
    x = torch.full(shape, value, dtype=dtype)
    packed = HOSVD(epsilon).compress(x)
    assert_close(packed.dense(), x, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
    if epsilon < 1:
        assert packed.ranks == (1,) * len(shape)


@pytest.mark.parametrize("epsilon", [0.1, 0.8, 0.999])
def test_rank_one_tensors_are_exact(epsilon: float) -> None:
    vectors = [decaying((n,), seed=n) for n in (4, 5, 6, 7)]
    x = torch.einsum("a,b,c,d->abcd", *vectors)
    packed = HOSVD(epsilon).compress(x)
    assert packed.ranks == (1, 1, 1, 1)
    assert_close(packed.dense(), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon", [1 - 1e-9, 1.0])
def test_tensors_of_low_rank_are_exact(epsilon: float) -> None:
    core = decaying((2, 2, 3, 2), seed=1)
    factors = [decaying((n, k), seed=n) for n, k in zip((6, 7, 8, 5), core.shape, strict=True)]
    with tensorly.backend_context("pytorch"):
        x = tensorly.tucker_to_tensor((core, factors))
    packed = HOSVD(epsilon).compress(x)
    assert_close(packed.dense(), x, rtol=0, atol=1e-4 * float(x.abs().max()) if epsilon < 1 else 1e-12)
    assert epsilon == 1 or packed.ranks == tuple(core.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_channel_that_is_all_zero_does_no_harm(channels: int) -> None:
    x = decaying((4, channels + 2, 5, 5), seed=1)
    x[:, 1 : 1 + channels] = 0
    dense = HOSVD(0.95).compress(x).dense()
    assert dense.isfinite().all()
    assert_close(dense[:, 1 : 1 + channels], x[:, 1 : 1 + channels], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "epsilon", [0, 0.0, -0.1, 1.5, float("nan"), float("inf"), "0.8", None, True, torch.tensor(0.8)]
)
def test_what_is_no_share_of_energy_is_refused(epsilon: object) -> None:
    with pytest.raises(TuckpropError, match=r"HOSVD\(epsilon=\.\.\.\): expected .* \(0, 1\], got") as raised:
        HOSVD(epsilon)
    assert isinstance(raised.value, ConfigError)
