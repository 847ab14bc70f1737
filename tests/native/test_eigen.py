"""Compiled eigenproblems of any size: the leading eigenpairs of a symmetric matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.native.compiler import needs_compiler
from tuckprop import native

pytestmark = needs_compiler


def gram(size: int, rank: int, seed: int) -> Tensor:
    rows = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.T


@given(st.integers(1, 150), st.integers(1, 300), st.integers(0, 99), st.floats(0.01, 0.99))
def test_the_fewest_leading_pairs(size: int, rank: int, seed: int, share: float) -> None:
    matrix = gram(size, rank, seed)
    exact = torch.linalg.eigvalsh(matrix.double()).flip(0)
    found = native.leading_pairs(matrix, share)
    assert found is not None
    values, vectors = found
    count, scale = len(values), float(exact[0])
    assert vectors.is_contiguous()
    assert vectors.untyped_storage().nbytes() == 4 * size * count
    assert_close(values, exact[:count], rtol=0, atol=2e-6 * scale)
    kept = exact.cumsum(0) / exact.sum()
    assert kept[count - 1] >= share - 1e-6
    assert count == 1 or kept[count - 2] < share + 1e-6
    assert_close(vectors.T @ vectors, torch.eye(count), rtol=0, atol=2e-5)
    assert float((matrix.double() @ vectors.double() - vectors.double() * values).abs().max()) < 1e-5 * scale


def test_they_are_the_same_for_any_number_of_threads() -> None:
    """Every sum has one order."""
    matrix, threads = gram(300, 400, 0), torch.get_num_threads()
    found = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        pairs = native.leading_pairs(matrix, 0.9)
        assert pairs is not None
        found.append(pairs)
    torch.set_num_threads(threads)
    for values, vectors in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(vectors, found[0][1])


def test_of_another_matrix_in_the_same_memory() -> None:
    """Nothing of a larger problem is left in a smaller one."""
    for size in (130, 17, 16, 15, 3, 2, 1):
        matrix = gram(size, size + 1, size)
        found = native.leading_pairs(matrix, 0.999999)
        assert found is not None
        values, vectors = found
        assert_close((vectors * values.float()) @ vectors.T, matrix, rtol=0, atol=1e-5 * float(matrix.trace()))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [20, 200])
def test_what_is_not_finite_has_no_pairs(broken: float, size: int) -> None:
    matrix = torch.eye(size)
    matrix[3, 5] = matrix[5, 3] = broken
    assert native.leading_pairs(matrix, 0.8) is None


def test_zero_has_no_pairs() -> None:
    assert native.leading_pairs(torch.zeros(30, 30), 0.8) is None
