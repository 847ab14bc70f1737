"""Mode products and Gram matrices against tensordot, on every branch of their code."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.cases import decaying
from tuckprop.linalg import modes
from tuckprop.linalg.modes import expand, mode_gram, mode_product, trailing_grams

TIGHT = {"rtol": 1e-12, "atol": 1e-12}

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


@st.composite
def tensors_and_modes(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    x = decaying(shape, seed=draw(st.integers(0, 99)), decay=0.9)
    # Any memory order: contiguous in `order`, seen in the order of `shape`.
    laid = x.permute(order).contiguous().permute([order.index(axis) for axis in range(len(shape))])
    return laid, draw(st.integers(0, len(shape) - 1))


@given(tensors_and_modes(), st.integers(1, 6))
def test_mode_product_is_tensordot(drawn: tuple[torch.Tensor, int], k: int) -> None:
    x, mode = drawn
    matrix = decaying((x.shape[mode], k), seed=1)
    got = mode_product(x, matrix, mode)
    assert_close(got, torch.tensordot(x, matrix, ([mode], [0])).movedim(-1, mode).contiguous(), **TIGHT)
    assert got.is_contiguous()


@pytest.mark.parametrize("rank", [1, 3])
def test_many_small_products_with_a_column_major_matrix(rank: int) -> None:
    x, matrix = decaying((80, 5, 4), seed=1), decaying((rank, 5), seed=2).T
    assert_close(mode_product(x, matrix, 1), torch.einsum("bia,ik->bka", x, matrix), **TIGHT)


@given(tensors_and_modes(), st.integers(1, 6))
def test_expand_goes_the_other_way(drawn: tuple[torch.Tensor, int], n: int) -> None:
    x, mode = drawn
    factor = decaying((n, x.shape[mode]), seed=1)
    assert_close(expand(x, factor, mode), mode_product(x, factor.T.contiguous(), mode), **TIGHT)


def gram_of_the_unfolding(x: torch.Tensor, mode: int) -> torch.Tensor:
    unfolded = x.movedim(mode, 0).reshape(x.shape[mode], -1)
    return unfolded @ unfolded.T


@given(tensors_and_modes())
def test_mode_gram_is_that_of_the_unfolding(drawn: tuple[torch.Tensor, int]) -> None:
    x, mode = drawn
    assert_close(mode_gram(x, mode), gram_of_the_unfolding(x, mode), **TIGHT)


@pytest.mark.parametrize("slab", [1, 7, 60, 10**6])
@pytest.mark.parametrize("shape", [(9, 5, 3), (1, 5, 3), (4, 9, 5, 3), (6, 2, 9)], ids=str)
def test_mode_gram_in_slabs(shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A middle mode with little after it is copied in slabs; how many there are must not matter."""
    monkeypatch.setattr(modes, "_SLAB", slab)
    x = decaying(shape, seed=1)
    for mode in range(len(shape)):
        assert_close(mode_gram(x, mode), gram_of_the_unfolding(x, mode), **TIGHT)


@pytest.mark.parametrize("size", [4, 5, 17])
@pytest.mark.parametrize("shape", ["first", "middle", "last"])
def test_mode_gram_of_a_wide_mode(size: int, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_WIDE", 2)
    x = decaying({"first": (size, 40), "middle": (5, size, 4), "last": (40, size)}[shape], seed=1)
    mode = 0 if shape == "first" else 1
    assert_close(mode_gram(x, mode), gram_of_the_unfolding(x, mode), **TIGHT)


@given(shapes)
def test_trailing_grams_are_those_of_the_unfoldings(shape: tuple[int, ...]) -> None:
    x = decaying(shape, seed=1)
    found = trailing_grams(x)
    assert math.prod(shape[mode] for mode in found) <= 64
    assert sorted(found) == list(range(len(shape)))[len(shape) - len(found) :]
    for mode, gram in found.items():
        assert_close(gram, gram_of_the_unfolding(x, mode), **TIGHT)


@given(shapes, st.randoms(use_true_random=False))
def test_products_on_different_modes_commute(shape: tuple[int, ...], random: object) -> None:
    x = decaying(shape, seed=1)
    matrices = {mode: decaying((size, 2), seed=mode) for mode, size in enumerate(shape)}
    orders = [list(matrices), random.sample(list(matrices), len(matrices))]
    results = []
    for order in orders:
        y = x
        for mode in order:
            y = mode_product(y, matrices[mode], mode)
        results.append(y)
    assert results[0].numel() == 2 ** len(shape)
    assert_close(*results, rtol=1e-10, atol=1e-10 * math.prod(shape))


@pytest.mark.parametrize("shape", [(9, 8, 4, 4), (9, 8, 8, 8), (70, 8, 8), (64, 4, 4), (3, 40, 7, 3, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_many_small_products(shape: tuple[int, ...], transposed: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    for mode, size in enumerate(shape):
        matrix = (
            torch.randn(3, size, dtype=torch.float64).T if transposed else torch.randn(size, 3, dtype=torch.float64)
        )
        expected = torch.tensordot(x, matrix, ([mode], [0])).movedim(-1, mode)
        found = mode_product(x, matrix, mode)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("rank", [3, 30])
def test_large_products_in_single_precision(mode: int, rank: int) -> None:
    x = decaying((4, 40, 32, 32), seed=1)
    matrix = decaying((x.shape[mode], rank), seed=2)
    exact = torch.tensordot(x, matrix, ([mode], [0])).movedim(-1, mode)
    core, factor = exact.float().contiguous(), matrix.float()
    assert_close(mode_product(x.float(), factor, mode).double(), exact, rtol=1e-4, atol=1e-4)
    total = torch.randn(x.shape)
    expected = total.double() + mode_product(core.double(), matrix.T, mode)
    modes.add_expanded(total, core, factor, mode)
    assert_close(total.double(), expected, rtol=1e-4, atol=1e-4)


def test_products_stay_in_the_graph_of_autograd() -> None:
    x = torch.randn(2, 40, 32, 32, requires_grad=True)
    mode_product(x, torch.ones(40, 3), 1).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, torch.full_like(x, 3.0))
