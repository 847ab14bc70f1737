"""Encoding finds the cell that arithmetic finds, decoding gives its level, for every width, size and type."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tuckprop.errors import ConfigError
from tuckprop.linalg import bits
from tuckprop.linalg.levelcode import CELLS, LevelCode
from tuckprop.linalg.piecewise import Levels, best_levels, derivative, measure_cells, normal

CPU = torch.device("cpu")
WIDTHS = [1, 2, 4, 8]
each_width = pytest.mark.parametrize("width", WIDTHS)


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_CPU_SLAB", 64)


def levels_for(width: int) -> Levels:
    return best_levels(measure_cells(derivative(F.gelu), normal, 6.0, CELLS), 1 << width)


def decoded(code: LevelCode, packed: Tensor, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    pieces = [values.clone() for _, values in code.decode(packed, count, dtype)]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=dtype)


@each_width
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 63, 64, 65, 131])
def test_each_element_gets_the_level_of_its_cell(count: int, width: int) -> None:
    levels = levels_for(width)
    code = LevelCode.of(levels, width, CPU)
    cells = torch.randint(0, CELLS, (count,))
    x = (cells + 0.2 + 0.6 * torch.rand(count)) * (12.0 / CELLS) - 6.0
    packed = code.encode(x)
    assert packed.shape == (-(-count * width // 8),)
    assert torch.equal(decoded(code, packed, count), levels.levels[levels.code[cells]])


@each_width
def test_beyond_the_reach_the_outermost_levels_hold(width: int) -> None:
    levels = levels_for(width)
    code = LevelCode.of(levels, width, CPU)
    x = torch.tensor([-6.0, -7.0, -1e30, -torch.inf, 6.0, 7.0, 1e30, torch.inf])
    expected = levels.levels[levels.code[[0, 0, 0, 0, -1, -1, -1, -1]]]
    assert torch.equal(decoded(code, code.encode(x), 8), expected)


@each_width
def test_nan_gets_some_level(width: int) -> None:
    code = LevelCode.of(levels_for(width), width, CPU)
    assert decoded(code, code.encode(torch.tensor([torch.nan, -torch.nan, 1.0])), 3).isfinite().all()


def test_zero_is_on_the_left() -> None:
    levels = levels_for(8)
    code = LevelCode.of(levels, 8, CPU)
    left, right = levels.levels[levels.code[CELLS // 2 - 1]], levels.levels[levels.code[CELLS // 2]]
    assert decoded(code, code.encode(torch.tensor([0.0, -0.0, 1e-3])), 3).tolist() == [left, left, right]


@each_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_type_encodes_and_decodes(width: int, dtype: torch.dtype) -> None:
    levels = levels_for(width)
    code = LevelCode.of(levels, width, CPU)
    x = torch.randn(150).to(dtype)
    packed = code.encode(x)
    assert torch.equal(packed, code.encode(x.double()))
    assert torch.equal(decoded(code, packed, 150, dtype), decoded(code, packed, 150).to(dtype))


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 3 bits"):
        LevelCode.of(levels_for(2), 3, CPU)
    with pytest.raises(ConfigError, match="16 levels"):
        LevelCode.of(levels_for(4), 2, CPU)
