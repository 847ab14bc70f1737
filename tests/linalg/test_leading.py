"""The leading eigenpairs against the whole decomposition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.native.compiler import needs_compiler
from tuckprop.linalg.eigen import eigh
from tuckprop.linalg.leading import leading_eigh, leading_energies

pytestmark = needs_compiler


def gram_of(energies: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return a matrix of these eigenvalues, float32."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(len(energies), len(energies), generator=generator, dtype=torch.float64)).Q
    return ((vectors * energies) @ vectors.T).float()


def check(gram: torch.Tensor, share: float) -> int:
    """Compare with the whole decomposition in double precision; return how many pairs there are."""
    found = leading_eigh(gram, share)
    assert found is not None
    energies, vectors = found
    alone = leading_energies(gram, share)
    assert alone is not None
    assert_close(alone, energies, rtol=1e-5, atol=1e-6 * float(energies[0]))
    whole = eigh(gram.double())[0].clamp_min(0).flip(0)
    kept, scale, count = whole.cumsum(0) / whole.sum(), float(whole.sum()), len(energies)
    assert kept[count - 1] >= share - 1e-6
    assert count == 1 or kept[count - 2] < share + 1e-6
    assert energies.dtype == vectors.dtype == gram.dtype
    assert_close(energies.double(), whole[:count], rtol=1e-5, atol=1e-6 * float(whole[0]))
    assert_close(vectors.T @ vectors, torch.eye(count), rtol=0, atol=2e-5)
    residual = gram.double() @ vectors.double() - vectors.double() * energies.double()
    assert float(residual.norm(dim=0).amax()) < 1e-5 * float(whole[0])
    own = (vectors.double() * (gram.double() @ vectors.double())).sum()
    assert_close(own / scale, kept[count - 1], rtol=0, atol=1e-6)
    return count


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("size", [8, 33, 129, 250, 577])
@pytest.mark.parametrize("decay", [0.5, 0.97, 0.999])
def test_they_are_those_of_the_whole_decomposition(size: int, share: float, decay: float) -> None:
    check(gram_of(decay ** torch.arange(size, dtype=torch.float64)), share)


@given(st.integers(1, 300), st.floats(0.05, 0.999), st.integers(0, 99), st.sampled_from([1e-12, 1.0, 1e12]))
def test_of_random_unfoldings(size: int, share: float, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 2 * size, generator=generator) * torch.rand(size, generator=generator)[:, None]
    check(scale * rows @ rows.T, share)


def test_of_one_direction_and_of_a_diagonal_matrix() -> None:
    """No reflection is needed, or one: what is beside the diagonal is zero."""
    assert check(torch.ones(130, 130), 0.9) == 1
    assert check(torch.diag(torch.linspace(1, 130, 130)), 0.5) == 39


@pytest.mark.parametrize("size", [200, 384])
def test_equal_eigenvalues_have_orthonormal_vectors_or_are_left_to_the_whole_one(size: int) -> None:
    energies = torch.ones(size, dtype=torch.float64)
    energies[: size // 2] = 2
    for gram in (gram_of(energies), torch.eye(size), torch.diag(energies.float())):
        if leading_eigh(gram, 0.8) is not None:
            check(gram, 0.8)


def test_a_block_of_zeros_is_left_out() -> None:
    gram = torch.zeros(300, 300)
    gram[100:200, 100:200] = gram_of(torch.linspace(1, 2, 100, dtype=torch.float64))
    assert check(gram, 0.8) < 100


@pytest.mark.parametrize(
    "gram",
    [
        pytest.param(torch.zeros(200, 200), id="zero"),
        pytest.param(torch.eye(200, dtype=torch.float64), id="in double precision"),
    ],
)
def test_others_are_left_to_the_whole_one(gram: torch.Tensor) -> None:
    assert leading_eigh(gram, 0.8) is None
