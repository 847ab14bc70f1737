"""Weight gradients in bfloat16, from cores and factors that are multiplied in single precision on a CPU."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tests.forcing import ROUTES, forced_route
from tuckprop import Subspace
from tuckprop.codecs import Packed
from tuckprop.codecs._half import HalfPacked
from tuckprop.layers._contraction import weight_gradient
from tuckprop.layers.conv import geometry_of
from tuckprop.layers.linear import weight_gradient as linear_gradient


def packed_of(shape: tuple[int, ...]) -> Packed:
    packed = Subspace(0.9).compress(decaying(shape, seed=0).bfloat16())
    assert isinstance(packed, HalfPacked)
    assert packed.dtype == torch.bfloat16
    return packed


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("chosen", ROUTES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_by_every_route(chosen: str, kernel: int) -> None:
    packed = packed_of((6, 24, 12, 12))
    grad, weight = noise(6, 10, 12, 12), noise(10, 24, kernel, kernel)
    geometry = geometry_of((kernel, kernel), 1, kernel // 2, 1)
    with forced_route(chosen):
        found = weight_gradient(packed, grad, weight, geometry)
    assert found.dtype == torch.bfloat16
    exact = torch.nn.grad.conv2d_weight(packed.dense().double(), weight.shape, grad.double(), padding=kernel // 2)
    assert_close(found.double(), exact, rtol=0.01, atol=0.01 * float(exact.abs().max()))


@pytest.mark.parametrize("shape", [(6, 30, 40), (200, 48)], ids=str)
def test_a_linear_layer(shape: tuple[int, ...]) -> None:
    packed = packed_of(shape)
    grad = noise(*shape[:-1], 20)
    found = linear_gradient(packed, grad)
    exact = grad.flatten(0, -2).double().T @ packed.dense().flatten(0, -2).double()
    assert_close(found.double(), exact, rtol=0.01, atol=0.01 * float(exact.abs().max()))


def test_a_network_under_autocast_learns_what_the_plain_one_does() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6(), nn.Conv2d(24, 24, 3, 2, 1, groups=24),
        nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.GroupNorm(4, 16), nn.Flatten(), nn.Linear(16 * 64, 5),
    )  # fmt: skip
    images = decaying((8, 3, 16, 16), seed=3).float()
    gradients = []
    for codec in (None, Subspace(0.98)):
        model = nn.Sequential(*plain)
        model.load_state_dict(plain.state_dict())
        model = model if codec is None else tuckprop.convert(model, codec, pointwise=True)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images).float().square().mean()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    one, other = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.98
