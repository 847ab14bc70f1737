"""Products in one call of a kernel are those of a library, one after the other."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.cases import decaying
from tests.native.compiler import needs_compiler
from tuckprop.linalg import chained
from tuckprop.linalg.chained import Groups, contracted, expand_each
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.modes import expand, mode_product
from tuckprop.linalg.standardised import Standardised

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int, transposed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if transposed:
        return torch.randn(columns, rows, generator=generator).to(dtype).T
    return torch.randn(rows, columns, generator=generator).to(dtype)


def exactly(x: Tensor, matrices: dict[int, Tensor]) -> Tensor:
    for mode, one in matrices.items():
        x = mode_product(x.double(), one.double(), mode)
    return x


def near(found: Tensor, expected: Tensor, terms: int = 1) -> None:
    """Compare to rounding, beside the largest element of sums of so many terms."""
    scale = float(expected.abs().amax()) if expected.numel() else 1.0
    assert_close(found.double(), expected, rtol=0, atol=1e-6 * terms * max(scale, 1e-3))


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[int, tuple[int, torch.dtype, bool]], Groups]:
    """Draw a shape, by mode a rank, a dtype and a layout, and an order of modes, some in pairs of neighbours."""
    shape = draw(SHAPES)
    modes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    sides = {mode: (draw(st.integers(1, 9)), draw(DTYPES), draw(st.booleans())) for mode in modes}
    groups: list[tuple[int, ...]] = []
    left = list(modes)
    while left:
        mode = left.pop(0)
        if mode + 1 in left and draw(st.booleans()):
            left.remove(mode + 1)
            groups.append((mode, mode + 1))
        else:
            groups.append((mode,))
    return shape, sides, tuple(groups)


@needs_compiler
@given(chains(), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_any_products(
    drawn: tuple[tuple[int, ...], dict[int, tuple[int, torch.dtype, bool]], Groups], dtype: torch.dtype, measures: bool
) -> None:
    shape, sides, groups = drawn
    x = decaying(shape, seed=1).to(dtype)
    matrices = {mode: matrix(shape[mode], rank, kind, mode, flip) for mode, (rank, kind, flip) in sides.items()}
    with torch.no_grad():
        found = contracted(x, matrices, groups, measures)
    assert found is not None
    expected = exactly(x, matrices)
    assert found.core.shape == expected.shape
    near(found.core, expected, 10)
    if not measures:
        assert (found.energy, found.kept) == (0, 0)
        return
    assert found.energy == pytest.approx(float(x.double().square().sum()), rel=1e-5)
    assert found.kept == pytest.approx(float(found.core.double().square().sum()), rel=1e-5)


@needs_compiler
@pytest.mark.parametrize("shape", [(4, 96, 32, 32), (4, 40, 7, 7), (3, 160, 4, 4), (2, 64, 50), (200, 65)])
def test_sizes_of_layers(shape: tuple[int, ...]) -> None:
    x = decaying(shape, seed=1).float()
    for modes in (m for count in (1, 2, 3) for m in combinations(range(len(shape)), count)):
        matrices = {mode: matrix(shape[mode], 1 + shape[mode] // 3, torch.float16, mode, False) for mode in modes}
        with torch.no_grad():
            found = contracted(x, matrices, tuple((mode,) for mode in modes))
        assert found is not None
        near(found.core, exactly(x, matrices), 20)


@needs_compiler
@given(
    SHAPES, st.data(), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([torch.float32, torch.float16])
)
def test_a_standardised_tensor_is_not_formed(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, kind: torch.dtype
) -> None:
    axis = data.draw(st.sampled_from(range(len(shape))))
    modes = data.draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    x = decaying(shape, seed=1).to(dtype)
    ones = [shape[axis] if place == axis else 1 for place in range(len(shape))]
    generator = torch.Generator().manual_seed(3)
    shift, scale = torch.randn(ones, generator=generator), torch.rand(ones, generator=generator) + 0.5
    source = Standardised(x, shift, scale, Energy.of(x.float()))
    matrices = {mode: matrix(shape[mode], 1 + shape[mode] // 2, kind, mode, False) for mode in modes}
    with torch.no_grad():
        found = contracted(source, matrices, tuple((mode,) for mode in modes), measures=True)
    if shape[axis] == 1:
        assert found is None
        return
    assert found is not None
    near(found.core, exactly((x.double() - shift) * scale, matrices), 30)
    assert found.kept == pytest.approx(float(found.core.double().square().sum()), rel=1e-5)


@needs_compiler
@pytest.mark.parametrize("kind", ["one number for all", "every second number"])
def test_shift_and_scale_may_lie_anywhere(kind: str) -> None:
    x = decaying((3, 7, 4, 9), seed=1).float()
    if kind == "one number for all":
        shift, scale = torch.tensor([0.5]).expand(1, 7, 1, 1), torch.tensor([2.0]).expand(1, 7, 1, 1)
    else:
        shift, scale = (torch.arange(14.0).view(1, 7, 2)[..., place : place + 1, None] for place in (0, 1))
    source = Standardised(x, shift, scale, Energy.of(x))
    matrices = {mode: matrix(x.shape[mode], 3, torch.float32, mode, False) for mode in (1, 2, 3)}
    with torch.no_grad():
        found = contracted(source, matrices, ((1,), (2, 3)))
    assert found is not None
    near(found.core, exactly((x.double() - shift) * scale, matrices), 30)
    rows = source.rows()
    assert rows is not None
    assert torch.equal(rows.shift, shift.flatten())
    assert torch.equal(rows.scale, scale.flatten())
    assert rows.shift.is_contiguous()


@needs_compiler
def test_any_number_of_threads_gives_the_same() -> None:
    x = decaying((8, 40, 31, 30), seed=1).float()
    matrices = {mode: matrix(x.shape[mode], 5, torch.float16, mode, False) for mode in (1, 2, 3)}
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append(contracted(x, matrices, ((1,), (2, 3)), measures=True))
    finally:
        torch.set_num_threads(threads)
    one, two = found
    assert one is not None
    assert two is not None
    assert torch.equal(one.core, two.core)
    assert (one.energy, one.kept) == (two.energy, two.kept)


@needs_compiler
def test_float16_of_every_kind_is_read_as_it_is() -> None:
    """Subnormal numbers, infinite ones and NaN too."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    column = bits.view(torch.float16)[None]
    with torch.no_grad():
        found = contracted(torch.ones(1, 1), {1: column}, ((1,),))
    assert found is not None
    assert_close(found.core, column.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("x", "one"),
    [
        (torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 2)),
        (torch.randn(3, 4), torch.randn(4, 2, dtype=torch.float64)),
        (torch.randn(4, 3).T, torch.randn(4, 2)),
        (torch.randn(1 << 12, 300), torch.randn(300, 200)),
    ],
    ids=["double", "a double matrix", "not contiguous", "large"],
)
def test_what_is_a_librarys(x: Tensor, one: Tensor) -> None:
    with torch.no_grad():
        assert contracted(x, {1: one}, ((1,),)) is None


def test_gradients_are_a_librarys() -> None:
    assert contracted(torch.randn(3, 4), {1: torch.randn(4, 2)}, ((1,),)) is None


@given(SHAPES, st.data(), st.booleans())
def test_expand_each_is_expand_one_after_the_other(shape: tuple[int, ...], data: st.DataObject, native: bool) -> None:
    axes = data.draw(st.sets(st.sampled_from(range(len(shape)))))
    core = decaying(shape, seed=1).to(torch.bfloat16)
    factors = {axis: matrix(2 * shape[axis], shape[axis], torch.float16, axis, False) for axis in axes}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(chained, "contracted", lambda *_: None)
        found = expand_each(core, factors, torch.float32)
    assert found.dtype == torch.float32
    expected = core.double()
    for axis, factor in factors.items():
        expected = expand(expected, factor.double(), axis)
    near(found, expected, 10)
