"""Orthonormal columns without a decomposition that waits, and ranges found with them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.cases import decaying
from tuckprop.linalg.basis import spectrum
from tuckprop.linalg.modes import mode_product
from tuckprop.linalg.orthonormal import cholesky_qr, directions, orthonormal
from tuckprop.linalg.range_finder import find_range


def assert_orthonormal(basis: Tensor, tolerance: float) -> None:
    gram = basis.T @ basis
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=tolerance)


@given(
    size=st.integers(1, 60),
    rank=st.integers(1, 20),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e25]),
    decay=st.sampled_from([1.0, 1e-1, 1e-3]),
    seed=st.integers(0, 5),
)
def test_cholesky_qr_spans_what_the_columns_do(size: int, rank: int, scale: float, decay: float, seed: int) -> None:
    rank = min(rank, size)
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(size, rank, generator=generator)
    # Nearly dependent: each column is the first one and a little of its own.
    columns = (columns[:, :1] + decay * columns) * scale
    basis = cholesky_qr(columns)
    assert basis.dtype == torch.float32
    assert basis.is_contiguous()
    assert_orthonormal(basis, 1e-5)
    residual = columns.double() - basis.double() @ (basis.double().T @ columns.double())
    assert float(residual.norm() / columns.double().norm()) < 1e-5


@pytest.mark.parametrize("columns", [torch.zeros(7, 3), torch.ones(7, 3), torch.eye(7)[:, :3] * 0 + 1e-38])
def test_columns_without_full_rank_are_completed(columns: Tensor) -> None:
    for basis in (cholesky_qr(columns), orthonormal(columns)):
        assert_orthonormal(basis, 1e-5)


def test_directions_have_full_rank() -> None:
    for size, count in ((3, 3), (64, 16), (576, 64), (2000, 40)):
        values = torch.linalg.svdvals(directions(size, count, device=torch.device("cpu")))
        assert values[-1] > 0.02 * values[0]


@given(
    shape=st.tuples(st.integers(2, 12), st.integers(2, 6), st.integers(1, 5)),
    mode=st.integers(0, 1),
    rank=st.integers(1, 6),
    decay=st.sampled_from([0.3, 0.6, 0.9]),
    seed=st.integers(0, 3),
)
def test_a_found_range_keeps_nearly_what_the_best_of_its_rank_does(
    shape: tuple[int, ...], mode: int, rank: int, decay: float, seed: int
) -> None:
    x = decaying(shape, seed=seed, decay=decay).contiguous()
    rank = min(rank, shape[mode], x.numel() // shape[mode])
    basis = find_range(x, mode, rank)
    assert_orthonormal(basis, 1e-9)
    best = spectrum(x, mode, 1.0).energies[:rank].sum()
    kept = mode_product(x, basis, mode).square().sum()
    assert float(kept) >= 0.9 * float(best)


def test_a_range_is_found_whatever_the_scale() -> None:
    x = decaying((16, 4, 9), seed=0).float()
    expected = find_range(x, 0, 4)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(find_range(x * scale, 0, 4), expected, rtol=0, atol=1e-4)
    assert_orthonormal(find_range(torch.zeros(16, 4, 9), 0, 4), 1e-5)
