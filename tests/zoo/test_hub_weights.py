"""Public weights: where they go, what stays fresh, and what a machine without a network is told. No test downloads."""

import importlib
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.releases import released
from tuckprop import zoo
from tuckprop.errors import ConfigError, DataError

SOURCES = {"mobilenetv2": "mobilenet_v2", "resnet18": "resnet18", "pspnet_r18": "resnet18", "fcn_r18": "resnet18",
           "upernet_r18": "resnet18", "deeplabv3_m": "mobilenet_v2", "fcn_m": "mobilenet_v2"}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Let torchvision's weights come from fresh networks; return what was served last."""
    zoo.import_torchvision()
    models = importlib.import_module("torchvision.models")
    served: dict[str, Tensor] = {}

    def get_state_dict(weights: object, **settings: object) -> dict[str, Tensor]:
        torch.manual_seed(99)
        name = next(n for n in ("resnet18", "mobilenet_v2") if models.get_model_weights(n) is type(weights))
        served.clear()
        state = getattr(models, name)(weights=None).state_dict()
        # Old files have no counts of batches.
        served.update({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")})
        return dict(served)

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    return served


@pytest.mark.parametrize("name", list(SOURCES))
def test_all_but_the_classifier_is_loaded(hub: dict[str, Tensor], name: str) -> None:
    model = zoo.build(name, 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded = zoo.load_hub_weights(name, model)
    after = model.state_dict()
    assert SOURCES[name] in str(loaded)
    for key in loaded.loaded:
        assert torch.equal(after[key], hub[key.removeprefix("encoder.")]), key
    assert all(torch.equal(after[key], before[key]) for key in loaded.fresh)
    convolutions = [f"{key}.weight" for key, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if name in ("mobilenetv2", "resnet18"):
        assert set(convolutions) <= set(loaded.loaded)
        assert {key.rpartition(".")[2] for key in loaded.fresh} == {"weight", "bias"}
        assert len(loaded.fresh) == 2
    else:
        assert {key for key in convolutions if key.startswith("encoder.")} <= set(loaded.loaded)
        assert {"classifier.weight", "classifier.bias"} <= set(loaded.fresh)


def test_another_number_of_channels_does_not_match(hub: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match=r"conv1\.weight: expected \(64, 1, 7, 7\)"):
        zoo.load_hub_weights("fcn_r18", zoo.build("fcn_r18", 2, 1))


def test_without_a_network_a_file_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise URLError("Name or service not known")

    zoo.import_torchvision()
    monkeypatch.setattr(importlib.import_module("torchvision.models").WeightsEnum, "get_state_dict", fail)
    monkeypatch.setattr(importlib.import_module("timm"), "create_model", fail)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    for name in ("resnet18", "pspnet_r18", "timm:resnet18", "mcunet"):
        model = nn.Linear(1, 1)
        with pytest.raises(DataError, match=rf"'{name}'.*Name or service not known.*--weights FILE"):
            zoo.load_hub_weights(name, model)


TIMM_HEADS = [
    ("resnet18", 3, ("fc.weight", "fc.bias")),
    ("resnet18", 1, ("fc.weight", "fc.bias")),
    ("deit_tiny_distilled_patch16_224", 3, ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")),
]


@pytest.mark.parametrize(("name", "channels", "fresh"), TIMM_HEADS)
def test_timms_weights_are_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, channels: int, fresh: tuple[str, ...]
) -> None:
    model = zoo.build(f"timm:{name}", 7, channels)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    timm = importlib.import_module("timm")
    create, served = timm.create_model, {}

    def create_model(name: str, pretrained: bool, in_chans: int) -> nn.Module:
        assert pretrained
        theirs = create(name, pretrained=False, in_chans=in_chans)
        served.update(theirs.state_dict())
        return theirs

    monkeypatch.setattr(timm, "create_model", create_model)
    loaded = zoo.load_hub_weights(f"timm:{name}", model)
    assert loaded.fresh == fresh
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key in fresh else served)[key]), key


@pytest.mark.parametrize("name", ["digits_cnn", "timm:resnet10t_nothing"])
def test_networks_without_public_weights_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--weights FILE"):
        zoo.load_hub_weights(name, nn.Linear(1, 1))


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Let MCUNet's file hold the network that is returned, whose norms are not trivial."""
    torch.manual_seed(5)
    source = zoo.build("mcunet_bn", 1000).eval()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var, module.running_mean, module.bias.data):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    file = {"state_dict": released(source), "epoch": 3}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **settings: file)
    return source


@pytest.mark.parametrize("name", ["mcunet", "mcunet_bn"])
def test_mcunets_release_computes_the_same_with_norms_and_folded(release: nn.Module, name: str) -> None:
    model, images = zoo.build(name, 1000).eval(), torch.randn(2, 3, 64, 64)
    loaded = zoo.load_hub_weights(name, model)
    assert loaded.fresh == ()
    with torch.no_grad():
        expected, found = release(images), model(images)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_mcunets_classifier_for_another_number_of_classes_stays_fresh(release: nn.Module) -> None:
    assert zoo.load_hub_weights("mcunet", zoo.build("mcunet", 10)).fresh == ("classifier.weight", "classifier.bias")


def test_another_file_in_mcunets_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"state_dict": {"features.0.weight": torch.zeros(1)}}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **settings: other)
    with pytest.raises(DataError, match=r"'features\.0\.weight'.*--weights FILE"):
        zoo.load_hub_weights("mcunet", zoo.build("mcunet", 10))
