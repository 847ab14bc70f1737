"""HOSVD on plain tensors, and the choice of the modes to factor."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.cases import decaying
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.modes import expand
from tuckprop.linalg.tucker import hosvd, measured_project, modes_worth_factoring, project

sizes_and_ranks = st.lists(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), min_size=1, max_size=5
)


def elements(pairs: list[tuple[int, int]], chosen: tuple[bool, ...]) -> int:
    core = math.prod(k if take else n for (n, k), take in zip(pairs, chosen, strict=True))
    return core + sum(n * k for (n, k), take in zip(pairs, chosen, strict=True) if take)


@given(sizes_and_ranks)
def test_no_other_choice_of_modes_takes_fewer_elements(pairs: list[tuple[int, int]]) -> None:
    shape, ranks = zip(*pairs, strict=True)
    chosen = modes_worth_factoring(shape, ranks)
    assert list(chosen) == sorted(set(chosen))
    assert all(ranks[mode] < shape[mode] for mode in chosen)
    taken = elements(pairs, tuple(mode in chosen for mode in range(len(pairs))))
    assert taken == min(elements(pairs, choice) for choice in product([False, True], repeat=len(pairs)))


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    st.lists(st.floats(0.1, 1.0), min_size=4, max_size=4),
)
def test_each_mode_has_its_own_threshold(shape: tuple[int, ...], epsilons: list[float]) -> None:
    x = decaying(shape, seed=1)
    core, factors, ranks = hosvd(x, epsilons[: len(shape)])
    again = core
    for mode, factor in factors.items():
        assert factor.shape == (shape[mode], ranks[mode])
        again = expand(again, factor, mode)
    lost = sum(1 - epsilon for epsilon in epsilons[: len(shape)])
    assert (x - again).norm() <= math.sqrt(lost + 1e-12) * x.norm()
    # Orthonormal factors: the error can be read off the core.
    assert_close((x - again).square().sum(), x.square().sum() - core.square().sum(), rtol=1e-8, atol=1e-8)


def test_project_is_the_same_in_any_order() -> None:
    x = decaying((4, 5, 6), seed=1)
    factors = {0: decaying((4, 4), seed=2), 1: decaying((5, 1), seed=3), 2: decaying((6, 3), seed=4)}
    expected = torch.einsum("abc,ai,bj,ck->ijk", x, factors[0], factors[1], factors[2])
    assert_close(project(x, factors), expected, rtol=1e-12, atol=1e-12)
    assert project(x, {}) is x


@given(
    st.sampled_from([(8, 12, 16, 16), (8, 12, 8, 8), (8, 40, 40), (3, 5, 7), (64, 130)]),
    st.sets(st.integers(0, 3)),
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_measured_project_is_project_and_the_energy(
    shape: tuple[int, ...], modes: set[int], rank: int, dtype: torch.dtype
) -> None:
    x = decaying(shape, seed=1, dtype=dtype)
    factors = {mode: decaying((shape[mode], rank), seed=mode, dtype=dtype) for mode in modes if mode < len(shape)}
    core, energy, kept = measured_project(x, factors, dtype)
    assert torch.equal(core, project(x, factors))
    assert kept == pytest.approx(float(core.double().square().sum()), rel=1e-5)
    assert energy == pytest.approx(float(x.double().square().sum()), rel=1e-5)


@given(
    st.sampled_from([(8, 12, 16, 16), (8, 12, 8, 8), (3, 7, 5, 33), (8, 40, 40), (3, 5, 7), (64, 130)]),
    st.sets(st.integers(0, 3)),
    st.integers(1, 6),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_a_tensor_in_half_precision_is_read_as_the_same_in_single(
    shape: tuple[int, ...], modes: set[int], rank: int, dtype: torch.dtype
) -> None:
    x = decaying(shape, seed=1).to(dtype)
    factors = {m: decaying((shape[m], rank), seed=m, dtype=torch.float32) for m in modes if m < len(shape)}
    core, energy, _ = measured_project(x, factors, torch.float32)
    assert core.dtype == torch.float32
    assert torch.equal(core, project(x.float(), factors))
    assert energy == pytest.approx(float(x.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = torch.ones(3, 4, 5)
    x[1, 2, 3] = value
    with pytest.raises(NotFactorableError):
        hosvd(x, [0.8, 0.8, 0.8])


def test_a_single_element_has_rank_one_and_no_factor() -> None:
    core, factors, ranks = hosvd(torch.full((1, 1, 1), 3.0), [0.8] * 3)
    assert (float(core), factors, ranks) == (3.0, {}, (1, 1, 1))
