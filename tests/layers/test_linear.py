"""What is particular to Linear."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.cases import RandomTucker, decaying
from tests.layers.contract import TIGHT, Run
from tuckprop import HOSVD, SVD, Dense, convert
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.layers import linear
from tuckprop.layers.linear import weight_gradient


def test_one_vector_has_a_bias_gradient_too() -> None:
    layer = convert(nn.Linear(4, 3, dtype=torch.float64), HOSVD(0.8))
    x, grad = decaying((4,), seed=1), decaying((3,), seed=2)
    layer(x).backward(grad)
    assert torch.equal(layer.bias.grad, grad)
    assert_close(layer.weight.grad, torch.outer(grad, x), **TIGHT)


@pytest.mark.parametrize("leading", [(), (5,), (4, 5), (2, 3, 4), (2, 1, 3, 2)], ids=str)
def test_the_weight_gradient_of_any_leading_axes_is_that_of_them_flattened(leading: tuple[int, ...]) -> None:
    x, grad = decaying((*leading, 6), seed=1), decaying((*leading, 3), seed=2)
    packed = RandomTucker(0.6).compress(x)
    expected = grad.reshape(-1, 3).T @ packed.dense().reshape(-1, 6)
    assert_close(weight_gradient(packed, grad), expected, **TIGHT)


@pytest.mark.parametrize("rows", [300, 4096, 20_000])
@pytest.mark.parametrize("columns", [3, 16, 40])
def test_sums_over_many_rows_are_as_accurate_as_a_librarys(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grad, core = (torch.randn(rows, size, generator=generator) + 0.5 for size in (72, columns))
    factor = torch.linalg.qr(torch.randn(80, columns, generator=generator)).Q
    got = weight_gradient(TuckerPacked(core, {1: factor}, (0, columns)), grad)
    exact = grad.double().T @ core.double() @ factor.double().T
    assert got.is_contiguous()
    assert (got - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("shape", [(16, 64, 32), (4, 64, 8), (64, 2, 2)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_both_ways_to_the_gradient_are_the_same(
    shape: tuple[int, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With factors on the leading axes, or with them multiplied out: the cheaper is taken, neither is forced."""
    x, grad = decaying(shape, seed=1), decaying((*shape[:-1], 5), seed=2)
    packed = RandomTucker(share).compress(x)
    kept: list[tuple[int, ...]] = []
    original = TuckerPacked.partial

    def partial(self: TuckerPacked, keep: object) -> object:
        kept.append(tuple(keep))
        return original(self, keep)

    monkeypatch.setattr(TuckerPacked, "partial", partial)
    got = weight_gradient(packed, grad)
    assert kept
    monkeypatch.undo()
    assert_close(got, grad.reshape(-1, 5).T @ packed.dense().reshape(-1, shape[-1]), **TIGHT)


def test_empty_leading_axes() -> None:
    for codec in (Dense(), HOSVD(0.8), SVD(0.8)):
        run = Run(convert(nn.Linear(4, 3), codec), torch.zeros(2, 0, 4))
        assert run.y.shape == (2, 0, 3)
        assert torch.equal(run.weight, torch.zeros(3, 4))


def test_a_linear_layer_without_outputs() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(4, 0)
    run = Run(convert(layer, HOSVD(0.8)), torch.randn(5, 4))
    assert run.weight.shape == (0, 4)
    assert torch.equal(run.x.grad, torch.zeros(5, 4))


def test_the_legend_of_the_file_is_the_definition() -> None:
    """dW[o, i] = sum over l.. of G[l.., o] A[l.., i]."""
    assert "dW[o, i] = sum_{l..} G[l.., o] A[l.., i]" in (linear.__doc__ or "")
    a, g = decaying((3, 4, 5), seed=1), decaying((3, 4, 2), seed=2)
    packed = RandomTucker(1.0).compress(a)
    assert_close(weight_gradient(packed, g), torch.einsum("xyo,xyi->oi", g, a), **TIGHT)
