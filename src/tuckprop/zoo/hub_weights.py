"""Public ImageNet weights of the networks, downloaded from where their libraries keep them."""

import importlib
from collections.abc import Mapping

from torch import Tensor, nn

from tuckprop.errors import ConfigError, DataError
from tuckprop.zoo._torchvision import import_torchvision
from tuckprop.zoo.build import TIMM
from tuckprop.zoo.hub import import_timm
from tuckprop.zoo.weights import Loaded, find_head, load_state

# torchvision's name of the network whose weights these begin with; a segmentation network has them in its encoder.
_CLASSIFIERS = {"mobilenetv2": "mobilenet_v2", "resnet18": "resnet18", "resnet34": "resnet34", "swin_t": "swin_t"}
_ENCODERS = dict.fromkeys(("pspnet_r18", "deeplabv3_r18", "fcn_r18", "upernet_r18"), "resnet18")
_ENCODERS |= dict.fromkeys(("pspnet_m", "deeplabv3_m"), "mobilenet_v2")


def load_hub_weights(name: str, model: nn.Module) -> Loaded:
    """Load a network's public ImageNet weights into `model`, in place; the first call for a network downloads them.

    The weights are torchvision's first (`IMAGENET1K_V1`), or timm's default for `timm:NAME`. A classifier of another
    number of classes keeps its fresh values; of a segmentation network the backbone alone is loaded.

    Args:
        name: As `build` was given it.
        model: What `build` returned.

    Returns:
        What was loaded and what was not.

    Raises:
        ConfigError: The network has no public weights in a hub, or a library is not installed.
        DataError: They cannot be downloaded, or do not match the model.
    """
    if name.startswith(TIMM):
        return load_state(model, _timm_state(name.removeprefix(TIMM)), name, head=find_head(model))
    if name in _CLASSIFIERS:
        theirs = _CLASSIFIERS[name]
        return load_state(model, _torchvision_state(theirs), f"torchvision's {theirs}", head=find_head(model))
    if name in _ENCODERS:
        return _load_encoder(model, _torchvision_state(_ENCODERS[name]), f"torchvision's {_ENCODERS[name]}")
    known = ", ".join([*_CLASSIFIERS, *_ENCODERS])
    raise ConfigError(f"network {name!r} has no weights in a hub; use --weights FILE, or one of {known}, timm:NAME")


def _load_encoder(model: nn.Module, given: Mapping[str, Tensor], source: str) -> Loaded:
    encoder = model.get_submodule("encoder")
    wanted = encoder.state_dict()
    # The classifier, and what leads to nothing but it, is no part of the encoder.
    loaded = load_state(encoder, {key: value for key, value in given.items() if key in wanted}, source, head=None)
    names = tuple(f"encoder.{key}" for key in loaded.loaded)
    return Loaded(source, names, tuple(key for key in model.state_dict() if key not in names))


def _torchvision_state(name: str) -> Mapping[str, Tensor]:
    import_torchvision()
    weights = importlib.import_module("torchvision.models").get_model_weights(name).IMAGENET1K_V1
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # a hub's client raises many kinds
        raise _unreachable(name, error) from error
    return state


def _timm_state(name: str) -> Mapping[str, Tensor]:
    timm = import_timm()
    if not timm.models.is_model_pretrained(name):
        raise ConfigError(f"network 'timm:{name}' has no weights in timm's hub; use --weights FILE")
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # a hub's client raises many kinds
        raise _unreachable(name, error) from error
    return network.state_dict()


def _unreachable(name: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"cannot download the weights of {name} ({reason}); put them in a file and use --weights FILE")
