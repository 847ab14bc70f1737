"""Eigendecompositions of low rank against the whole one."""

import pytest
import torch
from torch.testing import assert_close

from tuckprop.linalg.basis import spectrum
from tuckprop.linalg.eigen import eigh
from tuckprop.linalg.low_rank import low_rank_eigh
from tuckprop.linalg.modes import expand
from tuckprop.linalg.tucker import hosvd


def of_rank(size: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(size, rank, generator=generator) @ torch.randn(rank, 1200, generator=generator)
    return wide * torch.linspace(2, 0.5, size)[:, None]


@pytest.mark.parametrize(("size", "rank"), [(256, 1), (300, 40), (400, 120)])
def test_it_is_the_whole_decomposition_but_for_zeros(size: int, rank: int) -> None:
    x = of_rank(size, rank)
    gram = x @ x.T
    found = low_rank_eigh(gram)
    assert found is not None
    energies, vectors = found
    assert len(energies) < size // 2
    whole, _ = eigh(gram.double())
    assert_close(energies[-rank:].double(), whole[-rank:], rtol=1e-3, atol=1e-6 * float(whole.sum()))
    assert_close(vectors.T @ vectors, torch.eye(len(energies)), rtol=0, atol=1e-4)
    assert_close((vectors * energies) @ vectors.T, gram, rtol=0, atol=1e-5 * float(gram.abs().amax()))


@pytest.mark.parametrize(
    "gram",
    [
        pytest.param(of_rank(256, 256) @ of_rank(256, 256).T, id="of full rank"),
        pytest.param(of_rank(300, 140) @ of_rank(300, 140).T, id="of half the rank"),
        pytest.param(of_rank(90, 10) @ of_rank(90, 10).T, id="small"),
        pytest.param((of_rank(300, 10) @ of_rank(300, 10).T).double(), id="in double precision"),
        pytest.param(torch.diag(torch.arange(300.0).clamp_min(150) - 150), id="with dead components in front"),
    ],
)
def test_others_are_left_to_the_whole_one(gram: torch.Tensor) -> None:
    assert low_rank_eigh(gram) is None


def test_a_zero_matrix_is_decomposed() -> None:
    x = torch.zeros(300, 4, 100)
    assert int(spectrum(x, 0, 0.8).rank) == 1


@pytest.mark.parametrize("epsilon", [0.5, 0.8, 0.95])
def test_the_rank_is_that_of_the_whole_decomposition(epsilon: float) -> None:
    x = of_rank(384, 65).view(384, 30, 40)
    found, exact = spectrum(x, 0, epsilon), spectrum(x.double(), 0, epsilon)
    assert len(found.energies) < 100
    rank = int(found.rank)
    assert rank == int(exact.rank)
    basis, best = found.leading(rank).double(), exact.leading(rank)
    assert_close(basis @ basis.T, best @ best.T, rtol=0, atol=1e-3)


@pytest.mark.parametrize("epsilon", [0.8, 0.95])
@pytest.mark.parametrize("size", [96, 300])
def test_hosvd_within_the_range_of_a_mode_is_hosvd(epsilon: float, size: int) -> None:
    x = of_rank(size, size // 6).view(size, 8, 10, 15).movedim(0, 1).contiguous()
    core, factors, ranks = hosvd(x, [epsilon] * 4)
    exact_core, exact_factors, exact_ranks = hosvd(x.double(), [epsilon] * 4)
    assert ranks == exact_ranks
    assert factors.keys() == exact_factors.keys()
    assert 1 in factors
    assert core.shape == exact_core.shape
    assert_close(rebuilt(core, factors).double(), rebuilt(exact_core, exact_factors), rtol=0, atol=0.02)


def rebuilt(core: torch.Tensor, factors: dict[int, torch.Tensor]) -> torch.Tensor:
    for mode, factor in factors.items():
        core = expand(core, factor, mode)
    return core
