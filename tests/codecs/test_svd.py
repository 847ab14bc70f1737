"""SVD of the batch unfolding against torch.linalg.svd, and the bound of the paper."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.cases import decaying
from tests.codecs.test_hosvd import SLACK, decays, draw_tensor, epsilons, scales, seeds, shapes
from tuckprop import SVD
from tuckprop.errors import ConfigError, TuckpropError


@given(shapes, epsilons, seeds, decays, scales, st.sampled_from([torch.float64, torch.float32]))
def test_the_error_is_within_the_bound(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float, dtype: torch.dtype
) -> None:
    x = draw_tensor(shape, seed, decay, scale, dtype)
    error = (SVD(epsilon).compress(x).dense() - x).double().norm() / x.double().norm()
    assert error <= math.sqrt(1 - epsilon + SLACK[dtype])


@given(shapes, epsilons, seeds, decays, scales)
def test_it_is_the_truncated_svd_with_the_fewest_vectors(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float
) -> None:
    x = draw_tensor(shape, seed, decay, scale, torch.float64)
    packed = SVD(epsilon).compress(x)
    left, values, right = torch.linalg.svd(x.flatten(1) if x.dim() > 1 else x[:, None], full_matrices=False)
    share = values.square().cumsum(0) / values.square().sum()
    rank = packed.ranks[0]
    assert share[rank - 1] >= epsilon - 1e-12
    if epsilon < 1 and rank > 1:
        assert share[rank - 2] < epsilon + 1e-12
    # The error is that of the best approximation of the rank, even where vectors are not unique.
    best = ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(shape)
    assert_close((packed.dense() - x).norm(), (best - x).norm(), rtol=1e-6, atol=1e-9 * scale)


@given(shapes, epsilons, seeds, decays)
def test_what_is_kept(shape: tuple[int, ...], epsilon: float, seed: int, decay: float) -> None:
    packed = SVD(epsilon).compress(draw_tensor(shape, seed, decay, 1.0, torch.float64))
    rank, (batch, *rest) = packed.ranks[0], shape
    core, factors = packed.partial((0,))
    assert core.shape == (rank, *rest)
    assert list(factors) == [0]
    assert factors[0].shape == (batch, rank)
    assert_close(factors[0].T @ factors[0], torch.eye(rank, dtype=core.dtype), rtol=0, atol=1e-12)
    assert packed.paper_count() == packed.nbytes // 8 == rank * (batch + math.prod(rest))


@given(shapes, seeds, decays, st.lists(epsilons, min_size=2, max_size=4))
def test_rank_and_error_go_with_epsilon(shape: tuple[int, ...], seed: int, decay: float, several: list[float]) -> None:
    x = draw_tensor(shape, seed, decay, 1.0, torch.float64)
    forms = [SVD(epsilon).compress(x) for epsilon in sorted(several)]
    ranks = [packed.ranks[0] for packed in forms]
    errors = [float((packed.dense() - x).norm()) for packed in forms]
    assert ranks == sorted(ranks)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("epsilon", [0.1, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("value", [0.0, -3.5])
@pytest.mark.parametrize("shape", [(7,), (6, 5), (5, 3, 4, 4), (100, 2, 2)], ids=str)
def test_constant_tensors_are_exact(shape: tuple[int, ...], value: float, epsilon: float) -> None:
    x = torch.full(shape, value, dtype=torch.float64)
    packed = SVD(epsilon).compress(x)
    assert_close(packed.dense(), x, rtol=1e-12, atol=0)
    if epsilon < 1:
        assert packed.ranks[0] == 1


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)], ids=str)
@pytest.mark.parametrize("epsilon", [1 - 1e-9, 1.0])
def test_matrices_of_low_rank_are_exact(shape: tuple[int, int], epsilon: float) -> None:
    x = decaying((shape[0], 3), seed=1) @ decaying((3, shape[1]), seed=2)
    packed = SVD(epsilon).compress(x)
    assert_close(packed.dense(), x, rtol=0, atol=1e-4 * float(x.abs().max()) if epsilon < 1 else 1e-12)
    assert packed.ranks[0] == (3 if epsilon < 1 else 9)


@pytest.mark.parametrize("epsilon", [0, 1.5, -1, float("nan"), "high", None, False])
def test_what_is_no_share_of_energy_is_refused(epsilon: object) -> None:
    with pytest.raises(TuckpropError, match=r"SVD\(epsilon=\.\.\.\): expected .* \(0, 1\], got") as raised:
        SVD(epsilon)
    assert isinstance(raised.value, ConfigError)
