"""Bases that remember: the energy of the tensor at hand is kept, and the next tensor is served better."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuckprop.linalg.modes import mode_product
from tuckprop.linalg.remembered import Remembered, remembering, remembering_each, remembering_within

Find = Callable[[Tensor, int, float, float, Remembered | None], Remembered | None]
FINDERS = pytest.mark.parametrize("find", [remembering, remembering_within])


def energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def kept(x: Tensor, basis: Tensor, mode: int) -> float:
    return energy(mode_product(x, basis, mode)) / energy(x)


def low_rank(size: int, samples: int, rank: int, noise: float, seed: int) -> Tensor:
    """Return [samples, size]: one subspace for every seed, and noise."""
    directions = torch.randn(rank, size, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, rank, generator=generator) @ directions + noise * torch.randn(
        samples, size, generator=generator
    )


@FINDERS
@given(
    shape=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    data=st.data(),
    epsilon=st.floats(0.3, 0.98),
    seed=st.integers(0, 99),
)
def test_this_tensor_keeps_its_share(
    find: Find, shape: list[int], data: st.DataObject, epsilon: float, seed: int
) -> None:
    mode = data.draw(st.integers(0, len(shape) - 1))
    generator = torch.Generator().manual_seed(seed)
    before = None
    for _ in range(3):
        x = torch.randn(shape, generator=generator)
        found = find(x, mode, epsilon, energy(x), before)
        if found is None:  # A block of what is known and a few columns need not reach it: the caller goes another way.
            assert find is remembering_within
            continue
        rank = found.basis.shape[1]
        torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(rank), atol=1e-4, rtol=0)
        assert kept(x, found.basis, mode) >= epsilon - 1e-4
        assert len(found.shares) == rank
        assert float(found.shares.sum()) <= 1 + 1e-4
        before = found


@FINDERS
def test_the_first_basis_is_the_least(find: Find) -> None:
    x = low_rank(40, 300, 3, 0.01, 0)
    found = find(x, 1, 0.9, energy(x), None)
    assert found is not None
    energies = torch.linalg.svdvals(x).square()
    least = int((energies.cumsum(0) < 0.9 * energies.sum()).sum()) + 1
    assert found.basis.shape[1] == least


@FINDERS
def test_what_was_seen_serves_the_next(find: Find) -> None:
    before = None
    for seed in range(12):
        x = low_rank(60, 6, 12, 0.3, seed)
        before = find(x, 1, 0.9, energy(x), before)
        assert before is not None
    alone = find(low_rank(60, 6, 12, 0.3, 11), 1, 0.9, energy(low_rank(60, 6, 12, 0.3, 11)), None)
    assert alone is not None
    for seed in range(100, 105):
        unseen = low_rank(60, 6, 12, 0.3, seed)
        assert kept(unseen, before.basis, 1) > kept(unseen, alone.basis, 1)


@FINDERS
def test_the_past_fades(find: Find) -> None:
    old, new = (
        low_rank(30, 200, 2, 0.0, 0),
        torch.randn(200, 2, generator=torch.Generator().manual_seed(1)) @ torch.eye(30)[:2],
    )
    before = find(old, 1, 0.95, energy(old), None)
    for _ in range(12):
        before = find(new, 1, 0.95, energy(new), before)
    assert before is not None
    assert before.basis.shape[1] == 2
    assert kept(new, before.basis, 1) > 0.999


@given(
    shape=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    epsilon=st.floats(0.3, 0.98),
    room=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_several_modes_at_once_are_one_after_the_other(
    shape: list[int], epsilon: float, room: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    before: dict[int, Remembered | None] = dict.fromkeys(range(len(shape)))
    for x in (first, second):
        together = remembering_each(x, epsilon, energy(x), before, room)
        for mode, known in before.items():
            alone, found = remembering(x, mode, epsilon, energy(x), known, room), together[mode]
            assert (found is None) == (alone is None)
            if found is not None and alone is not None:
                assert found.needed == alone.needed
                assert found.basis.shape == alone.basis.shape
                torch.testing.assert_close(found.basis @ found.basis.T, alone.basis @ alone.basis.T)
                torch.testing.assert_close(found.shares, alone.shares)
        before = together
