"""Segmentation networks: their outputs, their shapes inside, and that converting them keeps their gradients."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.zoo.test_build import SEGMENTERS
from tuckprop import HOSVD, convert, zoo
from tuckprop.errors import ConfigError
from tuckprop.layers import Twin

NAMES = sorted(SEGMENTERS)
# The paper's tables have no FCN on MobileNetV2.
PAPER = [name for name in NAMES if name != "fcn_m"]


@pytest.mark.parametrize(("name", "side"), [(name, 64) for name in NAMES] + [("pspnet_r18", 50), ("upernet_r18", 71)])
def test_every_pixel_gets_its_scores(name: str, side: int) -> None:
    model = zoo.build(name, 7).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, side, side + 8)).shape == (1, 7, side, side + 8)


@pytest.mark.parametrize("name", ["fcn_r18", "pspnet_m"])
def test_grey_images_will_do(name: str) -> None:
    with torch.no_grad():
        assert zoo.build(name, 2, 1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


# Channels and size of the inputs, in order, for an image of 64 x 64.
LAST_5 = {
    "pspnet_r18": [(1024, 8)],
    "pspnet_m": [(2368, 8)],
    "deeplabv3_r18": [(512, 8)] * 4 + [(640, 8)],
    "deeplabv3_m": [(320, 8)] * 4 + [(2560, 8)],
    "fcn_r18": [(512, 8), (512, 8), (512, 8), (128, 8), (640, 8)],
    "upernet_r18": [(2560, 2), (512, 4), (512, 8), (512, 16), (2048, 16)],
}
COMPRESSED_OF_10 = dict(zip(PAPER, (9, 9, 10, 6, 5, 8), strict=True))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_layers_are_convolutions_with_inputs_of_the_papers_shape(name: str) -> None:
    model = zoo.build(name, 3).eval()
    modules = dict(model.named_modules())
    shapes = []
    for layer in zoo.paper_layers(name, 5):
        modules[layer].register_forward_pre_hook(
            lambda module, args: shapes.append((args[0].shape[1], args[0].shape[2]))
        )
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert shapes == LAST_5[name]
    convolutions = [layer for layer, module in modules.items() if isinstance(module, nn.Conv2d)]
    ten = zoo.paper_layers(name, 10)
    assert len(ten) == COMPRESSED_OF_10[name]
    assert set(zoo.paper_layers(name, 5)) <= set(ten)
    assert [layer for layer in convolutions if layer in ten] == list(ten)


def test_the_paper_has_no_other_networks_and_depths() -> None:
    with pytest.raises(ConfigError, match="pspnet_r18"):
        zoo.paper_layers("mcunet", 5)
    with pytest.raises(ConfigError, match="5 or 10"):
        zoo.paper_layers("pspnet_r18", 7)
    with pytest.raises(ConfigError, match="pspnet_r18"):
        zoo.paper_trained("mcunet", 5)


# Side of the patch, by the side of the input and in the order of the layers.
PATCHES_10 = {
    "pspnet_r18": [4] * 5,
    "pspnet_m": [4] * 6,
    "deeplabv3_r18": [2] * 4 + [3, 3, 6, 9, 3],
    "deeplabv3_m": [3] * 4 + [3, 3, 6, 9, 3],
    "fcn_r18": [2] * 10,
    "upernet_r18": [2, 2, 4, 8, 2, 4, 8, 8],
}


@pytest.mark.parametrize("name", PAPER)
def test_gradient_filters_patches_are_the_published_ones(name: str) -> None:
    assert zoo.paper_patches(name, 10) == dict(zip(zoo.paper_layers(name, 10), PATCHES_10[name], strict=True))
    five = zoo.paper_patches(name, 5)
    assert five.keys() == set(zoo.paper_layers(name, 5))
    # FCN alone has other patches where less is trained.
    expected = dict.fromkeys(five, 4) if name == "fcn_r18" else {n: zoo.paper_patches(name, 10)[n] for n in five}
    assert five == expected


def test_upernets_patches_grow_with_the_map() -> None:
    model, sides = zoo.build("upernet_r18", 3).eval(), {}
    for layer in zoo.paper_layers("upernet_r18", 10):
        hook = lambda module, args, layer=layer: sides.update({layer: args[0].shape[-1]})  # noqa: E731
        model.get_submodule(layer).register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    pyramid = {layer: patch for layer, patch in zoo.paper_patches("upernet_r18", 10).items() if "psp" not in layer}
    assert {sides[layer] / patch for layer, patch in pyramid.items()} == {2.0}


# Convolutions that are trained beside the compressed ones and the classifier.
UNCOUNTED = {
    ("pspnet_r18", 5): 4, ("pspnet_r18", 10): 5, ("pspnet_m", 5): 4, ("pspnet_m", 10): 4,
    ("deeplabv3_m", 10): 1, ("upernet_r18", 10): 2,
}  # fmt: skip


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("name", PAPER)
def test_the_paper_trains_what_it_compresses_and_little_else(name: str, count: int) -> None:
    model = zoo.build(name, 3)
    trained = zoo.paper_trained(name, count)
    assert all(model.get_submodule(part) for part in trained)
    within = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and any(f"{layer}.".startswith(f"{part}.") for part in trained)
    ]
    layers = set(zoo.paper_layers(name, count))
    assert layers | {"classifier"} <= set(within)
    assert len(within) == len(layers) + 1 + UNCOUNTED.get((name, count), 0)


@pytest.mark.parametrize(
    ("name", "fuse", "inputs", "outputs"),
    [
        ("pspnet_r18", "decoder.conv.0", 512 + 4 * 128, 128),
        ("pspnet_m", "decoder.conv.0", 320 + 4 * 512, 512),
        ("deeplabv3_r18", "decoder.aspp.project.0", 5 * 128, 128),
        ("deeplabv3_m", "decoder.aspp.project.0", 5 * 512, 512),
    ],
)
def test_the_pyramid_is_fused_as_in_the_paper(name: str, fuse: str, inputs: int, outputs: int) -> None:
    model = zoo.build(name, 3)
    layer = model.get_submodule(fuse)
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.shape == (outputs, inputs, 3, 3)
    assert layer.padding == (1, 1)
    # As the library begins its other convolutions: uniform, with the variance of Kaiming's rule for ReLU.
    assert layer.weight.std().item() == pytest.approx((2 / (9 * inputs)) ** 0.5, rel=0.02)
    convolutions = [part for part, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions[-2:] == [fuse, "classifier"]


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs and gradients in train mode with batch norms in eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    outputs = model(images)
    masks = torch.arange(64).expand(len(images), 64, 64) // 22
    F.cross_entropy(outputs, masks).backward()
    return outputs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_network_has_the_same_outputs_and_finite_gradients(name: str) -> None:
    model, images = zoo.build(name, 3), torch.randn(2, 3, 64, 64)
    plain, expected = gradients(copy.deepcopy(model), images)
    outputs, found = gradients(convert(model, HOSVD(epsilon=0.8)), images)
    assert_close(outputs, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    assert found.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    heads = zoo.paper_layers(name, 5) if name in PAPER else ("decoder.convs.0.0", "decoder.conv_cat.0")
    compressed = [f"{layer}.weight" for layer in heads]
    assert any(not torch.equal(found[key], expected[key]) for key in compressed)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("name", NAMES)
def test_with_everything_kept_all_gradients_are_plains(name: str) -> None:
    model, images = zoo.build(name, 3).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    _, expected = gradients(copy.deepcopy(model), images)
    assert expected.keys() == dict(model.named_parameters()).keys()
    _, found = gradients(convert(model, HOSVD(epsilon=1.0)), images)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-9 * gradient.norm(), key


def test_weights_of_other_classes_leave_the_classifier_fresh(tmp_path: Path) -> None:
    theirs, ours = zoo.build("fcn_r18", 5), zoo.build("fcn_r18", 2)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    assert zoo.load_weights(ours, tmp_path / "w.pt").fresh == ("classifier.weight", "classifier.bias")
    assert torch.equal(ours.decoder.conv_cat[0].weight, theirs.decoder.conv_cat[0].weight)


def test_the_papers_layers_alone_can_be_compressed_and_what_is_before_them_frozen() -> None:
    # The paper trains the four convolutions after PSPNet's pools uncompressed; the classifier is the sixth.
    model = convert(zoo.build("pspnet_r18", 3), dict.fromkeys(zoo.paper_layers("pspnet_r18", 5), HOSVD()), last=6)
    _, found = gradients(model, torch.randn(1, 3, 64, 64))
    weights = [key for key in found if isinstance(model.get_submodule(key.rpartition(".")[0]), nn.Conv2d)]
    names = [key for key in weights if key.endswith("weight")]
    assert names == [*(f"decoder.psp.blocks.{n}.pool.1.0.weight" for n in range(4)), "decoder.conv.0.weight",
                     "classifier.weight"]  # fmt: skip
    twins = [name for name, module in model.named_modules() if isinstance(module, Twin) and module.compresses]
    assert [name for name in twins if isinstance(model.get_submodule(name), nn.Conv2d)] == ["decoder.conv.0"]


def test_absent_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.import_module

    def fail(name: str) -> object:
        if name.startswith("segmentation_models_pytorch"):
            raise ModuleNotFoundError("No module named 'segmentation_models_pytorch'")
        return there(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=r"tuckprop\[models\]"):
        zoo.build("fcn_r18", 2)
