"""HOSVD in eight bits: what rounding adds to the error, what it saves, and that epsilon 1 rounds nothing."""

import copy

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tests.codecs.test_hosvd import decays, draw_tensor, epsilons, scales, seeds, shapes
from tuckprop import HOSVD, HOSVD8
from tuckprop.codecs.hosvd8 import EightBitPacked


@given(shapes, epsilons, seeds, decays, scales)
def test_each_kept_tensor_is_near_that_of_hosvd(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float
) -> None:
    x = draw_tensor(shape, seed, decay, scale, torch.float32)
    packed, exact = HOSVD8(epsilon).compress(x), HOSVD(epsilon).compress(x)
    assert isinstance(packed, EightBitPacked)
    assert (packed.shape, packed.paper_count()) == (exact.shape, exact.paper_count())
    for rounded, tensor in zip(packed.form.tensors(), exact.tensors(), strict=True):
        assert rounded.dtype == tensor.dtype
        bound = tensor.abs() / 16 + 3e-6 * tensor.abs().amax()
        assert bool(((rounded - tensor).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_it_holds_a_byte_an_element_and_a_scale_a_tensor(dtype: torch.dtype) -> None:
    x = decaying((6, 8, 9, 7), seed=3).to(dtype)
    packed, exact = HOSVD8(0.9).compress(x), HOSVD(0.9).compress(x)
    tensors = exact.tensors()
    assert packed.nbytes == sum(t.numel() for t in tensors) + len(tensors) * max(4, dtype.itemsize)
    assert packed.dense().dtype == dtype
    assert [t.dtype for t in packed.tensors()[:-1]] == [torch.float8_e4m3fn] * len(tensors)


@pytest.mark.parametrize("epsilon", [0.5, 0.8, 0.95])
def test_rounding_adds_little_to_the_error(epsilon: float) -> None:
    x = decaying((16, 24, 12, 12), seed=3, decay=0.8)
    errors = [float((codec.compress(x).dense() - x).norm() / x.norm()) for codec in (HOSVD(epsilon), HOSVD8(epsilon))]
    assert errors[1] ** 2 - errors[0] ** 2 < 0.06**2


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(4, 5, 6, 6)
    assert torch.equal(HOSVD8(0.9).compress(x).dense(), x)


def test_at_epsilon_one_gradients_are_the_plain_ones() -> None:
    assert HOSVD8(1.0).lossless
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    converted = tuckprop.convert(copy.deepcopy(plain), HOSVD8(1.0))
    x = decaying((4, 3, 8, 8), seed=1)
    for model in (plain, converted):
        model(x).square().sum().backward()
    for one, other in zip(plain.parameters(), converted.parameters(), strict=True):
        assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-10)


def test_two_layers_that_share_an_input_share_its_form() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x) * 0.5
            return self.left(x).sum() + self.right(x).sum()

    model = tuckprop.convert(Fork(), HOSVD8(0.9))
    x = decaying((8, 3, 16, 16), seed=1, dtype=torch.float32)
    storages: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float8_e4m3fn:
            storages.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x)
    assert storages
    assert len(storages) == 2 * len(set(storages))
    loss.backward()
