"""Networks of torchvision and timm: the paper's by short names, any timm network as `timm:NAME`."""

import importlib
from functools import partial
from types import ModuleType

from torch import nn

from tuckprop.errors import ConfigError
from tuckprop.zoo._base import networks
from tuckprop.zoo._torchvision import import_torchvision


def torchvision_network(name: str, classes: int, channels: int) -> nn.Module:
    """Return a network of torchvision, freshly initialised.

    Args:
        name: A function of `torchvision.models`.
        classes: Outputs of the classifier.
        channels: Channels of the images; torchvision's take 3.

    Raises:
        ConfigError: torchvision is not installed, or `channels` is not 3.
    """
    if channels != 3:
        raise ConfigError(f"network {name}: expected images of 3 channels, got {channels}; use a timm: network instead")
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    network: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    return network


def timm_network(name: str, classes: int, channels: int) -> nn.Module:
    """Return a network of timm, freshly initialised.

    Args:
        name: As `timm.create_model` takes it.
        classes: Outputs of the classifier.
        channels: Channels of the images.

    Raises:
        ConfigError: timm is not installed or has no such network.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"network 'timm:{name}': timm {timm.__version__} has no {name!r}; near it: {near}")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    return network


def import_timm() -> ModuleType:
    """Return the timm package.

    Raises:
        ConfigError: It is not installed.
    """
    import_torchvision()
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"timm is needed here ({error}): pip install 'tuckprop[models]'") from error


networks.add("mobilenetv2", partial(torchvision_network, "mobilenet_v2"))
networks.add("resnet18", partial(torchvision_network, "resnet18"))
networks.add("resnet34", partial(torchvision_network, "resnet34"))
networks.add("swin_t", partial(torchvision_network, "swin_t"))
