"""Orthonormal columns without a decomposition that waits, and ranges found with them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuckprop.linalg.orthonormal import cholesky_qr, directions, orthonormal


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
