"""Compiled eigenproblems, of any size: the tridiagonal form and its reflections, and leading eigenpairs."""

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


def dense(diagonal: Tensor, beside: Tensor) -> Tensor:
    return diagonal.diag() + beside.diag(1) + beside.diag(-1)


@given(st.integers(1, 90), st.integers(1, 180), st.integers(0, 99))
def test_the_tridiagonal_form_turned_back_is_the_matrix(size: int, rank: int, seed: int) -> None:
    matrix = gram(size, rank, seed)
    diagonal, beside, rows, factors = native.tridiagonal(matrix)
    turned = torch.eye(size, dtype=torch.float64)
    for number, factor in enumerate(factors.tolist()):
        vector = rows[number].double()
        assert vector[number + 1] == 1
        assert not vector[: number + 1].any()
        turned = turned - factor * (turned @ vector)[:, None] * vector
    assert_close(turned.T @ turned, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5)
    found = turned @ dense(diagonal, beside) @ turned.T
    assert_close(found, matrix.double(), rtol=0, atol=1e-5 * float(matrix.trace()))


@given(st.integers(1, 90), st.integers(0, 99), st.floats(0.01, 1))
def test_the_fewest_leading_pairs_of_a_tridiagonal_matrix(size: int, seed: int, share: float) -> None:
    diagonal, beside, _, _ = native.tridiagonal(gram(size, 2 * size, seed))
    matrix = dense(diagonal, beside)
    exact = torch.linalg.eigvalsh(matrix)
    found = native.leading_pairs(diagonal, beside, share)
    assert found is not None
    values, vectors = found
    count, scale = len(values), float(exact[-1])
    assert_close(values, exact[-count:], rtol=0, atol=1e-8 * scale)
    kept = exact.flip(0).cumsum(0) / matrix.trace()
    assert kept[count - 1] >= share - 1e-6
    assert count == 1 or kept[count - 2] < share + 1e-6
    assert_close(vectors.norm(dim=1), torch.ones(count), rtol=0, atol=1e-5)
    assert float((matrix @ vectors.double().T - vectors.double().T * values).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_pairs(broken: float) -> None:
    diagonal, beside = torch.ones(20, dtype=torch.float64), torch.full((19,), 0.1, dtype=torch.float64)
    diagonal[3] = broken
    assert native.leading_pairs(diagonal, beside, 0.8) is None
