"""A standardised tensor that is not formed gives the products of the one that is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tuckprop.linalg.energy import Energy
from tuckprop.linalg.modes import mode_product
from tuckprop.linalg.standardised import Standardised
from tuckprop.linalg.tucker import project

# Axes along which shift and scale vary: as in a batch norm, a layer norm over the last axis, a group norm; and none.
VARYING = [(1,), (0, 1, 2), (0, 1), ()]


def made(shape: tuple[int, ...], varying: tuple[int, ...], seed: int) -> Standardised:
    generator = torch.Generator().manual_seed(seed)
    sizes = [n if axis in varying else 1 for axis, n in enumerate(shape)]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + 3
    shift = torch.randn(sizes, generator=generator, dtype=torch.float64)
    scale = torch.rand(sizes, generator=generator, dtype=torch.float64) + 0.5
    energy = Energy(((x - shift) * scale).square().sum())
    return Standardised(x, shift, scale, energy)


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    varying=st.sampled_from(VARYING),
    mode=st.integers(0, 3),
    rank=st.integers(1, 4),
    order=st.permutations(range(4)),
)
def test_mode_product(shape: tuple[int, ...], varying: tuple[int, ...], mode: int, rank: int, order: list[int]) -> None:
    source = made(shape, varying, seed=0).permute(order)
    source = Standardised(source.x.contiguous(), source.shift, source.scale, source.energy)
    before = source.x.clone()
    matrix = torch.randn(source.shape[mode], rank, dtype=torch.float64)
    assert_close(source.mode_product(matrix, mode), mode_product(source.dense(), matrix, mode))
    assert torch.equal(source.x, before)


@pytest.mark.parametrize("varying", VARYING)
@pytest.mark.parametrize("modes", [(), (1,), (0, 3), (0, 1, 2, 3)])
def test_project(varying: tuple[int, ...], modes: tuple[int, ...]) -> None:
    source = made((4, 5, 3, 6), varying, seed=1)
    factors = {mode: torch.linalg.qr(torch.randn(source.shape[mode], 2, dtype=torch.float64)).Q for mode in modes}
    assert_close(project(source, factors), project(source.dense(), factors))


@pytest.mark.parametrize("varying", VARYING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 3, 6), (8, 12, 16, 16)], ids=str)
def test_a_tensor_in_half_precision_is_read_as_the_same_in_single(
    varying: tuple[int, ...], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    whole = made(shape, varying, seed=2)
    half = Standardised(whole.x.to(dtype), whole.shift.float(), whole.scale.float(), whole.energy)
    single = Standardised(half.x.float(), half.shift, half.scale, whole.energy)
    assert half.dense().dtype == torch.float32
    assert torch.equal(half.dense(), single.dense())
    parts, expected = (torch.cat([part.clone() for part in one.parts(8)]) for one in (half, single))
    assert torch.equal(parts, expected)
    factors = {mode: torch.linalg.qr(torch.randn(shape[mode], 2)).Q for mode in range(4)}
    for mode, factor in factors.items():
        assert_close(half.mode_product(factor, mode), single.mode_product(factor, mode))
    assert_close(project(half, factors), project(single, factors))
