"""Networks by name."""

import importlib
from types import ModuleType

import pytest
import torch

from tuckprop import zoo
from tuckprop.errors import ConfigError
from tuckprop.zoo import _torchvision

SEGMENTERS = {"pspnet_r18", "pspnet_m", "deeplabv3_r18", "deeplabv3_m", "fcn_r18", "fcn_m", "upernet_r18"}


@pytest.mark.parametrize("name", [name for name in [*zoo.networks, "timm:mobilenetv2_050"] if name not in SEGMENTERS])
def test_every_name_gives_a_network_with_so_many_classes(name: str) -> None:
    channels = 1 if name == "digits_cnn" else 3
    model = zoo.build(name, 7, channels).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mcunet", "timm:resnet10t"])
def test_networks_take_grey_images_where_they_can(name: str) -> None:
    with torch.no_grad():
        assert zoo.build(name, 3, 1).eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


def test_the_random_state_decides_the_weights() -> None:
    first, second = [], []
    for weights in (first, second):
        torch.manual_seed(5)
        weights.extend(p.clone() for p in zoo.build("digits_cnn", 10, 1).parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "channels", "text"),
    [
        ("nothing", 3, "known: .*mcunet.*timm:NAME"),
        ("timm:resnet1", 3, "near it: .*resnet"),
        ("resnet18", 1, "3 channels"),
    ],
)
def test_wrong_names_say_what_there_is(name: str, channels: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        zoo.build(name, 10, channels)


def test_torchvision_is_left_alone_where_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = ModuleType("torchvision")
    monkeypatch.setattr(importlib, "import_module", lambda name: fine)
    monkeypatch.setattr(torch.library, "Library", pytest.fail)
    assert _torchvision.import_torchvision() is fine


def test_other_failures_of_torchvision_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        _torchvision.import_torchvision()


def test_absent_torchvision_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'torchvision'")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=r"tuckprop\[models\]"):
        _torchvision.import_torchvision()
