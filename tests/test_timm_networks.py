"""Real networks: at a lossless setting every parameter's gradient is the plain model's, and revert gives it back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import check_named
from tuckprop import HOSVD, convert, revert
from tuckprop.layers import Twin, all_twins, load_twins_for
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # timm imports it, and it does not import beside every build of torch.
timm = pytest.importorskip("timm")

# Names, and settings that let a network run on small images.
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {},
    "resnet18": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64},
    "vit_tiny_patch16_224": {"img_size": 64},
    "efficientnet_b0": {},
    "resnext50_32x4d": {},
    "densenet121": {},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=10, **NETWORKS[name]).double().train()


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and every parameter's gradient of one step, with the same dropout each time."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    model.zero_grad()
    torch.manual_seed(2)
    y = model(x)
    nn.functional.cross_entropy(y, torch.arange(2)).backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def furthest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative error of a gradient, and whose it is.

    Some parameters have no influence (a bias before a batch norm, the bias of attention's keys); their gradients are
    rounding errors. So an error also counts as small where it is 1e-15 of the gradient of the whole network.
    """
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    errors = {
        name: float((got[name] - g).norm() / torch.maximum(g.norm(), 1e-7 * whole)) for name, g in expected.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


SLOW = {"swin_tiny_patch4_window7_224", "resnext50_32x4d", "resnet18"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS])
def test_gradients_are_the_plain_ones_and_revert_restores_the_network(name: str) -> None:
    model = network(name)
    kinds, parameters = [type(m) for m in model.modules()], list(model.parameters())
    buffers = copy.deepcopy(model.state_dict())
    output, expected = step(model)
    for pointwise in (False, True):
        model.load_state_dict(buffers)
        convert(model, HOSVD(epsilon=1.0), pointwise=pointwise)
        assert sum(isinstance(m, Twin) for m in model.modules()) > 10
        got_output, got = step(model)
        assert torch.equal(got_output, output)
        assert set(got) == set(expected)
        error, worst = furthest(got, expected)
        assert error < 1e-8, (pointwise, worst)
        revert(model)
        assert [type(m) for m in model.modules()] == kinds
    model.load_state_dict(buffers)
    again_output, again = step(model)
    assert torch.equal(again_output, output)
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_every_twin_of_a_timm_layer_has_a_test_module_that_names_it() -> None:
    load_twins_for(timm.layers.BatchNormAct2d(1))
    found = {key[0].__name__: twin for key, twin in all_twins().items() if key[0].__module__.startswith("timm")}
    assert "BatchNormAct2d" in found
    for plain, twin in found.items():
        check_named(plain, twin.__module__)
