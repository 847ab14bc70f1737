"""The explained-variance threshold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuckprop.linalg.ranks import explained_variance_rank, read_ranks

energies = st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(lambda v: sorted(v, reverse=True))
epsilons = st.floats(1e-6, 1.0)


@given(energies, epsilons)
def test_it_is_the_first_count_that_reaches_the_share(values: list[float], epsilon: float) -> None:
    exact = torch.tensor(values, dtype=torch.float64)
    rank = int(explained_variance_rank(exact, epsilon))
    total = float(exact.cumsum(0)[-1])
    reached = [float(exact.cumsum(0)[k - 1]) >= epsilon * total for k in range(1, len(values) + 1)]
    assert rank == reached.index(True) + 1


@given(energies, epsilons, epsilons)
def test_it_never_falls_as_epsilon_grows(values: list[float], one: float, other: float) -> None:
    exact = torch.tensor(values, dtype=torch.float64)
    low, high = sorted((one, other))
    assert explained_variance_rank(exact, low) <= explained_variance_rank(exact, high)


@pytest.mark.parametrize(
    ("values", "epsilon", "rank"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0.4, 1),
        ([4.0, 3.0, 2.0, 1.0], 0.41, 2),
        ([4.0, 3.0, 2.0, 1.0], 0.7, 2),
        ([4.0, 3.0, 2.0, 1.0], 1.0, 4),
        ([1.0, 0.0, 0.0], 1.0, 1),
        ([0.0, 0.0, 0.0], 0.8, 1),
        ([5.0], 0.1, 1),
        ([1.0, 1.0, -1e-9], 1.0, 2),
    ],
)
def test_by_hand(values: list[float], epsilon: float, rank: int) -> None:
    found = explained_variance_rank(torch.tensor(values, dtype=torch.float64), epsilon)
    assert found.dtype == torch.int64
    assert found.shape == ()
    assert int(found) == rank


def test_ranks_are_read_wherever_they_are() -> None:
    assert read_ranks([3, torch.tensor(1), 4, torch.tensor(5)]) == [3, 1, 4, 5]
    assert read_ranks([2]) == [2]
    assert read_ranks([]) == []
