"""Batch norms put back into a folded MCUNet change nothing that it computes."""

import pytest
import torch
from torch import nn

from tuckprop.errors import ConfigError
from tuckprop.zoo.mcunet import MCUNet
from tuckprop.zoo.unfold import unfold


def folded() -> MCUNet:
    torch.manual_seed(0)
    return MCUNet(7, norm=False).double().eval()


def test_it_computes_the_same_with_filters_of_one_scale() -> None:
    images = [torch.randn(4, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    network = unfold(folded(), images)
    other = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(other), folded()(other), rtol=1e-9, atol=1e-9)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            norms = module.weight.flatten(1).norm(dim=1)
            torch.testing.assert_close(norms, torch.full_like(norms, 2**0.5))


def test_its_statistics_are_those_of_the_images() -> None:
    images = torch.randn(8, 3, 64, 64, dtype=torch.float64)
    network = unfold(folded(), images.split(3))
    assert network.first_conv_norm.running_mean is not None
    outputs = network.first_conv(images)
    torch.testing.assert_close(network.first_conv_norm.running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(network.first_conv_norm.running_var, outputs.var((0, 2, 3), correction=0))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="one batch of images"):
        unfold(folded(), [])
    with pytest.raises(ConfigError, match="norm=False"):
        unfold(MCUNet(7, norm=True), [])
