"""The fitted code is the best there is: against brute force, against the published optimum, and by its definition."""

from collections.abc import Callable
from itertools import combinations, pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tuckprop.errors import ConfigError
from tuckprop.linalg.piecewise import Cells, best_levels, best_runs, derivative, measure_cells, normal

# Table 1 of Novikov et al.: the integral of the squared error over [-10, 10], for 1 to 4 bits.
PUBLISHED: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "GELU": (F.gelu, [0.1410, 0.0406, 0.0119, 0.0031]),
    "SiLU": (F.silu, [0.2150, 0.0479, 0.0170, 0.0045]),
    "Sigmoid": (torch.sigmoid, [0.0181, 0.0038, 0.0009, 0.0002]),
    "Tanh": (torch.tanh, [0.1584, 0.0319, 0.0073, 0.0017]),
    "SELU": (F.selu, [0.2554, 0.1010, 0.0184, 0.0039]),
    "Softplus": (F.softplus, [0.2902, 0.0541, 0.0121, 0.0029]),
}
# Where the derivative is monotone, or even, there is nothing to gain over the published code.
NOTHING_TO_GAIN = {"Sigmoid", "Tanh", "Softplus"}


def uniform(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def cells_of(weights: list[float], values: list[float]) -> Cells:
    """Return cells on which the function is constant."""
    weight, value = torch.tensor(weights).double(), torch.tensor(values).double()
    weight = weight / weight.sum()
    return Cells(1.0, weight, weight * value, weight * value**2)


def error_of(cells: Cells, code: Tensor, count: int) -> float:
    """Return the squared error of the best levels for a given code, straight from the definition."""
    total = 0.0
    for number in range(count):
        chosen = code == number
        if chosen.any():
            weight, first, second = cells.weight[chosen], cells.first[chosen], cells.second[chosen]
            total += float(second.sum() - first.sum() ** 2 / weight.sum())
    return total


small_cells = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.floats(-2.0, 2.0, allow_subnormal=False)), min_size=2, max_size=7
).map(lambda pairs: cells_of([w for w, _ in pairs], [v for _, v in pairs]))


@given(small_cells, st.integers(1, 3))
def test_no_assignment_of_cells_to_levels_is_better(cells: Cells, count: int) -> None:
    n = len(cells.weight)
    count = min(count, n)
    found = best_levels(cells, count)
    best = min(error_of(cells, torch.tensor(code), count) for code in product(range(count), repeat=n))
    assert_close(error_of(cells, found.code, count), best, rtol=1e-9, atol=1e-12)
    assert_close(found.square_error, best, rtol=1e-9, atol=1e-12)


@given(small_cells, st.integers(1, 7))
def test_no_cut_into_runs_is_better(cells: Cells, count: int) -> None:
    n = len(cells.weight)
    count = min(count, n)

    def error(starts: tuple[int, ...]) -> float:
        code = torch.zeros(n, dtype=torch.int64)
        for number, (start, stop) in enumerate(pairwise((*starts, n))):
            code[start:stop] = number
        return error_of(cells, code, count)

    found = tuple(best_runs(cells, count))
    assert len(found) == count
    best = min(error((0, *cuts)) for cuts in combinations(range(1, n), count - 1))
    assert_close(error(found), best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_never_worse_than_the_published_optimum(name: str) -> None:
    function, published = PUBLISHED[name]
    cells = measure_cells(derivative(function), uniform, 10.0, 1000)
    ours = [20 * best_levels(cells, 1 << bits).square_error for bits in (1, 2, 3, 4)]
    for value, expected in zip(ours, published, strict=True):
        assert value <= expected + 1e-4
    if name in NOTHING_TO_GAIN:
        assert_close(ours, published, rtol=0, atol=1.01e-4)


@pytest.mark.parametrize("name", ["GELU", "SiLU", "SELU", "Softplus"])
def test_runs_in_the_order_of_x_are_the_published_code(name: str) -> None:
    function, published = PUBLISHED[name]
    cells = measure_cells(derivative(function), uniform, 10.0, 1000)
    for bits, expected in zip((1, 2, 3, 4), published, strict=True):
        code = torch.zeros(1000, dtype=torch.int64)
        code[best_runs(cells, 1 << bits)[1:]] = 1
        assert_close(20 * error_of(cells, code.cumsum(0), 1 << bits), expected, rtol=0, atol=2e-4)


def test_levels_are_the_means_of_their_sets_and_have_no_bias() -> None:
    cells = measure_cells(derivative(F.gelu), normal, 6.0, 256)
    found = best_levels(cells, 16)
    for number, level in enumerate(found.levels.tolist()):
        chosen = found.code == number
        assert_close(level, float(cells.first[chosen].sum() / cells.weight[chosen].sum()))
    assert_close(float((cells.weight * found.levels[found.code]).sum()), float(cells.first.sum()))


def test_moments_are_integrals() -> None:
    cells = measure_cells(lambda x: x, normal, 8.0, 64)
    assert_close(float(cells.weight.sum()), 1.0)
    assert_close(float(cells.first.sum()), 0.0, atol=1e-12, rtol=0)
    assert_close(float(cells.second.sum()), 1.0, atol=1e-9, rtol=0)


def test_more_levels_never_hurt_and_as_many_as_cells_are_the_best() -> None:
    cells = measure_cells(derivative(F.silu), normal, 6.0, 64)
    errors = [best_levels(cells, count).square_error for count in (1, 2, 4, 8, 16, 32, 64)]
    assert errors == sorted(errors, reverse=True)


def test_the_same_fit_each_time() -> None:
    fits = [best_levels(measure_cells(derivative(F.mish), normal, 6.0, 256), 16) for _ in range(2)]
    assert torch.equal(fits[0].code, fits[1].code)
    assert torch.equal(fits[0].levels, fits[1].levels)


@pytest.mark.parametrize("count", [0, -1, 9])
def test_an_impossible_number_of_levels_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 8 levels"):
        best_levels(measure_cells(torch.tanh, normal, 4.0, 8), count)
