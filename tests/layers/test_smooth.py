"""Smooth activations: PyTorch's forward, a gradient of fitted levels times what comes in, k bits held."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.layers.pointwise import FLOATS, Step, assert_equal, held_bytes, layouts, twin
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.layers.smooth import DERIVATIVE_BITS, REACH, Smooth, level_code, silu
from tuckprop.linalg import bits
from tuckprop.linalg.levelcode import CELLS
from tuckprop.linalg.piecewise import derivative

OUT_OF_PLACE: list[nn.Module] = [
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(),
    nn.Softplus(2.0, 5.0), nn.LogSigmoid(), nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.CELU(), nn.CELU(2.0), nn.Softsign(),
    nn.Tanhshrink(),
]  # fmt: skip
IN_PLACE: list[nn.Module] = [
    nn.SiLU(inplace=True), nn.Mish(inplace=True), nn.Hardswish(inplace=True), nn.ELU(0.5, inplace=True),
    nn.SELU(inplace=True), nn.CELU(2.0, inplace=True),
]  # fmt: skip
each_module = pytest.mark.parametrize("module", OUT_OF_PLACE + IN_PLACE, ids=repr)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

# The docstring's table: largest rms and relative gradient error of all activations, for inputs from N(0, 1).
RELATIVE_ERROR = {1: 0.33, 2: 0.19, 4: 0.051, 8: 0.023}


def is_in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


def levels_at(module: nn.Module, x: Tensor, width: int = DERIVATIVE_BITS) -> Tensor:
    """Return the level that each element of `x` must get, by the definition: the mean of its cell's set."""
    plain = copy.deepcopy(module)
    if is_in_place(plain):
        plain.inplace = False
    slope = derivative(plain)
    code = level_code(Smooth(plain), width, torch.device("cpu"))
    centres = (torch.arange(CELLS, dtype=torch.float64) + 0.5) * (2 * REACH / CELLS) - REACH
    levels = torch.cat([v.clone() for _, v in code.decode(code.encode(centres), CELLS, torch.float64)])
    # A level is what its set of cells has on average, so it cannot be far outside of what a cell itself has.
    assert ((levels - slope(centres)).abs() < 0.8).all()
    # An edge belongs to the cell below it.
    cells = ((x.double().clamp(-REACH, REACH) + REACH) * (CELLS / (2 * REACH))).ceil().long() - 1
    return levels[cells.clamp_min(0)]


@each_module
@each_float
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "channels last", "strided", "expanded"])
def test_forward_is_exact_and_the_gradient_is_the_level_times_the_gradient(
    module: nn.Module, dtype: torch.dtype, layout: str
) -> None:
    x = layouts((3, 5, 7, 2), dtype)[layout]
    plain, converted = (Step(m, x, leaf=not is_in_place(module)) for m in (module, twin(module)))
    assert_equal(converted.output, plain.output)
    if is_in_place(module):
        assert converted.y is converted.given
    slope = Step(twin(module), x, leaf=not is_in_place(module), grad=torch.ones_like(x)).grad
    assert_equal(slope, levels_at(module, x).to(dtype))


@each_module
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_relative_gradient_error(module: nn.Module, width: int) -> None:
    x = torch.randn(40000, generator=torch.Generator().manual_seed(0))
    converted = twin(module)
    converted.derivative_bits = width
    plain, ours = (Step(m, x, leaf=not is_in_place(module)) for m in (module, converted))
    assert (ours.grad - plain.grad).norm() <= 1.05 * RELATIVE_ERROR[width] * plain.grad.norm()


@each_module
def test_no_bias_for_normal_inputs(module: nn.Module) -> None:
    x = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, ours = (
        Step(m, x, leaf=not is_in_place(module), grad=torch.ones_like(x)).grad for m in (module, twin(module))
    )
    error = ours - plain
    assert error.mean().abs() <= 5 * error.std() / len(x) ** 0.5


@pytest.mark.parametrize(("module", "jump"), [(nn.SELU(), 0.0), (nn.ELU(2.0), 0.0), (nn.Hardswish(), 3.0)], ids=repr)
def test_a_jump_of_the_derivative_lies_between_two_cells(module: nn.Module, jump: float) -> None:
    converted = twin(module)
    converted.derivative_bits = 8
    x = torch.tensor([jump - 0.02, jump + 0.02], dtype=torch.float64)
    plain, ours = (Step(m, x, grad=torch.ones(2, dtype=torch.float64)).grad for m in (module, converted))
    assert (plain - ours).abs().max() < 0.05
    assert (plain[0] - plain[1]).abs() > 0.4


def test_the_slope_at_zero_is_the_one_on_the_left_as_in_pytorch() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    plain, ours = (Step(m, x, grad=torch.ones(3, dtype=torch.float64)).grad for m in (nn.SELU(), twin(nn.SELU())))
    assert (plain - ours).abs().max() < 0.1


@each_module
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_bits_held(module: nn.Module, width: int) -> None:
    x = torch.randn(3, 5, 7)
    converted = twin(module)
    converted.derivative_bits = width
    assert held_bytes(converted, x, leaf=not is_in_place(module)) == -(-x.numel() * width // 8)
    assert held_bytes(module, x, leaf=not is_in_place(module)) >= x.nbytes


@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_any_shape(shape: list[int], data: st.DataObject) -> None:
    module = data.draw(st.sampled_from(OUT_OF_PLACE + IN_PLACE))
    x = torch.randn(shape)
    plain, ours = (Step(m, x, leaf=not is_in_place(module)) for m in (module, twin(module)))
    assert_equal(ours.output, plain.output)
    assert ours.grad.shape == x.shape


@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_several_slabs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(count)
    expected = Step(twin(nn.GELU()), x).grad
    monkeypatch.setattr(bits, "_CPU_SLAB", 64)
    assert_equal(Step(twin(nn.GELU()), x).grad, expected)


@each_module
def test_inputs_that_are_not_finite_give_the_plain_output(module: nn.Module) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38, -1e38, 0.0, -0.0])
    plain, ours = (Step(m, x, leaf=not is_in_place(module)) for m in (module, twin(module)))
    assert_equal(ours.output, plain.output)
    assert ours.grad.isfinite().all()


@each_module
def test_plain_without_gradients(module: nn.Module) -> None:
    x = torch.randn(2, 3)
    assert twin(module)(x).grad_fn is None
    with torch.no_grad():
        assert twin(module)(x.requires_grad_()).grad_fn is None


@pytest.mark.parametrize("module", IN_PLACE, ids=repr)
def test_in_place_on_a_leaf_is_refused_as_pytorch_does(module: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        twin(module)(torch.randn(5, requires_grad=True))


@each_module
def test_copies_and_pickles(module: nn.Module) -> None:
    converted = twin(module)
    converted.derivative_bits = 2
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert held_bytes(other, torch.randn(8), leaf=not is_in_place(module)) == 2


def test_backward_twice_and_second_derivatives() -> None:
    x = torch.randn(50, requires_grad=True)
    y = twin(nn.GELU())(x)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("width", [0, 3, 5, 16])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=r"expected one of \(1, 2, 4, 8\)"):
        silu(torch.randn(3, requires_grad=True), bits=width)


def test_a_code_is_fitted_once() -> None:
    one, other = (level_code(Smooth(F.gelu), 4, torch.device("cpu")) for _ in range(2))
    assert one is other


def test_autocast_does_not_change_the_code() -> None:
    level_code.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = level_code(Smooth(F.softplus), 4, torch.device("cpu"))
    level_code.cache_clear()
    outside = level_code(Smooth(F.softplus), 4, torch.device("cpu"))
    assert torch.equal(inside.levels, outside.levels)
    assert torch.equal(inside.pairs, outside.pairs)
