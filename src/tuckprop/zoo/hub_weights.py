"""Public ImageNet weights of the networks, downloaded from where their libraries keep them.

Tested with servers on the same machine; the public ones were not tried, as this was built without a network.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tuckprop.errors import ConfigError, DataError
from tuckprop.zoo import mcunet_weights
from tuckprop.zoo._hub_file import dropping_damaged
from tuckprop.zoo._torchvision import import_torchvision
from tuckprop.zoo.build import TIMM
from tuckprop.zoo.hub import import_timm
from tuckprop.zoo.weights import Loaded, find_heads, load_state

# torchvision's name of the network whose weights these begin with; a segmentation network has them in its encoder.
_CLASSIFIERS = {"mobilenetv2": "mobilenet_v2", "resnet18": "resnet18", "resnet34": "resnet34", "swin_t": "swin_t"}
_ENCODERS = dict.fromkeys(("pspnet_r18", "deeplabv3_r18", "fcn_r18", "upernet_r18"), "resnet18")
_ENCODERS |= dict.fromkeys(("pspnet_m", "deeplabv3_m", "fcn_m"), "mobilenet_v2")
# torch.hub's hashes are the first digits of SHA-256.
_HASH = re.compile(r"-[a-f0-9]{8,}\.[a-z.]+$")
_MCUNETS = {"mcunet": mcunet_weights.folded, "mcunet_bn": mcunet_weights.renamed}


def load_hub_weights(name: str, model: nn.Module) -> Loaded:
    """Load a network's public ImageNet weights into `model`, in place; the first call for a network downloads them.

    The weights are torchvision's first (`IMAGENET1K_V1`), MCUNet's are those of its authors (with batch norms folded in
    for `mcunet`), or timm's default for `timm:NAME`. A classifier of another number of classes keeps its fresh values;
    of a segmentation network the backbone alone is loaded. Images of other than 3 channels take timm's networks only.

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
        return _load_timm(model, name.removeprefix(TIMM))
    if name in _MCUNETS:
        try:
            given = mcunet_weights.download()
        except Exception as error:  # a hub's client raises many kinds
            raise _unreachable(name, "mcunet-in1", error) from error
        return load_state(model, _MCUNETS[name](given), mcunet_weights.URL, heads=find_heads(model))
    if name in _CLASSIFIERS:
        theirs = _CLASSIFIERS[name]
        return load_state(model, _torchvision_state(name, theirs), f"torchvision's {theirs}", heads=find_heads(model))
    if name in _ENCODERS:
        return _load_encoder(model, _torchvision_state(name, _ENCODERS[name]), f"torchvision's {_ENCODERS[name]}")
    known = ", ".join([*_MCUNETS, *_CLASSIFIERS, *_ENCODERS])
    raise ConfigError(f"network {name!r} has no weights in a hub; use --weights FILE, or one of {known}, timm:NAME")


def _load_encoder(model: nn.Module, given: Mapping[str, Tensor], source: str) -> Loaded:
    encoder = model.get_submodule("encoder")
    wanted = encoder.state_dict()
    # The classifier, and what leads to nothing but it, is no part of the encoder.
    loaded = load_state(encoder, {key: value for key, value in given.items() if key in wanted}, source, heads=())
    names = tuple(f"encoder.{key}" for key in loaded.loaded)
    return Loaded(source, names, tuple(key for key in model.state_dict() if key not in names))


def _torchvision_state(name: str, theirs: str) -> Mapping[str, Tensor]:
    import_torchvision()
    weights = importlib.import_module("torchvision.models").get_model_weights(theirs).IMAGENET1K_V1
    try:
        with dropping_damaged(weights.url):
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # a hub's client raises many kinds
        raise _unreachable(name, f"torchvision's {theirs}", error) from error
    return state


def _load_timm(model: nn.Module, name: str) -> Loaded:
    timm = import_timm()
    if not timm.models.is_model_pretrained(name):
        raise ConfigError(f"network 'timm:{name}' has no weights in timm's hub; use --weights FILE")
    # timm fits the first layer to the images' channels: it sums or repeats the weights of the three colours.
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    try:
        with _checking_hash(timm, name):
            theirs: nn.Module = timm.create_model(name, pretrained=True, in_chans=channels)
    except Exception as error:  # a hub's client raises many kinds
        raise _unreachable(f"timm:{name}", f"timm's {name}", error) from error
    # A name, or some: a network that learns from a teacher has a classifier for it besides.
    heads = timm.get_pretrained_cfg(name).classifier or find_heads(model)
    return load_state(model, theirs.state_dict(), f"timm's {name}", heads=[heads] if isinstance(heads, str) else heads)


@contextmanager
def _checking_hash(timm: Any, name: str) -> Iterator[None]:
    """Have timm compare the hash in the name of a file that comes by torch.hub; the other hub's client needs none.

    torch.hub takes any hexadecimal digits between a hyphen and a point for one, such as the 300e of a schedule.
    """
    builder = importlib.import_module("timm.models._builder")
    before = builder._CHECK_HASH
    timm.models.set_pretrained_check_hash(bool(_HASH.search(timm.get_pretrained_cfg(name).url or "")))
    try:
        yield
    finally:
        timm.models.set_pretrained_check_hash(before)


def _unreachable(name: str, source: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"network {name!r}: cannot download the weights of {source} ({reason}); "
        f"use --weights FILE, a file with the weights of {name}"
    )
