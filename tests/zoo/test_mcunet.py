"""MCUNet against the paper's numbers."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tuckprop
from tuckprop import zoo
from tuckprop.data import load
from tuckprop.memory import PaperCounter
from tuckprop.plan import choose_sites
from tuckprop.zoo.mcunet import MCUNet

BATCH = 128


def mebibytes(model: nn.Module, last: int, resolution: int = 224) -> float:
    """Return the paper's count for plain training of the last layers, at the paper's batch size."""
    model.train()
    with PaperCounter(model, choose_sites(model, last=last)) as counter:
        for module in model.modules():  # one image is enough for the count, but not for batch norm's statistics
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        model(torch.zeros(1, 3, resolution, resolution))
        return counter.take() * BATCH / 2**20


@pytest.mark.parametrize("norm", [False, True])
def test_size_is_the_papers(norm: bool) -> None:
    weights = [m.weight.numel() for m in MCUNet(10, norm=norm).modules() if isinstance(m, nn.Conv2d)]
    assert (len(weights), sum(weights)) == (42, 463_216)


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1, 13.781), (2, 27.562), (3, 29.859), (4, 39.047), (6, 50.53), (10, 76.95), (20, 208.6), (42, 1266.0)],
)
def test_activation_memory_is_the_papers(last: int, expected: float) -> None:
    assert mebibytes(zoo.build("mcunet_bn", 10), last) == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(
    ("name", "two", "four"),
    [("mobilenetv2", 30.63, 57.42), ("resnet18", 24.50, 61.25), ("resnet34", 24.50, 49.00), ("mcunet", 27.56, 39.05)],
)
def test_other_networks_have_the_papers_memory_too(name: str, two: float, four: float) -> None:
    model = zoo.build(name, 10)
    assert [mebibytes(model, last) for last in (2, 4)] == pytest.approx([two, four], abs=0.0051)


def test_layers_are_registered_in_the_order_they_run() -> None:
    # "The last k layers" counts by registration.
    model, ran = MCUNet(10), []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.register_forward_pre_hook(lambda _, __, name=name: ran.append(name))
    model.eval()(torch.zeros(1, 3, 64, 64))
    registered = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    assert ran == registered


def test_residuals_are_where_shapes_allow_them() -> None:
    blocks = MCUNet(10).blocks
    assert [number for number, block in enumerate(blocks) if block.residual] == [2, 4, 6, 8, 9, 11, 12]
    block = blocks[2].eval()
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        assert torch.equal(block(x), x)


def test_public_weights_tell_imagenets_dogs_from_its_trucks(shared_data: Path) -> None:
    model = zoo.build("mcunet", 1000)
    loaded = zoo.load_weights(model, shared_data / "mcunet-in1" / "model.safetensors")
    assert not loaded.fresh
    data = load(
        "cifar10", shared_data / "cifar10", seed=0, batch_size=200, resolution=128, val_size=200, train_size=200
    )
    images, labels = next(data.val.serve())
    with torch.no_grad():
        top = model.eval()(images).topk(5).indices
    # Images of 32 x 32 enlarged are far from ImageNet, so the classes are coarse: any breed of dog, anything on wheels.
    dog = ((top >= 151) & (top <= 268)).any(1).float()
    wheels = torch.isin(top, torch.tensor([555, 569, 609, 656, 660, 675, 717, 734, 757, 829, 864, 867])).any(1).float()
    dogs, trucks = (labels == data.classes.index(name) for name in ("dog", "truck"))
    assert dog[dogs].mean() > 0.6 > 3 * dog[trucks].mean()
    assert wheels[trucks].mean() > 0.6 > 3 * wheels[dogs].mean()


def test_arch_json_says_the_same(shared_data: Path) -> None:
    arch = json.loads((shared_data / "mcunet-in1" / "arch.json").read_text())
    blocks = [[unit for unit in (b["expand"], b["depthwise"], b["project"]) if unit] for b in arch["blocks"]]
    wanted = [arch["first_conv"], *itertools.chain(*blocks)]
    convolutions = [m for m in MCUNet(10, norm=False).modules() if isinstance(m, nn.Conv2d)]
    for unit, module in zip(wanted, convolutions, strict=True):
        found = (module.in_channels, module.out_channels, *module.kernel_size, *module.stride, module.groups)
        assert found == (
            unit["in_channels"], unit["out_channels"], unit["kernel_size"], unit["kernel_size"], unit["stride"],
            unit["stride"], unit["groups"],
        )  # fmt: skip
        assert module.padding == (unit["kernel_size"] // 2,) * 2


def test_gradient_filter_with_patches_of_2_counts_72_kibibytes_an_image_in_the_last_two() -> None:
    """Yang et al., CVPR 2023, Table 2, through the counter that runs use."""
    model = tuckprop.convert(zoo.build("mcunet", 10), tuckprop.GradientFilter(2), last=2)
    with PaperCounter(model) as counter:
        model(torch.randn(1, 3, 224, 224))
        assert counter.take() == 72 * 1024
